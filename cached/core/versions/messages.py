"""The events of a version, and the steps that follow from them.

Law: data only. Events are reports of the reconciler, and the planner's steps that concern one version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.core.demand import PodWant, Want
from cached.core.planner import Cancel, Forget, Preempt, Refuse, Reprioritize
from cached.core.versions.record import Held, Pull

# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pulled:
    """A person pulls the version; `held`: the node has it. An earlier failure is forgotten."""

    pull: Pull
    held: bool


@dataclass(frozen=True, slots=True)
class Resumed:
    """The daemon pulls the version, unless a pull is open. `refresh`: its source has other content than the node."""

    pull: Pull
    refresh: bool


@dataclass(frozen=True, slots=True)
class PodsSeen:
    """The pods of this node that want the version now; `held`: the node has it."""

    pods: tuple[PodWant, ...]
    held: bool


@dataclass(frozen=True, slots=True)
class DemandUpdated:
    """The current demand for the version: a want, a refusal, or neither; and the pins that are refused."""

    want: Want | None
    refused: bool
    refused_pins: Mapping[Digest, Permanent]
    held: Held | None


@dataclass(frozen=True, slots=True)
class Started:
    """The planner starts the fetch of `want`; `order`: its number among all fetches."""

    want: Want
    order: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """The queue lets the fetch run."""


@dataclass(frozen=True, slots=True)
class SpaceReserved:
    """The running try has reserved all its space, and has `files` files of `size_bytes` in all yet to fetch."""

    size_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class PauseEnded:
    """A pause ends early: space may be free, or the disk accepts writes again."""


@dataclass(frozen=True, slots=True)
class SpacePlanned:
    """The planner frees space for a blocked fetch (`found`), or cannot."""

    found: bool


@dataclass(frozen=True, slots=True)
class NeedFound:
    """A fetch blocked on space needs at least `total_bytes` in all."""

    total_bytes: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """The try published the version: the node has `digest`; None: it was removed since."""

    digest: Digest | None


@dataclass(frozen=True, slots=True)
class TryFailed:
    """The try ended with `error`. `held` and `want`: the content and the want of the version now."""

    error: HoldfastError
    jitter: float
    held: Held | None
    want: Want | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The try of a stopped fetch has ended."""


@dataclass(frozen=True, slots=True)
class AnswerExpired:
    """The answer of this pull has expired."""

    id: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """The version was evicted."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """`Version.due` has passed."""


DemandEvent = Pulled | Resumed | PodsSeen | DemandUpdated | AnswerExpired | Evicted | NeedFound
PlannerStep = Cancel | Forget | Refuse | Preempt | Reprioritize
FetchEvent = Started | PlannerStep | Admitted | SpaceReserved | PauseEnded | SpacePlanned
TryEnd = Arrived | TryFailed | Stopped
Event = DemandEvent | FetchEvent | TryEnd | TimePassed


# --- steps ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartTry:
    """Start a try of `want`; it ends with `Arrived`, `TryFailed` or `Stopped`."""

    ref: ModelRef
    want: Want


@dataclass(frozen=True, slots=True)
class StopTry:
    """Cancel the try of a fetch; `Stopped`, or the end of the try, follows."""

    ref: ModelRef
    preempted: bool


@dataclass(frozen=True, slots=True)
class SetPriority:
    """Continue the downloads of a fetch at the priority of `want`."""

    ref: ModelRef
    want: Want


@dataclass(frozen=True, slots=True)
class Ended:
    """The fetch has ended: release its claims, and plan the version again."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan the version again, and the space."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class ShowQueued:
    """Show the status queued, for `want`."""

    ref: ModelRef
    want: Want


@dataclass(frozen=True, slots=True)
class ShowTrouble:
    """Show the status queued, after a transient error."""

    ref: ModelRef
    error: Transient


@dataclass(frozen=True, slots=True)
class ShowFailed:
    """Show the status failed."""

    ref: ModelRef
    error: HoldfastError


@dataclass(frozen=True, slots=True)
class ShowRefused:
    """Show the status ready if the node has the version, as gates open with it; else failed."""

    ref: ModelRef
    error: Permanent


@dataclass(frozen=True, slots=True)
class ShowIdle:
    """Show the status ready if the node has the version, else none."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class LogFailure:
    """Log an error that ends a fetch."""

    ref: ModelRef
    error: HoldfastError


@dataclass(frozen=True, slots=True)
class CountWant:
    """Count a new want in the metrics."""

    ref: ModelRef
    result: Literal["hit", "joined", "miss"]


@dataclass(frozen=True, slots=True)
class CountWait:
    """Record how long pods waited for the version."""

    ref: ModelRef
    seconds: float


@dataclass(frozen=True, slots=True)
class AnswerPull:
    """Record the answer of a pull. `asks`: the pull stays in the record until the answer expires."""

    pull: Pull
    asks: bool


@dataclass(frozen=True, slots=True)
class Reopen:
    """Withdraw the answer of a pull: the version is tried again."""

    pull: Pull


ShowStep = ShowQueued | ShowTrouble | ShowFailed | ShowRefused | ShowIdle | LogFailure | CountWant | CountWait
Step = StartTry | StopTry | SetPriority | Ended | Plan | ShowStep | AnswerPull | Reopen
