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


class ListeningSocket:
    """A listening socket at `path`, for root only. Raises `Permanent` (`cannot_listen`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bound, self._made = _bind(path)

    def is_there(self) -> bool:
        """Return whether `path` still leads to this socket."""
        try:
            return os.path.samestat(os.lstat(self.path), self._made)
        except OSError:
            return False

    def reopen(self) -> None:
        """Listen again at `path`, where the socket was removed or replaced. Raises as the constructor does."""
        self.bound.close()
        self.bound, self._made = _bind(self.path)

    def close(self) -> None:
        """Stop listening, and remove the socket unless another one has taken its place."""
        if self.is_there():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.bound.close()


def _bind(path: Path) -> tuple[socket.socket, os.stat_result]:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise _cannot_listen(path, f"the path is longer than {_LONGEST_PATH} bytes", "choose a shorter one")
    try:
        with contextlib.ExitStack() as closing:
            bound = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path)
            bound.bind(os.fspath(path))
            path.chmod(0o600)  # connecting needs the right to write, which other users do not get
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            found = os.lstat(path)
            closing.pop_all()
            return bound, found
    except OSError as error:
        raise _cannot_listen(path, error.strerror or str(error), "check the folder and the daemon's rights") from error


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
