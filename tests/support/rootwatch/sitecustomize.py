"""Loaded by every Python that has this folder in PYTHONPATH: notes each file-system call that the main thread makes to
the root in ROOTWATCH_ROOT, with where it came from, in the file ROOTWATCH_LOG, once the file ROOTWATCH_FROM is there.

Law: changes nothing but the time that such a call takes.
"""

from __future__ import annotations

import functools
import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

_ROOT = os.environ.get("ROOTWATCH_ROOT")
_CALLS = (
    *("access", "chmod", "chown", "fchmod", "fdatasync", "fstat", "fstatvfs", "fsync", "ftruncate", "getxattr", "link"),
    *("listdir", "listxattr", "lstat", "mkdir", "mknod", "open", "pread", "preadv", "pwrite", "read", "readlink"),
    *("remove", "removexattr", "rename", "replace", "rmdir", "scandir", "sendfile", "setxattr", "stat", "statvfs"),
    *("symlink", "truncate", "unlink", "utime", "write"),
)


def _watch(name: str, call: Callable[..., Any], root: str, log: str, since: str) -> Callable[..., Any]:
    lexists, fspath, link = os.path.lexists, os.fspath, os.readlink

    @functools.wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and not _state.inside:
            _state.inside = True
            try:
                if _is_below(args[0] if args else ".", root, fspath, link) and lexists(since):
                    with open(log, "a") as file:
                        file.write(f"{name}{args!r}\n{''.join(traceback.format_stack(limit=8)[:-1])}\n")
            finally:
                _state.inside = False
        return call(*args, **kwargs)

    return watched


class _State:
    inside = False


_state = _State()


def _is_below(what: Any, root: str, fspath: Callable[[Any], Any], link: Callable[[str], str]) -> bool:
    try:
        path = link(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fsdecode(fspath(what))
    except (OSError, TypeError):
        return False
    return path == root or path.startswith(root + "/")


if _ROOT:
    for _name in _CALLS:
        setattr(
            os,
            _name,
            _watch(_name, getattr(os, _name), _ROOT, os.environ["ROOTWATCH_LOG"], os.environ["ROOTWATCH_FROM"]),
        )
