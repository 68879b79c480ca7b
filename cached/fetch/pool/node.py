"""This node in its pool: its port, the versions that it fetches or seeds, those that it tracks.

Law: one table of versions. A version stays in it after its fetch, as a seed, while another node fetches it. The tracker
of a new version asks all members whether they have it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, InvalidManifest
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.program.thread_pool import start_pool
from cached.fetch.pool.chains import LoneSupply
from cached.fetch.pool.held_version import BUSY, Holders, VersionAtPeers
from cached.fetch.pool.holders import HolderSearch
from cached.fetch.pool.membership import Membership
from cached.fetch.pool.version import PoolLink, VersionPool
from cached.fetch.supply import SupplyMaker
from cached.peers import bits
from cached.peers.bits import all_bits
from cached.peers.bundles import MAX_BUNDLE_BYTES, BadBundle, Bundle, decode_bundle, fill
from cached.peers.members import MAX_MEMBERS
from cached.peers.messages import Announce, BadMessage, Reply
from cached.peers.pieces import PieceMap
from cached.peers.trackers import TooMany, Trackers
from cached.store.blob import blobs, chains
from cached.transport.client import Response
from cached.transport.connection.cancel import Cancellation

_log = logging.getLogger(__name__)

_ASKING = 16  # members asked at once whether they have a version
_MAX_ASKED = 2 * MAX_MEMBERS  # questions that wait: beyond, a new version is dealt without a survey
_MAX_SEEDED = 64
_MAX_CHAINS = 16  # of at most 4 MiB
_MOST_HOLDERS = 3  # asked in vain for small files, before the source is
_MOST_RECEIVED = 64 * 1024 * 1024  # of small files, in memory; what is more comes from the source


class NodeLink(PoolLink, Protocol):
    """The way to the other nodes, with the questions for snapshots."""

    def find_holders(self, digest: Digest) -> tuple[str, ...] | None:
        """Return the members that say they hold a snapshot; None if no tracker answers."""

    def read_bundle(self, peer: str, sha256s: Sequence[str], cancellation: Cancellation) -> bytes:
        """Return the bundle of those of these small blobs that a node has. Raises `HoldfastError` or `Cancelled`."""

    def has_snapshot(self, peer: str, digest: Digest) -> bool:
        """Return whether a node says that it holds a snapshot."""

    def read_manifest(self, peer: str, digest: Digest, cancellation: Cancellation) -> Response:
        """Return a node's answer to the question for a manifest. Raises `HoldfastError`."""


