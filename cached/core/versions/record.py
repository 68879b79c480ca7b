"""What is remembered of one version: a frozen record, with one state.

A version is idle, failed for good, refused, or being fetched. A fetch is queued, runs, and ends; after a transient
error it is paused, or blocked on disk space, and then queued again. A fetch that is called off is stopping until
`Stopped`, or the end of its try, says that nothing of it runs any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.core.demand import PodWant, PullWant, Urgency, Want


class PinMismatch(DigestMismatch):
    """The source has another content than the pin asks for."""


@dataclass(frozen=True, slots=True)
class Pull:
    """One `holdfast pull`. `digest`: the version is here, as this. `error`: why it cannot be, as far as is known.
    `refresh`: the source is to be asked again, although the version is here."""

    id: str
    want: PullWant
    refresh: bool
    digest: Digest | None = None
    error: HoldfastError | None = None


@dataclass(frozen=True, slots=True)
class WrongPin:
    """The verdict on a pin that the catalog does not promise: it concerns those alone who pin so. `lapsed`: it is
    looked at again, and should it be wrong again, `failures` says for how long it stays so."""

    pin: Digest
    error: Permanent
    failures: int
    retry_at: float
    lapsed: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Content that is here, and the request it was fetched for; None where that is not known."""

    digest: Digest
    request: str | None


# --- states --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """A fetch under way. `order`: its number among all fetches. `lacks_space`: its last try met the end of the space,
    and no later one has reserved what it needs. `passed`: no room can be made for it now, others go first."""

    want: Want
    order: int
    failures: int = 0
    bad_responses: int = 0
    lacks_space: bool = False
    passed: bool = False

    @property
    def urgency(self) -> Urgency:
        """Its place among the fetches."""
        return Urgency(self.want.priority, self.order)


@dataclass(frozen=True, slots=True)
class Idle:
    """Not fetched: the version is here, or not wanted, or about to be fetched."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The fetch for `want` failed for good; it is tried again at `retry_at`."""

    want: Want
    retry_at: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Those who ask were told that this can never be."""

    error: Permanent


@dataclass(frozen=True, slots=True)
class Queued:
    """The fetch waits for its turn."""

    fetch: Fetch


@dataclass(frozen=True, slots=True)
class Running:
    """A try is under way."""

    fetch: Fetch


@dataclass(frozen=True, slots=True)
class Paused:
    """The last try met a transient error; the next one comes at `until`."""

    fetch: Fetch
    until: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """The last try had no space, as `error` says; the next one comes when there is some, or at `until`."""

    fetch: Fetch
    until: float
    error: Transient


@dataclass(frozen=True, slots=True)
class Stopping:
    """The fetch was called off and is coming down. `gives_way`: for one that is more urgent, to start over later.
    `refused`: those who ask for the version were refused since."""

    fetch: Fetch
    gives_way: bool = False
    refused: Permanent | None = None


Fetching = Queued | Running | Paused | Blocked | Stopping
State = Idle | Failed | Refused | Fetching


@dataclass(frozen=True, slots=True)
class Version:
    """All that is remembered of one version.

    `pods`: those of this node that want it, `waiting_since` when the first of them began to wait. `pulls`: those that
    still ask. `failures`: fetches that failed for good, in a row. `recheck`: it is here, and to be resolved again.
    `counted`: its want is in the metrics. `pulled_pin`: what the last pull that was met pinned. `needs_bytes`: what it
    takes of the disk in all, at least, as tries that had no space found out.
    """

    ref: ModelRef
    state: State = field(default_factory=Idle)
    pods: tuple[PodWant, ...] = ()
    waiting_since: float | None = None
    pulls: tuple[Pull, ...] = ()
    wrong_pins: tuple[WrongPin, ...] = ()
    failures: int = 0
    recheck: bool = False
    counted: bool = False
    pulled_pin: Digest | None = None
    needs_bytes: int = 0

    @property
    def fetch(self) -> Fetch | None:
        """The fetch under way, if there is one."""
        return self.state.fetch if isinstance(self.state, Fetching) else None

    @property
    def settled(self) -> Want | Permanent | None:
        """What came to nothing: the want that failed for good, or the refusal that was told."""
        match self.state:
            case Failed(want):
                return want
            case Refused(error):
                return error
            case Stopping(refused=refused):
                return refused
            case _:
                return None

    @property
    def verdicts(self) -> dict[Digest, Permanent]:
        """The pins that cannot be met, and why."""
        return {wrong.pin: wrong.error for wrong in self.wrong_pins if not wrong.lapsed}

    @property
    def due(self) -> float:
        """When time alone changes something next; `inf`: never."""
        at = [wrong.retry_at for wrong in self.wrong_pins if not wrong.lapsed]
        match self.state:
            case Failed(retry_at=until) | Paused(until=until) | Blocked(until=until):
                at.append(until)
        return min(at, default=inf)

    def is_met(self, want: Want | None, held: Held | None) -> bool:
        """Tell whether what is here is what is wanted, and need not be resolved again."""
        return not self.recheck and meets(held, want)


def meets(held: Held | None, want: Want | None) -> bool:
    """Tell whether what is here is what is wanted."""
    return held is not None and want is not None and want.is_met_by(held.digest, held.request)
