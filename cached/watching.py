"""Watch a file through its folder: a ConfigMap's update swaps a symlink there, and never touches the file itself.

Law: tells that something may have changed, never what; the reader compares. Falls back to looking every few seconds
where the kernel has no watches left.
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
from watchdog.observers.polling import PollingObserver

_log = logging.getLogger(__name__)
_CHANGES = frozenset({EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED})


@contextmanager
def watched(file: Path, changed: Callable[[], object]) -> Iterator[None]:
    """Call `changed`, from another thread, whenever anything happens in the file's folder."""
    handler = _Handler(changed)
    observer = Observer()
    try:
        observer.schedule(handler, str(file.parent))
        observer.start()
    except OSError as error:
        _log.warning("no inotify watch for %s (%s): looking every few seconds instead", file.parent, error.strerror)
        observer = PollingObserver(timeout=5)
        observer.schedule(handler, str(file.parent))
        observer.start()
    try:
        yield
    finally:
        observer.stop()
        observer.join()


class _Handler(FileSystemEventHandler):
    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _CHANGES:  # reading the file is an event too
            self._changed()