class PoolNode:
    """This node's part in its pool. `count_manifest` is called for each manifest that another node sent."""

    def __init__(
        self,
        layout: Layout,
        find_zone: Callable[[], str],
        membership: Membership,
        link: NodeLink,
        has_key: Callable[[], bool],
        count_manifest: Callable[[], None],
    ) -> None:
        """`find_zone`, `has_key`: this node's zone, and whether it has the pool's key, now. Raises `Transient`
        (`no_thread`)."""
        self._count_manifest = count_manifest
        self._layout = layout
        self._find_zone = find_zone
        self._membership = membership
        self._link = link
        self._has_key = has_key
        self._lock = threading.Lock()
        self._versions: dict[str, VersionPool] = {}
        self._trackers = Trackers(random.Random())  # noqa: S311 - whom to ask, no secret
        self._told_chains: dict[str, bytes] = {}  # of versions that are tracked here, as a seed told
        self._asking: ThreadPoolExecutor = start_pool(_ASKING, "survey")
        self._asked = 0  # members that are asked, or wait for it
        self._holders = HolderSearch(link.has_snapshot, self._asking)
        self._closing = False
        self._asking.submit(self._sweep)

    def _sweep(self) -> None:
        """Delete the chaining values of blobs that went."""
        try:
            chains.sweep(self._layout)
        except OSError as error:
            _log.warning("chaining values: %s", error)

    def join(
        self, blob_sizes: Mapping[str, int], committed: Iterable[str], holders: Holders | None = None
    ) -> VersionPool | None:
        """Begin to fetch a version of these blobs (size by sha256), of which some are committed, and which `holders`
        are known to have; None where there is no key, no other node, or too many pieces. `VersionPool.leave` ends
        it."""
        if not self._has_key() or not self._membership.list_others():
            return None
        try:
            pieces = PieceMap(blob_sizes.items())
            return self._enter(pieces, committed, () if holders is None else holders.list_all())
        except (ValueError, HoldfastError) as error:
            _log.warning("fetching without other nodes: %s", error)
            return None

    def make_lone_supply(self, sha256: str) -> SupplyMaker:
        """Return what makes the supply of a large blob that is fetched without other nodes, for which it is hashed."""
        return lambda _wake: LoneSupply(self._layout, sha256)

    def _enter(self, pieces: PieceMap, committed: Iterable[str], holders: Sequence[str] = ()) -> VersionPool:
        have = 0
        for sha256 in committed:
            have |= pieces.pieces_of(sha256)
        with self._lock:
            known = self._versions.get(pieces.key)
            if known is not None and known.enter():
                return known
            found = VersionPool(pieces, self._find_zone, have, self._link, self._layout, self._forget, holders)
            self._versions[pieces.key] = found
            return found

    def _forget(self, version: VersionPool) -> None:
        with self._lock:
            if self._versions.get(version.pieces.key) is version:
                del self._versions[version.pieces.key]

    # --- versions that are known by their manifest's digest ---------------------------------------------------------

    def find_version(
        self, digest: Digest, count_wrong: Callable[[], None], cancellation: Cancellation
    ) -> VersionAtPeers | None:
        """Return a version that another node has, as the trackers of its manifest say, or where none of them answers,
        the members themselves; None if no node has it. `count_wrong` is called for each node that sends another
        manifest. Raises `Cancelled`."""
        if not self._has_key() or not self._membership.list_others():
            return None
        holders = self._link.find_holders(digest)
        if holders is None:
            return self.search_version(digest, count_wrong, cancellation)
        return self._read_version(digest, holders, count_wrong, cancellation)

    def search_version(
        self, digest: Digest, count_wrong: Callable[[], None], cancellation: Cancellation
    ) -> VersionAtPeers | None:
        """Return the same as `find_version` after asking all members, whatever the trackers said."""
        if not self._has_key():
            return None
        try:
            holders = self._holders.find(digest, self._membership.list_others())
        except TooMany as error:
            _log.warning("asking the pool for manifest %s: %s", digest.hex[:12], error)
            return None
        return self._read_version(digest, holders, count_wrong, cancellation)

    def _read_version(
        self, digest: Digest, peers: tuple[str, ...], count_wrong: Callable[[], None], cancellation: Cancellation
    ) -> VersionAtPeers | None:
        holders = Holders(self._link, peers)
        for peer in peers:
            try:
                data = self._link.read_manifest(peer, digest, cancellation).body
                if Digest.of(data) != digest:
                    raise InvalidManifest(f"expected {digest}, found {Digest.of(data)}", "it is asked of another node")
                version = VersionAtPeers(Manifest.parse(data), peer, holders)
                self._count_manifest()
                return version
            except HoldfastError as error:
                if isinstance(error, InvalidManifest) or error.code == "too_large":
                    count_wrong()
                    _log.warning("%s sends another manifest than %s: %s", peer, digest.hex[:12], error.message)
                holders.leave(peer)
        return None

    def ask_holders(self, digest: Digest) -> Holders | None:
        """Return the nodes that hold a snapshot, as the trackers of its manifest say; None if there are none."""
        if not self._has_key() or not self._membership.list_others():
            return None
        found = self._link.find_holders(digest)
        return Holders(self._link, found) if found else None

    def receive_small(
        self, holders: Holders, sizes: Mapping[str, int], count_wrong: Callable[[], None], cancellation: Cancellation
    ) -> dict[str, bytes]:
        """Return small blobs (`sizes` in bytes by sha256) that other nodes sent, each with the right sha256, at most
        `_MOST_RECEIVED` bytes of them. `count_wrong` is called for each node that sends others. Raises `Cancelled`."""
        found: dict[str, bytes] = {}
        tried: set[str] = set()
        while len(tried) < _MOST_HOLDERS and sum(map(len, found.values())) + MAX_BUNDLE_BYTES <= _MOST_RECEIVED:
            missing = [(sha256, size) for sha256, size in sizes.items() if sha256 not in found]
            peer = holders.pick(tried) if missing else None
            if peer is None:
                break
            wanted = [sha256 for sha256, _ in fill(missing)]
            try:
                bundle = decode_bundle(self._link.read_bundle(peer, wanted, cancellation), frozenset(wanted))
            except HoldfastError as error:
                _log.info("%d small files from %s: %s", len(wanted), peer, error)
                bundle = Bundle({}, 0)
                if error.code not in BUSY:
                    holders.leave(peer)
            except BadBundle as error:
                _log.warning("%s sends no bundle of small files: %s", peer, error)
                bundle = Bundle({}, 1)
            found |= bundle.blobs
            if bundle.wrong:
                count_wrong()
                holders.leave(peer)
            if not bundle.blobs:
                tried.add(peer)
        return found

    def find_holders(self, digest: Digest) -> tuple[str, ...]:
        """Return members that have the snapshot of a manifest. Raises `TooMany`."""
        if self._closing:
            raise TooMany("this node is leaving")
        return self._holders.find(digest, self._membership.list_all())

    def close(self) -> None:
        """Leave the pool."""
        self._closing = True
        self._asking.shutdown(cancel_futures=True)
        with self._lock:
            versions = list(self._versions.values())
        for each in versions:
            each.close()

    # --- asked by other nodes --------------------------------------------------------------------------------------

    def announce(self, address: str, message: Announce, now: float) -> Reply:
        """Let the tracker of a version answer. The first announce of a version asks all members for seeds, and
        so does one that finds that no node holds what was held, or that the origin fails."""
        with self._lock:
            before = self._trackers.find_survey(message.version)
            reply = self._trackers.announce(address, message, now)
            is_new = self._trackers.find_survey(message.version) != before
        if is_new and message.blobs and not self._closing:
            self._survey(message)
        return reply

    def _survey(self, message: Announce) -> None:
        """Ask all members what they have of a version, but for those that said by then that they fetch it; deal it
        once they all answered, or did not. Where so many questions wait that the answers would come too late, no node
        is asked: a flood of versions costs no memory."""
        members = self._membership.list_all()
        left = len(members)
        with self._lock:
            if self._asked + left > _MAX_ASKED:
                return
            self._asked += left

        def ask(member: str) -> None:
            nonlocal left
            found = None
            try:
                if not self._trackers.is_fetching(message.version, member):
                    found = self._link.ask_for_seed(member, message)
            except Exception:  # noqa: BLE001 - the others are asked, and then the origin
                _log.exception("asking %s for version %s", member, message.version[:12])
            with self._lock:
                if found is not None:
                    with contextlib.suppress(TooMany, BadMessage):
                        self._trackers.announce(member, found, time.monotonic())
                left -= 1
                self._asked -= 1
                if not left:
                    self._trackers.end_survey(message.version)
            try:
                self._ask_for_chain(member, found)
            except Exception:  # noqa: BLE001 - other nodes hash pieces twice
                _log.exception("asking %s for the chain of version %s", member, message.version[:12])

        for member in members:
            self._asking.submit(ask, member)

    def _ask_for_chain(self, member: str, found: Announce | None) -> None:
        """Ask a seed for the chaining values of a version that is tracked here, for those that do not know it."""
        if found is None or found.have != all_bits(found.pieces) or found.version in self._told_chains:
            return
        chain = self._link.read_chain(member, found.version)
        with self._lock:
            tracked = {each for each in self._told_chains if self._trackers.find_survey(each) is not None}
            self._told_chains = {each: self._told_chains[each] for each in tracked}
            if chain is not None and len(self._told_chains) < _MAX_CHAINS:
                self._told_chains[found.version] = chain

    def seed(self, message: Announce) -> Announce | None:
        """Return what this node has of a version that it fetches, or has: then it announces it from now on."""
        try:
            pieces = PieceMap(message.blobs)
        except ValueError as error:
            raise BadMessage(f"blobs: {error}") from error
        if pieces.key != message.version:
            raise BadMessage("blobs: expected those of the version")
        with self._lock:
            known = self._versions.get(message.version)
            if known is not None:
                return known.describe()
            if len(self._versions) >= _MAX_SEEDED:
                return None
        if any(blobs.size(self._layout, sha256) != size for sha256, size in pieces.blobs):
            return None
        version = self._enter(pieces, [sha256 for sha256, _ in pieces.blobs])
        version.leave()
        return version.describe()

    def find_checked(self, blob: str, start: int, end: int) -> int | None:
        """Return the size of a blob of which this node has these bytes, checked; None if it has not."""
        for version in list(self._versions.values()):
            size = version.find_checked(blob, start, end)
            if size is not None:
                return size
        return None

    def list_have(self, version: str) -> bytes | None:
        """Return the bitmap of the pieces of a version that this node fetches or seeds."""
        found = self._versions.get(version)
        return None if found is None else bits.encode(found.list_have(), found.pieces.count)

    def read_chain(self, version: str) -> bytes | None:
        """Return the chaining values of a version that this node fetches, seeds or tracks; None unless all are
        known."""
        found = self._versions.get(version)
        known = None if found is None else found.read_chain()
        return self._told_chains.get(version) if known is None else known

    def want_digests(self, version: str) -> bool:
        """Tell the sha256 of a version's pieces from now on; return False for one that this node has not."""
        found = self._versions.get(version)
        if found is not None:
            found.want_digests()
        return found is not None
