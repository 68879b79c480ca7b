"""Where the next segment of a blob comes from: its origin, or another node that has a piece of it.

Law: decides, and receives nothing. A peer is asked for a whole piece only, whose sha256, or whose step in the blob's
chain, is known before: what it sends is provisional until that matches. An error of a peer is no error of the source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cached.contract.errors import DigestMismatch, HoldfastError
from cached.fetch.blob import SEGMENT_BYTES, Segment
from cached.peers import chaining
from cached.peers.chaining import ChainHasher, ChainStep
from cached.transport.checksums import Hasher
from cached.transport.target import HttpTarget

_REMEDY = "the piece is fetched elsewhere"


@dataclass(frozen=True, slots=True)
class PeerPiece:
    """A whole piece that a peer has: its address there, its sha256 as 64 hex digits, and the peer's own address. Where
    `step` is known, the piece is checked as this step of the blob's chain, and its sha256 may be unknown. `extent`: the
    piece, where the segment is what is left of it: all of it is received and checked, and only the segment written."""

    target: HttpTarget
    sha256: str | None
    peer: str
    step: ChainStep | None = None
    extent: Segment | None = None

    def make_hasher(self) -> Hasher:
        """Return the hasher of its bytes."""
        return hashlib.sha256() if self.step is None else chaining.begin(self.step)

    def check(self, hasher: Hasher, where: str) -> None:
        """Raise `DigestMismatch` unless the hasher has absorbed the right bytes; `where` is for the message."""
        if isinstance(hasher, ChainHasher) and self.step is not None:
            if not hasher.ends_as(self.step):
                expected = self.step.sha256 if self.step.after is None else self.step.after.hex()
                found = hasher.hexdigest() if self.step.after is None else hasher.state.hex()
                raise DigestMismatch(f"{where}: chaining value of sha256", expected, found, _REMEDY)
        elif hasher.hexdigest() != self.sha256:
            raise DigestMismatch(where, str(self.sha256), hasher.hexdigest(), _REMEDY)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A segment to receive from a peer, or from the origin (None). `is_told`: it is a whole piece of the origin, of
    which the supply tells other nodes, with its sha256 where it `needs_sha256`."""

    segment: Segment
    piece: PeerPiece | None
    is_told: bool = False
    needs_sha256: bool = True


@dataclass(frozen=True, slots=True)
class Receipt:
    """A whole piece that was received and written: its sha256 as 64 hex digits, None where it was not hashed for
    itself, the seconds that it took, and what its peer said of its load and of the pieces that it has (empty:
    nothing)."""

    sha256: str | None
    seconds: float
    load: str
    pieces: str = ""


class Supply(Protocol):
    """The places that have one blob. Thread-safe; called with the attempt's lock held: returns at once. `keeps_chain`:
    `note_chain` is called with the chaining values of the blob, once it is committed. `joins`: one request may ask for
    the segments after the chosen one as well."""

    keeps_chain: bool
    joins: bool

    def choose(self, segments: Sequence[Segment]) -> Assignment | None:
        """Return one of these segments and its place, None if nothing is to be asked now. After None `has_work` is
        false until the caller of `Workers.changed` said that there is more."""

    def has_work(self, segments: Sequence[Segment]) -> bool:
        """Return whether `choose` would return an assignment."""

    def is_waited_for(self) -> bool:
        """Return whether other nodes wait for a segment that this one is to fetch for all: it comes first."""

    def received(self, assignment: Assignment, receipt: Receipt) -> None:
        """Note that a peer's piece was received and checked, or one of the origin that is told."""

    def failed(self, assignment: Assignment, error: HoldfastError | None) -> None:
        """Note that such a piece was not received whole, or did not check (`digest_mismatch`); None: it was
        interrupted."""

    def lose(self) -> None:
        """Note that an attempt ended without the blob: what was received counts no more."""

    def distrust(self) -> None:
        """Note that the blob was wrong as a whole though its pieces checked: only the origin counts from now on."""

    def pause_origin(self, until: float) -> bool:
        """Ask the origin, which failed, for nothing before `until` (monotonic seconds); return whether other places may
        be asked at that time: else the download waits."""

    def note_chain(self, states: bytes) -> None:
        """Take the states of sha256 between the blob's pieces. May block: no lock is held."""


SupplyMaker = Callable[[Callable[[], None]], Supply]  # of a call that wakes the download, which had nothing to ask for


class OriginSupply:
    """The origin alone, in order: each download's supply, unless there are peers; nothing is told to other nodes."""

    keeps_chain = False
    joins = True

    def note_chain(self, states: bytes) -> None:
        """Do nothing: there are no peers."""

    def pause_origin(self, until: float) -> bool:  # noqa: ARG002
        """Return False: there is no other place."""
        return False

    def choose(self, segments: Sequence[Segment]) -> Assignment | None:
        """Return the first segment, from the origin."""
        return Assignment(segments[0], None) if segments else None

    def has_work(self, segments: Sequence[Segment]) -> bool:
        """Return whether a segment is left."""
        return bool(segments)

    def is_waited_for(self) -> bool:
        """Return False: there are no peers."""
        return False

    def received(self, assignment: Assignment, receipt: Receipt) -> None:
        """Do nothing: there are no peers."""

    def failed(self, assignment: Assignment, error: HoldfastError | None) -> None:
        """Do nothing: there are no peers."""

    def lose(self) -> None:
        """Do nothing: there are no peers."""

    def distrust(self) -> None:
        """Do nothing: there are no peers."""


def piece_around(segment: Segment, size: int) -> Segment:
    """Return the piece of a blob of `size` bytes that a segment is part of."""
    start = segment.start // SEGMENT_BYTES * SEGMENT_BYTES
    return Segment(start, min(start + SEGMENT_BYTES, size))


def is_whole_piece(segment: Segment, size: int) -> bool:
    """Return whether a segment of a blob of `size` bytes is a whole piece: only such a one has a known sha256."""
    return segment.start % SEGMENT_BYTES == 0 and segment.end == min(segment.start + SEGMENT_BYTES, size)
