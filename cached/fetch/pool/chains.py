"""The chaining values of one version: those that this node found out by hashing, those that another node told, and
those that `holdfast publish` left at the source.

Law: asks no node, and keeps on the disk what was found out. The others are believed until a piece contradicts them:
what proves them is a blob that ends in its sha256, and then only for that blob. Published ones are told on, so that
they may come back from another node: those that were contradicted are not taken again. Not thread-safe: the version's
lock guards them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.fetch.supply import OriginSupply
from cached.peers import chaining
from cached.peers.chaining import STATE_BYTES, ChainStep, step_at
from cached.peers.pieces import PieceMap
from cached.store.blob import chains

_log = logging.getLogger(__name__)


class VersionChains:
    """The states between the pieces of each blob of a version."""

    def __init__(self, pieces: PieceMap) -> None:
        self._pieces = pieces
        # The chain of a blob of one piece is known: from the first state to the sha256.
        self._own = {sha256: b"" for sha256, _ in pieces.blobs if not states_bytes(pieces, sha256)}
        self._told: dict[str, bytes] = {}
        self._published: dict[str, bytes] = {}
        self._refuted: dict[str, bytes] = {}  # published ones that a piece contradicted
        self.giver: str | None = None  # the node that told

    @property
    def is_known(self) -> bool:
        """Whether each blob's states are known."""
        return all(self._find(sha256) is not None for sha256, _ in self._pieces.blobs)

    @property
    def is_refuted(self) -> bool:
        """Whether a piece contradicted what was published: other nodes may believe it still."""
        return bool(self._refuted)

    @property
    def known_pieces(self) -> int:
        """The set of the pieces whose states are known."""
        found = 0
        for sha256 in self._own.keys() | self._told.keys() | self._published.keys():
            found |= self._pieces.pieces_of(sha256)
        return found

    def keep(self, sha256: str, states: bytes) -> None:
        """Take the states of a blob that this node has hashed, and committed."""
        if len(states) == states_bytes(self._pieces, sha256):
            self._own[sha256] = states

    def take(self, giver: str, data: bytes) -> bool:
        """Take what another node says of all blobs; return whether it has the right length, and is not refuted."""
        told, at = {}, 0
        for sha256, _ in self._pieces.blobs:
            length = states_bytes(self._pieces, sha256)
            told[sha256] = data[at : at + length]
            at += length
        if len(data) != at or any(self._refuted.get(sha256) == states for sha256, states in told.items()):
            return False
        self._told, self.giver = told, giver
        return True

    def take_published(self, published: Mapping[str, bytes]) -> None:
        """Take what `publish` says of some blobs, by sha256, beside what it said of others: what has the right length,
        of blobs of this version."""
        sizes = {sha256: states_bytes(self._pieces, sha256) for sha256, _ in self._pieces.blobs}
        self._published |= {
            sha256: states
            for sha256, states in published.items()
            if states and len(states) == sizes.get(sha256) and self._refuted.get(sha256) != states
        }

    def drop(self) -> bool:
        """Forget what was told and published: a piece contradicts it; return whether there were published ones."""
        refuted = bool(self._published)
        self._refuted |= self._published
        self._told, self._published, self.giver = {}, {}, None
        return refuted

    def encode(self) -> bytes | None:
        """Return the states of all blobs, in the order of the pieces; None unless all are known."""
        if not self.is_known:
            return None
        return b"".join(self._find(sha256) or b"" for sha256, _ in self._pieces.blobs)

    def is_certain(self, sha256: str) -> bool:
        """Return whether a piece of this blob that contradicts its step is wrong: else the step may be."""
        return sha256 in self._own

    def find_step(self, sha256: str, start: int) -> ChainStep | None:
        """Return the step of the piece at `start` of a blob; None if it is not known."""
        states = self._find(sha256)
        return None if states is None else step_at(sha256, start, states)

    def _find(self, sha256: str) -> bytes | None:
        for known in (self._own, self._told, self._published):
            if (states := known.get(sha256)) is not None:
                return states
        return None


def states_bytes(pieces: PieceMap, sha256: str) -> int:
    """Return the length of the states of a blob: one between each two of its pieces."""
    return (pieces.pieces_of(sha256).bit_count() - 1) * STATE_BYTES


def write_chain(layout: Layout, sha256: str, states: bytes) -> None:
    """Keep the states of a committed blob for other nodes; one of a single piece has none."""
    if not states:
        return
    try:
        chains.write(layout, sha256, states)
    except HoldfastError as error:  # other nodes hash its pieces twice, and nothing is lost
        _log.warning("chaining values: %s", error)


class LoneSupply(OriginSupply):
    """The origin alone, for a blob whose states other nodes will want."""

    def __init__(self, layout: Layout, sha256: str) -> None:
        self.keeps_chain = chaining.is_available()
        self._layout = layout
        self._sha256 = sha256

    def note_chain(self, states: bytes) -> None:
        """Keep them."""
        write_chain(self._layout, self._sha256, states)
