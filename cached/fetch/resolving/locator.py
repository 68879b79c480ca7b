"""Request file addresses from a source for the worker threads: sources live on the event loop.

Law: a round trip to the event loop costs more than a small file. So none is made for an address that follows from the
listing, and any other also fetches the addresses of the next small files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace

from cached.contract.errors import Transient
from cached.core.listing import RemoteFile
from cached.sources.base import Addressed, Source, expecting
from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.target import HttpTarget, Target

_TIMEOUT_S = 120.0
_AHEAD = 32  # addresses requested at once: used within about a second, long before one expires


class Locator:
    """The addresses of one version's files. Create it on the event loop; call `locate` from other threads."""

    def __init__(self, source: Source, ahead: Sequence[RemoteFile]) -> None:
        """`ahead`: the files whose addresses are requested together, in the order of their use."""
        self._source = source
        self._address_of = source.address_of if isinstance(source, Addressed) else None
        self._loop = asyncio.get_running_loop()
        self._ahead = ahead
        self._places = {file.path: number for number, file in enumerate(ahead)}
        # Addresses and their request times. Each operation on it is atomic, and each entry is taken once.
        self._found: dict[str, tuple[Target, float]] = {}
        self._next = 0

    def locate(self, file: RemoteFile, cancellation: Cancellation) -> Target:
        """Return the address of `file`; raises as `Source.locate`, `Transient` (`locate_timeout`), or `Cancelled`."""
        if self._address_of is not None:
            return expecting(self._address_of(file), file)
        found = self._take(file)
        if found is not None:
            return expecting(found, file)
        asked = asyncio.run_coroutine_threadsafe(self._locate(file), self._loop)
        try:
            with cancellation.on_cancel(asked.cancel):
                return expecting(asked.result(_TIMEOUT_S), file)
        except CancelledError as error:
            raise Cancelled from error
        except TimeoutError as error:
            asked.cancel()
            raise Transient(
                "locate_timeout",
                f"{self._source.display}: no address for {file.path} within {_TIMEOUT_S:.0f} s",
                "check the source and the way there",
            ) from error

    def _take(self, file: RemoteFile) -> Target | None:
        """Return an address that came with another file's, with its age and its remaining lifetime, if that is more
        than half."""
        target, began = self._found.pop(file.path, (None, 0.0))
        if not isinstance(target, HttpTarget):
            return target
        issued_at = began if target.issued_at is None else target.issued_at
        if target.lifetime_s is None:
            return replace(target, issued_at=issued_at)
        left_s = target.lifetime_s - (time.monotonic() - began)
        if left_s <= target.lifetime_s / 2:
            return None
        return replace(target, lifetime_s=left_s, issued_at=issued_at)

    async def _locate(self, file: RemoteFile) -> Target:
        found = self._take(file)
        if found is not None:  # it came with another file's
            return found
        place = self._places.get(file.path)
        if place is None or place < self._next:
            return await self._source.locate(file)
        others = self._ahead[place + 1 : place + _AHEAD]
        self._next = place + len(others) + 1
        began = time.monotonic()
        answers = await asyncio.gather(*map(self._source.locate, (file, *others)), return_exceptions=True)
        for other, answer in zip(others, answers[1:], strict=True):
            if not isinstance(answer, BaseException):  # a failed one is requested again, and then raises
                self._found[other.path] = answer, began
        if isinstance(answers[0], BaseException):
            raise answers[0]
        return answers[0]
