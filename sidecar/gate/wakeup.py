"""Wait for a signal, a change in a folder, or a timeout.

Law: may wake without a reason, and never reports what changed: the waiting caller checks itself. watchdog is imported
only for a wait; where it is missing or inotify fails, the gate polls.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from cached.contract.program import limits, process

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver, ObservedWatch

_PATIENCE_S = 5.0  # after a signal, for a gate that is blocked by its root's file system


class Wakeup:
    """Wakes the one waiting thread, from signals and other threads, over a pipe: a signal handler must not use a lock
    that the interrupted thread may hold. `stopped_by` is the signal that asked the process to end, None before."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self._ending = process.SignalThread(_PATIENCE_S, self._leave)
        if process.is_prepared() and self._await_signals():
            return
        for number in process.ENDING:
            signal.signal(number, self._stop)
        process.unblock_signals()

    def wake(self) -> None:
        """Wake the waiting thread, or make its next wait return at once."""
        with contextlib.suppress(BlockingIOError):  # full: the thread will wake anyway
            os.write(self._writer, b"\0")

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for a `wake`; return whether there was one."""
        woken = bool(self._poll.poll(max(0, timeout_s) * 1000))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
        return woken

    def _await_signals(self) -> bool:
        """Have a thread wait for the signals: where the root's file system hangs, a handler would be called once the
        gate's call is answered. Return False without one more thread."""
        self._ending.set_handler(self._heed)
        try:
            self._ending.start()
        except RuntimeError:
            return False
        return True

    def _heed(self) -> None:
        self.stopped_by = self._ending.signalled
        self.wake()

    def _leave(self, why: str) -> NoReturn:
        number = self.stopped_by or signal.SIGTERM
        sys.stderr.write(f"holdfast gate: {why}: leaving at once, as its root's file system may never answer\n")
        process.exit_now(128 + number)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = number
        self.wake()


class FolderWatch:
    """Wakes the waiting thread when an entry appears in a followed folder. `trouble` is why inotify is not in use, None
    while it is."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._observer: BaseObserver | None = None
        self._watches: dict[Path, tuple[tuple[int, int], ObservedWatch]] = {}
        self.trouble: str | None = None

    def follow(self, folders: Iterable[Path]) -> bool:
        """Watch those of `folders` that exist; return whether one is newly watched, and so must be checked again."""
        if self.trouble is not None:
            return False
        try:
            added = [self._follow(folder) for folder in folders]
        except ImportError:
            self.trouble = "the package watchdog is missing"
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread
            self.trouble = f"inotify: {limits.explain_no_inotify(error)}"
        else:
            return any(added)
        self.close()
        return False

    def close(self) -> None:
        """End all watches."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None
        self._watches.clear()

    def _follow(self, folder: Path) -> bool:
        try:
            found = os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            return False
        identity = (found.st_dev, found.st_ino)
        known = self._watches.get(folder)
        if known is not None and known[0] == identity:
            return False
        observer = self._start_observer()
        if known is not None:
            observer.unschedule(known[1])
        self._watches[folder] = (identity, self._schedule(observer, folder))
        return True

    def _schedule(self, observer: BaseObserver, folder: Path) -> ObservedWatch:
        from watchdog import events

        wakeup = self._wakeup

        class ChangeHandler(events.FileSystemEventHandler):
            def on_any_event(self, _event: FileSystemEvent) -> None:
                wakeup.wake()

        # Not all events: opening a folder to read it is one too, and would wake the gate for ever.
        kinds = [events.FileCreatedEvent, events.DirCreatedEvent, events.FileMovedEvent, events.DirMovedEvent]
        return observer.schedule(ChangeHandler(), str(folder), event_filter=kinds)

    def _start_observer(self) -> BaseObserver:
        if self._observer is None:
            import logging

            from watchdog.observers.inotify import InotifyObserver

            # Without a handler Python prints watchdog's messages about ended watches, which help no reader.
            logging.getLogger("watchdog").addHandler(logging.NullHandler())
            observer = InotifyObserver()
            try:
                observer.start()
            except RuntimeError:
                observer.stop()
                raise
            self._observer = observer
        return self._observer
