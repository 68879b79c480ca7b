"""The clients of one listener, and the limit on their number.

Law: a new client is always accepted; past the limit the oldest connection is closed: idle clients are cheap to open and
would lock out others.
"""

from __future__ import annotations

import asyncio

from cached.daemon.http.connection import Connection
from cached.daemon.http.messages import Handler

MOST_CONNECTIONS = 256  # a listener: a descriptor and some 20 KiB each
FAREWELL_S = 2.0  # for responses in progress at shutdown


class HttpServer:
    """The connections of one listener; calling it makes the protocol of a new one."""

    def __init__(self, handler: Handler, most_clients: int) -> None:
        self.handler = handler
        self._most_clients = most_clients
        self._connections: dict[Connection, None] = {}  # the oldest first
        self._closing = False

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return Connection(self)

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def add(self, connection: Connection) -> None:
        """Count a connection; close the oldest ones past the limit."""
        self._connections[connection] = None
        for oldest in list(self._connections)[: max(0, len(self._connections) - self._most_clients)]:
            self.remove(oldest)
            oldest.abort()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that ended."""
        self._connections.pop(connection, None)

    async def close(self) -> None:
        """Close the idle connections, give responses in progress `FAREWELL_S`, and end the rest."""
        self._closing = True
        tasks = [task for task in [each.leave() for each in list(self._connections)] if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL_S)
        for each in list(self._connections):
            each.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
