"""A version that other nodes hold whole, known by its manifest's digest: its manifest, and its small files.

Law: a manifest counts if its bytes hash to the digest, a file if its own sha256 is right. A holder that is gone, or
sends anything else, is left; without holders the origin has the files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cached.contract.errors import HoldfastError
from cached.contract.manifest import Manifest
from cached.fetch.blob import BlobSpec, Segment
from cached.fetch.small_attempt import is_small
from cached.fetch.supply import Assignment, OriginSupply, PeerPiece, SupplyMaker
from cached.peers.pieces import Piece
from cached.transport.target import HttpTarget

BUSY = frozenset({"http_503", "http_429"})


class BlobAddresses(Protocol):
    """The addresses of blobs at other nodes."""

    def target_of(self, peer: str, piece: Piece, version: str | None) -> HttpTarget:
        """Return the signed address of a range of a blob at a peer, which says with it what it has of `version`."""


class Holders:
    """The nodes that hold one version. Thread-safe."""

    def __init__(self, addresses: BlobAddresses, peers: Iterable[str]) -> None:
        self._addresses = addresses
        self._lock = threading.Lock()
        self._peers = dict.fromkeys(peers, 0)  # how often each was chosen

    def make_supply_of(self, spec: BlobSpec) -> SupplyMaker | None:
        """Return what makes the supply of a small blob; None for a large one."""
        if spec.sha256 is None or not spec.key.size or not is_small(spec):
            return None
        return partial(self._make_supply, spec.sha256, spec.key.size)

    def _make_supply(self, sha256: str, size: int, _wake: Callable[[], None]) -> _SmallSupply:
        return _SmallSupply(self, sha256, size)

    def pick(self, besides: Iterable[str]) -> str | None:
        """Return the node that was chosen least; None if none is left `besides` these."""
        with self._lock:
            able = self._peers.keys() - set(besides)
            if not able:
                return None
            peer = min(able, key=lambda each: self._peers[each])
            self._peers[peer] += 1
            return peer

    def choose(self, sha256: str, size: int, besides: Iterable[str]) -> PeerPiece | None:
        """Return the whole blob at the node that was chosen least; None if none is left `besides` these."""
        peer = self.pick(besides)
        return (
            None
            if peer is None
            else PeerPiece(self._addresses.target_of(peer, Piece(sha256, 0, size), None), sha256, peer)
        )

    def list_all(self) -> tuple[str, ...]:
        """Return the nodes that are left."""
        with self._lock:
            return tuple(self._peers)

    def leave(self, peer: str) -> None:
        """Ask a node for nothing more."""
        with self._lock:
            self._peers.pop(peer, None)


@dataclass(frozen=True, slots=True)
class VersionAtPeers:
    """The manifest of a version, the node that sent it, and the nodes that hold the version."""

    manifest: Manifest
    given_by: str
    holders: Holders


class _SmallSupply(OriginSupply):
    """The supply of one small blob: each holder once, then the origin, and so on."""

    def __init__(self, holders: Holders, sha256: str, size: int) -> None:
        self._holders = holders
        self._sha256 = sha256
        self._size = size
        self._tried: list[str] = []

    def choose(self, segments: Sequence[Segment]) -> Assignment:
        """Return the whole blob at a holder that was not tried, or what is left of it at the origin."""
        piece = self._holders.choose(self._sha256, self._size, self._tried)
        if piece is None:
            self._tried = []  # should the origin fail, they are asked again
            return Assignment(segments[0], None)
        self._tried.append(piece.peer)
        return Assignment(Segment(0, self._size), piece)

    def failed(self, assignment: Assignment, error: HoldfastError | None) -> None:
        """Leave the holder, unless it was only busy or this node interrupted it."""
        if assignment.piece is not None and error is not None and error.code not in BUSY:
            self._holders.leave(assignment.piece.peer)
