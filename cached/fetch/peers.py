"""The other nodes of the pool, as version fetches ask them: for a version, its small files, the pieces of its blobs.

Law: asks on threads and in bounded time. What no node has, or says in time, comes from the source; so does everything
without a pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from cached.core.demand import Want
from cached.core.listing import RemoteFile
from cached.fetch.blob import BlobSpec, Verified
from cached.fetch.pool.held_version import Holders, VersionAtPeers
from cached.fetch.pool.node import PoolNode
from cached.fetch.pool.published_chains import PublishedChains
from cached.fetch.pool.version import VersionPool
from cached.fetch.resolving.wanted_files import WantedFile
from cached.fetch.small_attempt import is_small
from cached.fetch.supply import SupplyMaker
from cached.peers import chaining
from cached.peers.pieces import PIECE_BYTES
from cached.sources.base import Source
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread

_log = logging.getLogger(__name__)

_ASKING_S = 20.0  # to read a manifest from other nodes: the largest has 16 MiB


class Peers:
    """The other nodes, through this node's part in their pool; None without one. `count_wrong`: of what they send."""

    def __init__(self, pool: PoolNode | None, published: PublishedChains, count_wrong: Callable[[], None]) -> None:
        self._pool = pool
        self._published = published
        self._count_wrong = count_wrong

    @property
    def is_pooled(self) -> bool:
        """Whether there is a pool."""
        return self._pool is not None

    async def find_version(self, want: Want) -> VersionAtPeers | None:
        """Return the version that the pin names, from nodes that are known to have it; None if there is none."""
        return await self._ask(want, PoolNode.find_version)

    async def search_version(self, want: Want) -> VersionAtPeers | None:
        """Do the same, and ask all members: the source fails."""
        return await self._ask(want, PoolNode.search_version)

    async def _ask(
        self,
        want: Want,
        question: Callable[[PoolNode, Digest, Callable[[], None], Cancellation], VersionAtPeers | None],
    ) -> VersionAtPeers | None:
        pool, pin = self._pool, want.pin
        if pool is None or pin is None:
            return None
        try:
            async with asyncio.timeout(_ASKING_S):
                return await call_in_thread(lambda cancellation: question(pool, pin, self._count_wrong, cancellation))
        except TimeoutError:
            _log.warning("%s: no manifest from other nodes within %.0f s", want.ref, _ASKING_S)
            return None

    def join(
        self, wanted: Sequence[WantedFile], known: Mapping[str, Verified], holders: Holders | None
    ) -> VersionPool | None:
        """Fetch the large blobs of known sha256 with the other nodes, if there are any."""
        sizes = {
            each.spec.sha256: each.spec.key.size
            for each in wanted
            if each.spec.sha256 is not None and each.spec.key.size is not None and not is_small(each.spec)
        }
        if self._pool is None or not sizes:
            return None
        return self._pool.join(sizes, sizes.keys() & {verified.sha256 for verified in known.values()}, holders)

    async def take_published(
        self, ref: ModelRef, source: Source, chains: RemoteFile, pool: VersionPool, missing: Sequence[WantedFile]
    ) -> None:
        """Have the pieces of missing blobs checked by the chaining values at the source."""
        is_cut = any((each.spec.key.size or 0) > PIECE_BYTES for each in missing)
        if is_cut and chaining.is_available():
            pool.take_published(await self._published.read(ref, source, chains))

    def make_supply(self, spec: BlobSpec, pool: VersionPool | None, holders: Holders | None) -> SupplyMaker | None:
        """Return what makes the supply of a blob; None for its origin alone."""
        supply = None if pool is None else pool.make_supply_of(spec.sha256)
        if supply is None and holders is not None:
            supply = holders.make_supply_of(spec)
        if supply is None and self._pool is not None and spec.sha256 is not None and not is_small(spec):
            supply = self._pool.make_lone_supply(spec.sha256)
        return supply

    def choose_bundled(self, missing: Sequence[WantedFile]) -> list[WantedFile]:
        """Return the small files that other nodes are asked for together: a request for each would cost more than its
        bytes."""
        if self._pool is None:
            return []
        found = [each for each in missing if each.spec.sha256 and each.spec.key.size and is_small(each.spec)]
        return found if len(found) > 1 else []

    async def receive_small(
        self, ref: ModelRef, wanted: Sequence[WantedFile], holders: Holders | None, digest: Digest | None
    ) -> Mapping[str, bytes]:
        """Return those of these small files that nodes with the version sent, by sha256: `holders`, else those that
        have the manifest of this digest."""
        pool = self._pool
        sizes = {each.spec.sha256: each.spec.key.size for each in wanted if each.spec.sha256 and each.spec.key.size}

        def receive(cancellation: Cancellation) -> Mapping[str, bytes]:
            assert pool is not None
            asked = holders or (None if digest is None else pool.ask_holders(digest))
            return {} if asked is None else pool.receive_small(asked, sizes, self._count_wrong, cancellation)

        try:
            async with asyncio.timeout(_ASKING_S):
                return await call_in_thread(receive)
        except (TimeoutError, HoldfastError) as error:
            _log.warning("%s: small files come from the source: %s", ref, error or "other nodes are slow")
            return {}
