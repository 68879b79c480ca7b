"""The two Unix sockets: one takes the place of a dead daemon's, never of a living one's.

Law: blocking. The paths are the kubelet's: it opens them as they are, so they must fit a Unix address.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from cached.contract.errors import Permanent

_LONGEST_PATH = 107  # sockaddr_un, unix(7)
_BACKLOG = 64
_ANSWER_S = 2.0


def open_socket(path: Path) -> socket.socket:
    """Return a listening socket at `path`, for root only. Raises `Permanent` (`cannot_listen`)."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise _cannot_listen(path, f"the path is longer than {_LONGEST_PATH} bytes", "choose a shorter one")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        bound.bind(os.fspath(path))
        path.chmod(0o600)  # to connect one must be able to write, which the daemon's umask grants to nobody else
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        return bound
    except OSError as error:
        bound.close()
        raise _cannot_listen(path, error.strerror or str(error), "check the folder and the daemon's rights") from error
    except BaseException:
        bound.close()
        raise


def remove_socket(path: Path, bound: os.stat_result) -> None:
    """Remove the socket at `path` unless another one has taken its place."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), bound):
            path.unlink()


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise _cannot_listen(path, "another process listens here", "stop the other daemon, or choose another path")


def _cannot_listen(path: Path, problem: str, remedy: str) -> Permanent:
    return Permanent("cannot_listen", f"{path}: {problem}", remedy)
