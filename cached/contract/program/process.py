"""Start and end of a long-running process: block signals until handlers exist, write logs without blocking, exit.

Law: standard library only, cheap to import. Only this module ends the process. It may do so at any moment, because all
state is durable step by step, and the next start repairs what a kill leaves.
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
_PIECE_BYTES = select.PIPE_BUF  # a pipe that poll(2) reports writable takes this much without blocking
_CLONE = {"x86_64": 56, "aarch64": 220}  # the system call's number
_CLONE_FILES = 0x400  # clone(2)
_PARENT_ENDS_S = 10
_NEVER_S, _HANDOVER_S = 3600.0, 0.02
_READER_TIMEOUT_MS = 100  # for a slow reader; after it, lines are dropped until the reader reads again


def prepare_process() -> None:
    """Ignore SIGHUP; block SIGTERM and SIGINT until `unblock_signals` or a `SignalThread`; make stderr lossy. Process 1
    of a container gets no SIGTERM without a handler: the kubelet would wait out the whole grace period of a program
    that still imports. A blocked signal stays pending. SIGHUP asks to read files again, which are watched already."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    sys.stderr = LossyStream(sys.stderr.fileno())


def is_prepared() -> bool:
    """Tell whether the signals wait for `unblock_signals` or a `SignalThread`."""
    return signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def unblock_signals() -> None:
    """Unblock the signals after the handlers are installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class LossyStream(io.TextIOBase):
    """A text stream to a descriptor whose reader may be slow, stuck or gone: drops lines, and counts them in the log in
    the words of `describe_loss`. A line that has begun is finished before anything else is written, so that none is
    half a line. There is no buffer, so the flush at the end of the process cannot fail."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lost = 0  # lines
        self._rest = memoryview(b"")  # of the line that has begun
        self.describe_loss: Callable[[int], str] = lambda lines: f"(log lines dropped: {lines})\n"

    def write(self, text: str) -> int:
        """Write all of `text`, some of it later, or drop it."""
        with self._lock:
            if self._rest and not self._drain():
                self._lost += max(1, text.count("\n"))
                return len(text)
            if self._lost and self._put(self.describe_loss(self._lost)):
                self._lost = 0
            if self._lost or not self._put(text):
                self._lost += max(1, text.count("\n"))
        return len(text)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def _put(self, text: str) -> bool:
        """Write `text`, or keep what is left of it; return False where nothing of it was written."""
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        self._rest = data
        if not self._drain() and len(self._rest) == len(data):
            self._rest = memoryview(b"")
            return not data
        return True

    def _drain(self) -> bool:
        """Write what is left; return whether nothing is."""
        while self._rest:
            if not self._poll.poll(0 if self._lost else _READER_TIMEOUT_MS):
                return False
            try:
                self._rest = self._rest[os.write(self._descriptor, self._rest[:_PIECE_BYTES]) :]
            except OSError:  # EPIPE: no reader; EIO: no terminal; ENOSPC: the disk is full
                return False
        return True


class SignalThread(threading.Thread):
    """The thread that waits for SIGTERM and SIGINT; start it once, before any other thread. Without a handler the
    process exits at once with 0. Otherwise the signal calls it; after `patience_s` seconds, or at a second signal, the
    thread calls `leave` and exits with 0 whatever still runs, also with a hung file system."""

    def __init__(self, patience_s: float, leave: Callable[[str], None]) -> None:
        super().__init__(name="ending", daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # each thread that starts later inherits it
        self._patience_s = patience_s
        self._leave = leave
        self._lock = threading.Lock()
        self._handler: Callable[[], object] | None = None
        self.signalled: int | None = None  # the signal that arrived

    def set_handler(self, handler: Callable[[], object]) -> None:
        """Set the function that a signal calls, in this thread; it must not block."""
        with self._lock:
            self._handler = handler

    def run(self) -> None:
        self.signalled = signal.sigwait(ENDING)
        with self._lock:
            if self._handler is None:
                exit_now(0)
            self._handler()
        again = signal.sigtimedwait(ENDING, self._patience_s)
        self._leave(f"still busy after {self._patience_s:g} s" if again is None else "told to end again")
        exit_now(0)


def exit_now(code: int) -> NoReturn:
    """Exit with `code`, and leave the closing of open files to a child process: for files on FUSE or NFS the kernel
    waits for their server, which keeps the process alive, even after SIGKILL, while the server hangs. A child that
    shares the table of open files (CLONE_FILES) stays behind instead, and the parent process sees this one exit at
    once."""
    number, parent = _CLONE.get(os.uname().machine), os.getpid()
    if number is not None and _has_files():
        # PyDLL keeps the interpreter's lock, so the child holds it. It has no other threads: one that asks for the lock
        # here would be waited for there without end, so none may ask from now on, and those that did get it first.
        sys.setswitchinterval(_NEVER_S)
        time.sleep(_HANDOVER_S)
        child = ctypes.PyDLL(None).syscall(ctypes.c_long(number), ctypes.c_long(_CLONE_FILES), None, None, None, None)
        if child == 0:
            _close_the_rest(parent)
    os._exit(code)


def _open_files() -> list[tuple[int, bool]]:
    """Return the open descriptors, and whether each is a file, whose close may block the kernel, and no socket, pipe,
    folder or device. Accesses no file system but /proc."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            place, flags = os.readlink(f"/proc/self/fd/{name}"), fcntl.fcntl(int(name), fcntl.F_GETFL)
            plain = place.startswith("/") and not place.startswith(("/dev/", "/proc/", "/sys/"))
            found.append((int(name), plain and not flags & os.O_DIRECTORY))
    return found


def _has_files() -> bool:
    try:
        return any(descriptor > 2 and plain for descriptor, plain in _open_files())
    except OSError:
        return False


def _close_the_rest(parent: int) -> NoReturn:
    """In the child: close the sockets, locks and pipes, wait until the parent is gone, and exit, which closes the
    files, however long that takes."""
    for descriptor, plain in _open_files():
        if descriptor <= 2 or not plain:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    for _ in range(_PARENT_ENDS_S * 10):
        if os.getppid() != parent:
            break
        time.sleep(0.1)
    os._exit(0)
