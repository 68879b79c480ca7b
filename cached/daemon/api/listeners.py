"""The two listeners of the daemon: the TCP port for reads, the Unix socket under `private/` for commands.

Law: a port that cannot be bound ends the start; a socket that cannot be made (full or read-only disk) is retried every
5 s, and made again after it was deleted, unless another root is at the place of the one that the daemon began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.daemon.http.messages import Handler
from cached.daemon.http.server import HttpServer
from cached.node.log_once import LogOnce
from cached.node.threads import Blocking
from cached.store.disk.root import Root

_log = logging.getLogger("holdfast")

_CHECK_S = 5.0
_BACKLOG = 256


class ControlListener:
    """The control socket, in the folder that `root` has locked."""

    def __init__(self, layout: Layout, root: Root, blocking: Blocking, server: HttpServer) -> None:
        self._path = layout.socket
        self._root = root
        self._blocking = blocking
        self._server = server
        self._listener: asyncio.Server | None = None
        self._made: os.stat_result | None = None
        self._log_once = LogOnce(_log)

    async def keep_open(self) -> None:
        """Make the socket again whenever it is missing, until cancelled."""
        while True:
            await self.ensure_open()
            await asyncio.sleep(_CHECK_S)

    async def ensure_open(self) -> None:
        """Make the socket unless it exists; log a failure once."""
        try:
            made = await self._blocking.run(_bind_if_missing, self._root, self._path, self._made)
            if made is not None:
                await self._listen(*made)
        except (OSError, HoldfastError) as error:
            found = error.strerror if isinstance(error, OSError) else None
            self._log_once.log_error(f"control socket {self._path}", found or str(error))
        else:
            self._log_once.log_recovery(f"control socket {self._path}")

    async def _listen(self, bound: socket.socket, made: os.stat_result) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_unix_server(self._server, sock=bound, backlog=_BACKLOG)
        except BaseException:
            bound.close()
            raise
        self._made = made

    async def close(self) -> None:
        """Stop listening and unlink the socket."""
        if self._listener is not None:
            self._listener.close()
        await self._blocking.run(_unlink_if, self._path, self._made)


def _is_there(path: Path, made: os.stat_result | None) -> bool:
    try:
        return made is not None and os.path.samestat(made, os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _unlink_if(path: Path, made: os.stat_result | None) -> None:
    with contextlib.suppress(OSError):
        if _is_there(path, made):
            path.unlink()


def _bind_if_missing(
    root: Root, path: Path, made: os.stat_result | None
) -> tuple[socket.socket, os.stat_result] | None:
    """Return a bound socket and its inode's stat; None while `made` is still at `path`. Blocking. Raises OSError and
    `HoldfastError`."""
    if _is_there(path, made):
        return None
    root.check()  # in another root the socket is another daemon's
    # A deep root does not fit a Unix address (107 bytes); its folder, opened, has a short name.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        bound.bind(f"/proc/self/fd/{folder}/{path.name}")
        path.chmod(0o600)
        bound.setblocking(False)
        return bound, os.lstat(path)
    except BaseException:
        bound.close()
        raise
    finally:
        os.close(folder)


@contextlib.asynccontextmanager
async def open_listeners(
    listen: tuple[str, int],
    layout: Layout,
    root: Root,
    blocking: Blocking,
    reads: Handler,
    control: Handler,
    max_clients: int,
) -> AsyncIterator[tuple[tuple[str, int], ControlListener]]:
    """Open both, each for `max_clients` at once; yield the TCP address, and the control listener for `keep_open`.
    Raises `Permanent` (`cannot_listen`). On exit responses in progress get 2 s."""
    tcp, unix = HttpServer(reads, max_clients), HttpServer(control, max_clients)
    listener = ControlListener(layout, root, blocking, unix)
    port: asyncio.Server | None = None
    try:
        await listener.ensure_open()
        try:
            port = await asyncio.get_running_loop().create_server(tcp, *listen, backlog=_BACKLOG)
        except OSError as error:
            raise Permanent(
                "cannot_listen",
                f"{listen[0]}:{listen[1]}: {error}",
                "choose another --listen, or end the process that uses it",
            ) from error
        bound = port.sockets[0].getsockname()
        _log.info("listening on http://%s:%d", bound[0], bound[1])
        yield (bound[0], bound[1]), listener
    finally:
        if port is not None:
            port.close()
        await listener.close()
        await asyncio.gather(tcp.close(), unix.close())
