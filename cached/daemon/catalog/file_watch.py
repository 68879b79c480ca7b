"""Watch a file through its folder: a ConfigMap's update swaps a symlink there, and never touches the file itself.

Law: reports that the file may have changed; the reader compares. A change may go unreported (the folder does not exist
yet, is swapped itself, or the kernel gives no watch): a reader that needs every change polls as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cached.contract.program.limits import explain_no_inotify
from cached.node import inotify
from cached.node.inotify import Inotify

_log = logging.getLogger(__name__)
_CHANGES = inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_MODIFY | inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO
_CHANGES |= inotify.IN_ATTRIB  # the mode: it may be readable now


@asynccontextmanager
async def watch_file(file: Path, changed: Callable[[], object], poll_s: float) -> AsyncIterator[None]:
    """Call `changed`, on the event loop, after each change in the file's folder.

    Without a watch from the kernel a warning is logged once; the reader polls every `poll_s` seconds.
    """
    loop, watch = asyncio.get_running_loop(), None

    def read() -> None:
        if watch is not None and watch.read():
            changed()

    try:
        watch = Inotify()
        await asyncio.to_thread(_add, watch, file.parent)  # the folder may be a mount that hangs
        loop.add_reader(watch.fileno(), read)
    except OSError as error:
        reason = explain_no_inotify(error)
        _log.warning("%s: no inotify watch: %s; it is looked at every %g s instead", file.parent, reason, poll_s)
    try:
        yield
    finally:
        if watch is not None:
            loop.remove_reader(watch.fileno())
            watch.close()


def _add(watch: Inotify, folder: Path) -> None:
    watch.add(folder.resolve(), _CHANGES)
