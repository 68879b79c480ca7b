"""Requests to an LFS server, joined: files that are located at the same moment share one.

Law: on the event loop, and starts no task: the first of several callers asks for all. Hosts limit requests by the
minute, and a version may have hundreds of files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cached.contract.errors import HoldfastError, Transient
from cached.sources.git.lfs import MAX_OBJECTS, Wanted
from cached.transport.target import HttpTarget

Located = HttpTarget | HoldfastError
_Ask = Callable[[str, Sequence[Wanted]], Awaitable[list[Located]]]


class JoinedRequests:
    """`ask`: returns the address or the error of each object at the LFS server of an endpoint."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask
        self._waiting: dict[str, list[tuple[Wanted, asyncio.Future[Located]]]] = {}  # by endpoint

    async def locate(self, endpoint: str, wanted: Wanted) -> HttpTarget:
        """Return the address of an object. Raises `HoldfastError`."""
        answer: asyncio.Future[Located] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(endpoint)
        if waiting is None or len(waiting) == MAX_OBJECTS:
            waiting = self._waiting[endpoint] = [(wanted, answer)]
            await self._ask_for(endpoint, waiting)
        else:
            waiting.append((wanted, answer))
        found = await answer
        if isinstance(found, HoldfastError):
            raise found
        return found

    async def _ask_for(self, endpoint: str, waiting: list[tuple[Wanted, asyncio.Future[Located]]]) -> None:
        """Ask for all that wait by then; each has an answer in the end."""
        failure: HoldfastError = Transient(
            "interrupted", "the request for this file's address was ended", "it is sent again"
        )
        found: list[Located] = []
        try:
            await asyncio.sleep(0)  # others that are located now come first
            if self._waiting.get(endpoint) is waiting:
                del self._waiting[endpoint]
            found = await self._ask(endpoint, [wanted for wanted, _ in waiting])
        except HoldfastError as error:
            failure = error
        finally:
            if self._waiting.get(endpoint) is waiting:
                del self._waiting[endpoint]
            for number, (_, answer) in enumerate(waiting):
                if not answer.done():  # a caller that was cancelled wants none
                    answer.set_result(found[number] if number < len(found) else failure)
