"""Open and list the source of a version, in bounded time.

Law: sources open in threads of their own, and list on the event loop; each listing counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from cached.contract.errors import Transient
from cached.core.listing import Listing
from cached.sources.base import Revalidating, Source
from cached.sources.registry import find_kind

# Opens the source of a URI, on a thread of its own: it may import, and a plugin may block for ever, which must not take
# a thread of the store along. Raises `HoldfastError`.
OpenSource = Callable[[str], Awaitable[Source]]


class ListingMetrics(Protocol):
    """The metrics of listings. `kind` is the source's metric label."""

    def resolved(self, kind: str) -> None:
        """A source of this kind has listed a version, or confirmed its last listing."""

    def fetch_failed(self, kind: str, code: str) -> None:
        """A source of this kind, or what it listed, was of no use."""


class SourceLister:
    """Lists the sources of versions. `open_source` opens one by its URI; `timeout_s`: how long one may take to
    open, and to list."""

    def __init__(self, open_source: OpenSource, metrics: ListingMetrics, timeout_s: float) -> None:
        self._open_source = open_source
        self._timeout_s = timeout_s
        self.metrics = metrics

    async def open(self, uri: str) -> Source:
        """Return the source of `uri`, which the caller closes. Raises `HoldfastError`, also `Transient`
        (`stalled`)."""
        async with self._limited(find_kind(uri)):
            return await self._open_source(uri)

    async def list(self, source: Source) -> Listing:
        """Return the listing of a source. Raises as `Source.resolve`, and `Transient` (`stalled`)."""
        async with self._limited(source.display):
            listing = await source.resolve()
        self.metrics.resolved(source.kind)
        return listing

    async def is_current(self, source: Source, tag: str | None) -> bool:
        """Return whether the source confirms that the listing with this tag is its present one; False where only
        another listing can tell."""
        if tag is None or not isinstance(source, Revalidating):
            return False
        async with self._limited(source.display):
            is_current = await source.is_current(tag)
        if is_current:
            self.metrics.resolved(source.kind)
        return is_current

    @asynccontextmanager
    async def _limited(self, display: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise Transient(
                "stalled",
                f"{display}: not listed within {self._timeout_s:g} s",
                "it is tried again; if it goes on, look at the source's server, or raise --stall-timeout",
            ) from error
