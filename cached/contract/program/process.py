"""What a program that runs for long does before anything else: keep signals until it can heed them, and speak to a log
that neither stops nor ends it.

Law: standard library only, cheap to import. Here the process ends itself: nowhere else. That is allowed at any moment,
because whatever matters is durable step by step, and a kill leaves nothing that the next start does not mend.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGINT)
_PIECE_BYTES = select.PIPE_BUF  # a pipe that poll(2) calls writable takes so much without waiting
_CLONE = {"x86_64": 56, "aarch64": 220}  # the system call's number
_CLONE_FILES = 0x400  # clone(2)
_PARENT_ENDS_S = 10
_PATIENCE_MS = 100  # for a reader that lags; one that does not come back within it gets no more until it does


def prepare() -> None:
    """Make signals wait from now on, until `heed` or an `Ending`; ignore SIGHUP; let stderr lose lines, not time.

    As process 1 of a container a program without a handler does not even get SIGTERM, and the kubelet would wait out
    the whole grace for one that is still importing; what is blocked is kept. SIGHUP asks daemons to read their
    configuration again: there is nothing to read that is not watched.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stderr = Voice(sys.stderr.fileno())


def heed() -> None:
    """Let the signals come that were kept: handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class Voice(io.TextIOBase):
    """Text to a descriptor whose reader may be slow, stuck or gone: what it does not take is lost, and told later.

    No buffer, so nothing is left for the end of the process to fail at.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lost = 0  # lines

    def write(self, text: str) -> int:
        """Write all of `text`, or drop it."""
        with self._lock:
            if self._lost and self._put(f"(lines that nobody took: {self._lost})\n"):
                self._lost = 0
            if self._lost or not self._put(text):
                self._lost += max(1, text.count("\n"))
        return len(text)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def _put(self, text: str) -> bool:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            if not self._poll.poll(0 if self._lost else _PATIENCE_MS):
                return False
            try:
                data = data[os.write(self._descriptor, data[:_PIECE_BYTES]) :]
            except OSError:  # EPIPE: its reader is gone; EIO: its terminal is; ENOSPC: its disk is full
                return False
        return True


class Ending(threading.Thread):
    """Waits for the signals that ask the process to end. Start it before any other thread, and once.

    Before a `farewell` is known the process ends there and then, with 0. With one, it is called, and has `patience_s`
    seconds: past that, or at a second signal, `leave` is called and the process ends with 0 whatever still runs, also
    where a file system does not answer.
    """

    def __init__(self, patience_s: float, leave: Callable[[str], None]) -> None:
        super().__init__(name="ending", daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # each thread that starts later inherits it
        self._patience_s = patience_s
        self._leave = leave
        self._lock = threading.Lock()
        self._farewell: Callable[[], object] | None = None
        self.asked = False  # whether a signal asked the process to end

    def farewell(self, farewell: Callable[[], object]) -> None:
        """From now on a signal calls this, from the thread that waits for it; it must not block."""
        with self._lock:
            self._farewell = farewell

    def run(self) -> None:
        signal.sigwait(ENDING)
        self.asked = True
        with self._lock:
            if self._farewell is None:
                _exit_now()
            self._farewell()
        again = signal.sigtimedwait(ENDING, self._patience_s)
        self._leave(f"still busy after {self._patience_s:g} s" if again is None else "told to end again")
        _exit_now()


def _exit_now() -> NoReturn:
    """End the process with 0, and leave the closing of its files to another one.

    The kernel closes what a process that ends has open, and for a file on FUSE or NFS waits until its server has
    answered that: a server that hangs keeps the process from ending, SIGKILL or not. So a child that shares the table
    of open files (CLONE_FILES) is left behind, and whoever waits for this process is told at once.
    """
    number, parent = _CLONE.get(os.uname().machine), os.getpid()
    if number is not None and _has_files():
        # PyDLL keeps the interpreter's lock, so that the child has it: its other threads do not exist.
        child = ctypes.PyDLL(None).syscall(ctypes.c_long(number), ctypes.c_long(_CLONE_FILES), None, None, None, None)
        if child == 0:
            _close_the_rest(parent)
    os._exit(0)


def _open_files() -> list[tuple[int, str]]:
    """The open descriptors, and what they lead to: asks no file system but /proc."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def _is_plain(descriptor: int, place: str) -> bool:
    """Tell a file, which the kernel may wait for when it closes it, from sockets, pipes, folders, locks and devices."""
    if not place.startswith("/") or place.startswith(("/dev/", "/proc/", "/sys/")):
        return False
    return not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECTORY


def _has_files() -> bool:
    try:
        return any(descriptor > 2 and _is_plain(descriptor, place) for descriptor, place in _open_files())
    except OSError:
        return False


def _close_the_rest(parent: int) -> NoReturn:
    """In the child: give back the ports, locks and pipes, wait until the parent is gone, and end; that is when the
    files are closed, whenever that may be."""
    for descriptor, place in _open_files():
        with contextlib.suppress(OSError):
            if descriptor <= 2 or not _is_plain(descriptor, place):
                os.close(descriptor)
    for _ in range(_PARENT_ENDS_S * 10):
        if os.getppid() != parent:
            break
        time.sleep(0.1)
    os._exit(0)
