"""Watch a file through its folder: a ConfigMap's update swaps a symlink there, and never touches the file itself.

Law: reports that the file may have changed; the reader compares. A change may go unreported (the folder does not exist
yet, is swapped itself, or the kernel gives no watch): a reader that needs every change polls as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from watchdog.events import (
    EVENT_TYPE_CREATED,
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from cached.contract.program.limits import explain_no_inotify

_log = logging.getLogger(__name__)
_CHANGES = frozenset({EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED})


@contextmanager
def watch_file(file: Path, changed: Callable[[], object], poll_s: float) -> Iterator[None]:
    """Call `changed`, from another thread, after each change in the file's folder.

    Without a watch from the kernel a warning is logged once; the reader polls every `poll_s` seconds.
    """
    observer: BaseObserver | None = None
    try:
        observer = Observer()  # takes an inotify instance at once
        observer.schedule(_ChangeHandler(changed), str(file.parent))
        observer.start()
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread
        if observer is not None:
            observer.stop()
            observer = None
        reason = explain_no_inotify(error)
        _log.warning("%s: no inotify watch: %s; it is looked at every %g s instead", file.parent, reason, poll_s)
    try:
        yield
    finally:
        if observer is not None:
            observer.stop()
            observer.join()


class _ChangeHandler(FileSystemEventHandler):
    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _CHANGES:  # reading the file is an event too
            self._changed()
