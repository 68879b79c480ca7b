"""Watch a file through its folder: a ConfigMap's update swaps a symlink there, and never touches the file itself.

Law: tells that something may have changed, never what; the reader compares. It may miss a change (the folder is not
there yet, is swapped itself, or the kernel has no watches left): whoever must not, looks now and then as well.
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

_log = logging.getLogger(__name__)
_CHANGES = frozenset({EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED})


@contextmanager
def watched(file: Path, changed: Callable[[], object]) -> Iterator[None]:
    """Call `changed`, from another thread, when anything happens in the file's folder."""
    observer = Observer()
    try:
        observer.schedule(_Handler(changed), str(file.parent))
        observer.start()
    except OSError as error:
        _log.warning("no inotify watch for %s (%s): changes are noticed later", file.parent, error.strerror or error)
        yield
        return
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
