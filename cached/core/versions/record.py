"""The record of one version: frozen, with one state.

Law: data only. A version is inactive, failed, refused, or being fetched. A fetch is queued, runs, and ends; after a
transient error it is paused, or blocked on disk space, and then queued again. A cancelled fetch is stopping until its
try has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.core.demand import PodWant, PullWant, Urgency, Want


class PinMismatch(DigestMismatch):
    """The source has other content than the pin."""


@dataclass(frozen=True, slots=True)
class Pull:
    """One `holdfast pull`. `digest`: the published content, or `error`: the reason for none. `refresh`: list the source
    again, although the node has the version."""

    id: str
    want: PullWant
    refresh: bool
    digest: Digest | None = None
    error: HoldfastError | None = None


@dataclass(frozen=True, slots=True)
class WrongPin:
    """The refusal of a pin that the catalog does not promise; it concerns the pods and pulls with that pin. `lapsed`:
    it is tried again; `failures` so far give the time until the try after that."""

    pin: Digest
    error: Permanent
    failures: int
    retry_at: float
    lapsed: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """The content of a version on this node, and the request it was fetched for (None: unknown)."""

    digest: Digest
    request: str | None


# --- states --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """A fetch that has not ended. `order`: its number among all fetches. `lacks_space`: a try had too little space, no
    later one reserved it. `skipped`: no space can be freed for it now, other fetches go first."""

    want: Want
    order: int
    failures: int = 0
    bad_responses: int = 0
    lacks_space: bool = False
    skipped: bool = False

    @property
    def urgency(self) -> Urgency:
        """Its rank among the fetches."""
        return Urgency(self.want.priority, self.order)


@dataclass(frozen=True, slots=True)
class Inactive:
    """Not fetched: on the node, not wanted, or about to be fetched."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The fetch of `want` failed permanently; a new one may start at `retry_at`."""

    want: Want
    retry_at: float


@dataclass(frozen=True, slots=True)
class RefusedWants:
    """The wants were refused with `error`."""

    error: Permanent


@dataclass(frozen=True, slots=True)
class Queued:
    """The fetch waits for its turn."""

    fetch: Fetch


@dataclass(frozen=True, slots=True)
class Running:
    """A try is running. `is_small`: what it has to fetch is known, and small."""

    fetch: Fetch
    is_small: bool = False


@dataclass(frozen=True, slots=True)
class Paused:
    """The last try had a transient error; the next one starts at `until`."""

    fetch: Fetch
    until: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """The last try had too little space (`error`); the next one starts when there is enough, or at `until`."""

    fetch: Fetch
    until: float
    error: Transient


@dataclass(frozen=True, slots=True)
class Stopping:
    """The fetch was cancelled, and its try has not ended. `preempted`: for a more urgent fetch, to start over later.
    `refused`: the refusal of the version since then."""

    fetch: Fetch
    preempted: bool = False
    refused: Permanent | None = None


INACTIVE = Inactive()  # of every version without a record
Fetching = Queued | Running | Paused | Blocked | Stopping
VersionState = Inactive | Failed | RefusedWants | Fetching


@dataclass(frozen=True, slots=True)
class Version:
    """The record of one version.

    `pods`: those of this node that want it, `waiting_since` when the first of them began to wait. `pulls`: the open
    ones. `failures`: permanent failures in a row. `refresh_due`: resolve it again, although the node has it. `counted`:
    its want is in the metrics. `pulled_pin`: the pin of the last pull that was met. `needs_bytes`: the least disk space
    in all, found by tries that had too little.
    """

    ref: ModelRef
    state: VersionState = INACTIVE
    pods: tuple[PodWant, ...] = ()
    waiting_since: float | None = None
    pulls: tuple[Pull, ...] = ()
    wrong_pins: tuple[WrongPin, ...] = ()
    failures: int = 0
    refresh_due: bool = False
    counted: bool = False
    pulled_pin: Digest | None = None
    needs_bytes: int = 0

    @property
    def fetch(self) -> Fetch | None:
        """The fetch that has not ended, if any."""
        return self.state.fetch if isinstance(self.state, Fetching) else None

    @property
    def failure(self) -> Want | Permanent | None:
        """The want that failed permanently, or the reported refusal, if any."""
        match self.state:
            case Failed(want):
                return want
            case RefusedWants(error):
                return error
            case Stopping(refused=refused):
                return refused
            case _:
                return None

    @property
    def refused_pins(self) -> dict[Digest, Permanent]:
        """The errors of the pins that cannot be met."""
        return {wrong.pin: wrong.error for wrong in self.wrong_pins if not wrong.lapsed}

    @property
    def due(self) -> float:
        """The next time at which time alone changes the record; `inf`: never."""
        at = [wrong.retry_at for wrong in self.wrong_pins if not wrong.lapsed]
        match self.state:
            case Failed(retry_at=until) | Paused(until=until) | Blocked(until=until):
                at.append(until)
        return min(at, default=inf)

    def is_met(self, want: Want | None, held: Held | None) -> bool:
        """Return whether `held` meets `want` without a pending refresh."""
        return not self.refresh_due and meets(held, want)


def meets(held: Held | None, want: Want | None) -> bool:
    """Return whether the content on the node meets the want."""
    return held is not None and want is not None and want.is_met_by(held.digest, held.request)
