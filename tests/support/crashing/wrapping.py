"""Stand between a daemon and its disk: every system call that changes the root is a numbered point.

Law: runs inside the daemon's process and changes nothing but `os`, a libc function and `socket.bind`; a call does what
it always did, unless this is the point at which the plan has the process die. Calls that would change nothing (a folder
that exists, a name that is gone) are no points.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from cached.store.disk import durable
from tests.support.crashing.journal import Journal
from tests.support.crashing.places import place
from tests.support.crashing.points import Plan, Point

_open, _write, _fsync, _kill = os.open, os.write, os.fsync, os.kill  # as they are before anything is wrapped

Act = Callable[[], Any]


class Steps:
    """The one sequence of steps of this process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._root = os.fspath(plan.root)
        self._lock = threading.RLock()
        self._seen: Counter[str] = Counter()
        self._log = _open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._journal = None if plan.journal is None else Journal(plan.root, plan.journal)

    def take(self, call: str, path: str, act: Act, half: Act | None = None) -> Any:
        """Do `act` as a point of its own if `path` is under the root; `half` does half of it."""
        where = place(self._root, path)
        if where is None:
            return act()
        with self._lock:
            name = f"{call} {where}"
            self._seen[name] += 1
            point = Point(name, self._seen[name])
            _write(self._log, json.dumps({"name": name, "path": os.path.relpath(path, self._root)}).encode() + b"\n")
            self._die_if(point, "before")
            if half is not None and self._is(point, "half"):
                half()
                self._die()
            kept = None
            if self._journal is not None and call in ("fsync", "fdatasync"):
                kept = self._journal.look(path)  # what is there before the call is durable after it
            result = act()
            if self._journal is not None:
                if kept is not None:
                    self._journal.synced(name, kept)
                elif call in ("create", "mkdir", "symlink"):
                    self._journal.born(path)
            self._die_if(point, "after")
            return result

    def _is(self, point: Point, when: str) -> bool:
        kill = self._plan.kill
        return kill is not None and kill.point == point and kill.when == when

    def _die_if(self, point: Point, when: str) -> None:
        if self._is(point, when):
            self._die()

    def _die(self) -> None:
        _kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)  # the kernel may let a few more instructions through: none of them is a step


def install(plan: Plan) -> None:
    """Wrap this process's system calls."""
    steps = Steps(plan)
    _wrap_opening(steps)
    _wrap_descriptors(steps)
    _wrap_names(steps)
    _wrap_pairs(steps)
    _wrap_socket(steps)


def _wrap_opening(steps: Steps) -> None:
    real = os.open

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        full = _full(path, more.get("dir_fd"))
        if not flags & os.O_CREAT or os.path.lexists(full):
            return real(path, flags, *rest, **more)
        return int(steps.take("create", full, lambda: real(path, flags, *rest, **more)))

    os.open = opened


def _wrap_descriptors(steps: Steps) -> None:
    for name in ("fsync", "fdatasync", "ftruncate", "fchmod"):
        setattr(os, name, _on_descriptor(steps, name, getattr(os, name)))
    real_write, real_pwrite = os.write, os.pwrite

    def written(descriptor: int, data: Any) -> int:
        half = data[: len(data) // 2]
        return int(
            steps.take(
                "write",
                _of(descriptor),
                lambda: real_write(descriptor, data),
                lambda: real_write(descriptor, half),
            )
        )

    def written_at(descriptor: int, data: Any, offset: int) -> int:
        half = data[: len(data) // 2 // 4096 * 4096]  # as O_DIRECT asks
        return int(
            steps.take(
                "pwrite",
                _of(descriptor),
                lambda: real_pwrite(descriptor, data, offset),
                lambda: real_pwrite(descriptor, half, offset),
            )
        )

    os.write = written
    os.pwrite = written_at
    fallocate = durable._libc.fallocate

    def allocated(descriptor: int, *rest: Any) -> int:
        return int(steps.take("fallocate", _of(descriptor), lambda: fallocate(descriptor, *rest)))

    setattr(durable._libc, "fallocate", allocated)  # noqa: B010 - a name that the library's type does not have


def _on_descriptor(steps: Steps, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def called(descriptor: int, *rest: Any) -> Any:
        return steps.take(name, _of(descriptor), lambda: real(descriptor, *rest))

    return called


def _wrap_names(steps: Steps) -> None:
    changes: dict[str, Callable[..., bool]] = {
        "mkdir": lambda path, *_: not os.path.lexists(path),
        "rmdir": lambda path, *_: os.path.isdir(path) and not os.listdir(path),
        "unlink": lambda path, *_: os.path.lexists(path),
        "chmod": lambda path, mode, *_: os.path.lexists(path) and stat.S_IMODE(os.lstat(path).st_mode) != mode,
        "utime": lambda path, *_: os.path.lexists(path),
    }
    for name, changing in changes.items():
        setattr(os, name, _on_name(steps, name, getattr(os, name), changing))
    os.remove = os.unlink


def _on_name(steps: Steps, name: str, real: Callable[..., Any], changing: Callable[..., bool]) -> Callable[..., Any]:
    def called(path: Any, *rest: Any, **more: Any) -> Any:
        full = _full(path, more.get("dir_fd"))
        if not changing(full, *rest):
            return real(path, *rest, **more)
        return steps.take(name, full, lambda: real(path, *rest, **more))

    return called


def _wrap_pairs(steps: Steps) -> None:
    """A call with two names is a point of the second: what appears there."""
    for name in ("rename", "replace", "link", "symlink"):
        setattr(os, name, _on_pair(steps, name, getattr(os, name)))


def _on_pair(steps: Steps, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def called(source: Any, target: Any, **more: Any) -> Any:
        full = _full(target, more.get("dst_dir_fd"))
        if name != "symlink" and not os.path.lexists(_full(source, more.get("src_dir_fd"))):
            return real(source, target, **more)
        return steps.take(name, full, lambda: real(source, target, **more))

    return called


def _wrap_socket(steps: Steps) -> None:
    real = socket.socket.bind

    def bound(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX and isinstance(address, str) and address.startswith("/"):
            steps.take("bind", _full(address, None), lambda: real(self, address))
        else:
            real(self, address)

    setattr(socket.socket, "bind", bound)  # noqa: B010 - mypy takes no method for a variable


def _of(descriptor: int) -> str:
    """The path of an open file; a pipe, a socket, or a file that is deleted has none under the root."""
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    return "" if path.endswith(" (deleted)") else path


def _full(path: Any, dir_fd: int | None) -> str:
    if isinstance(path, int):
        return _of(path)
    name = os.fsdecode(path)
    folder, last = os.path.split(name if dir_fd is None else os.path.join(_of(dir_fd), name))
    return os.path.join(os.path.realpath(folder), last)
