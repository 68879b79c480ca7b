"""What happens to a version, as events, and what is to be done about it, as steps.

Events are those of the planner's steps that concern one version, and what the shell reports.
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
class Asked:
    """A person pulls the version, which is `held` here or not; an earlier failure is forgotten."""

    pull: Pull
    held: bool


@dataclass(frozen=True, slots=True)
class Resumed:
    """The version is wanted again like a pull, unless it is pulled already. `recheck`: its source has other content
    than what is here."""

    pull: Pull
    recheck: bool


@dataclass(frozen=True, slots=True)
class PodsSeen:
    """These pods of the node want the version now, which is `held` here or not."""

    pods: tuple[PodWant, ...]
    held: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """What is asked of the version now comes to this: a want, a refusal, or neither; and verdicts on pins."""

    want: Want | None
    refused: bool
    verdicts: Mapping[Digest, Permanent]
    held: Held | None


@dataclass(frozen=True, slots=True)
class Started:
    """The plan is to fetch `want`, as the fetch number `order`."""

    want: Want
    order: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """It is the queued fetch's turn."""


@dataclass(frozen=True, slots=True)
class SpaceReserved:
    """The running try has all the space that it needs."""


@dataclass(frozen=True, slots=True)
class Nudged:
    """A pause is over before its time: there may be space, or the disk takes again what it is given."""


@dataclass(frozen=True, slots=True)
class RoomSought:
    """The plan makes room for a blocked fetch, or finds that it can make none."""

    found: bool


@dataclass(frozen=True, slots=True)
class NeedFound:
    """A fetch without space takes so many bytes in all, at least."""

    total_bytes: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """The try published the version: `digest` is here now; None: it went again."""

    digest: Digest | None


@dataclass(frozen=True, slots=True)
class TryFailed:
    """The try ended with `error`. `held` and `want`: what is here, and wanted, by now."""

    error: HoldfastError
    jitter: float
    held: Held | None
    want: Want | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing runs of a fetch that was called off."""


@dataclass(frozen=True, slots=True)
class AnswerExpired:
    """The answer of this pull is old."""

    id: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """The version was evicted."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """`Version.due` has come."""


Event = (
    Asked
    | Resumed
    | PodsSeen
    | Looked
    | Started
    | Cancel
    | Forget
    | Refuse
    | Preempt
    | Reprioritize
    | Admitted
    | SpaceReserved
    | Nudged
    | RoomSought
    | NeedFound
    | Arrived
    | TryFailed
    | Stopped
    | AnswerExpired
    | Evicted
    | TimePassed
)


# --- steps ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Begin a try at `want`; its end is `Arrived`, `TryFailed` or `Stopped`."""

    ref: ModelRef
    want: Want


@dataclass(frozen=True, slots=True)
class Stop:
    """Call off what runs of the fetch; `Stopped`, or the end of the try, answers."""

    ref: ModelRef
    gives_way: bool


@dataclass(frozen=True, slots=True)
class Hasten:
    """The bytes of a fetch under way are wanted at the priority of `want`."""

    ref: ModelRef
    want: Want


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """A fetch lacks space: plan for it."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing of the fetch is under way any more: what it claimed is free, and the version is planned again."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan the version again."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class ShowQueued:
    """The status: queued, for `want`."""

    ref: ModelRef
    want: Want


@dataclass(frozen=True, slots=True)
class ShowTrouble:
    """The status: queued, after this transient error."""

    ref: ModelRef
    error: Transient


@dataclass(frozen=True, slots=True)
class ShowFailed:
    """The status: failed for good."""

    ref: ModelRef
    error: HoldfastError


@dataclass(frozen=True, slots=True)
class ShowRefused:
    """The status: ready where the version is here, for gates open with it; else failed."""

    ref: ModelRef
    error: Permanent


@dataclass(frozen=True, slots=True)
class ShowIdle:
    """The status: ready where the version is here, else none."""

    ref: ModelRef


@dataclass(frozen=True, slots=True)
class LogFailure:
    """A try ended with an error that no further try mends."""

    ref: ModelRef
    error: HoldfastError


@dataclass(frozen=True, slots=True)
class CountWant:
    """A new want counts in the metrics."""

    ref: ModelRef
    result: Literal["hit", "joined", "miss"]


@dataclass(frozen=True, slots=True)
class CountWait:
    """Pods waited so long until the version was here."""

    ref: ModelRef
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The pull has an answer. `asks`: only for as long as the answer is new, and until the version is tried again."""

    ref: ModelRef
    pull: Pull
    asks: bool


@dataclass(frozen=True, slots=True)
class Reopen:
    """The pull's answer does not hold any more: the version is tried again."""

    ref: ModelRef
    pull: Pull


Step = (
    Run
    | Stop
    | Hasten
    | MakeRoom
    | Ended
    | Plan
    | ShowQueued
    | ShowTrouble
    | ShowFailed
    | ShowRefused
    | ShowIdle
    | LogFailure
    | CountWant
    | CountWait
    | Answer
    | Reopen
)
