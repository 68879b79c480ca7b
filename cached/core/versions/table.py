"""The records of all versions, and their indexes: the fetch queue, due times, the answers of pulls.

Law: the records are the state; each event updates the indexes. The cost of an event does not depend on the number of
versions. Reads no clock.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from itertools import count
from math import inf
from types import MappingProxyType

from cached.contract.reference import ModelRef
from cached.core.demand import PodWant, Urgency, Want
from cached.core.versions.life import handle
from cached.core.versions.messages import (
    Admitted,
    AnswerExpired,
    AnswerPull,
    Event,
    PauseEnded,
    PodsSeen,
    Pulled,
    Reopen,
    Resumed,
    SpacePlanned,
    Started,
    Step,
    TimePassed,
)
from cached.core.versions.queue import FetchQueue
from cached.core.versions.record import (
    INACTIVE,
    Blocked,
    Paused,
    Pull,
    Queued,
    Running,
    Stopping,
    Version,
    VersionState,
)

_ANSWER_S = 600.0  # until the answer of a pull expires
_MAX_ANSWERS = 4096


class VersionTable:
    """The records of the versions. `records`: by reference, without empty ones. `fetching`: the wants of the fetches
    that have not ended, the oldest first. `in_trouble` returns whether the source of a running fetch keeps it waiting.
    """

    def __init__(self, in_trouble: Callable[[ModelRef], bool]) -> None:
        self._records: dict[ModelRef, Version] = {}
        self.records: Mapping[ModelRef, Version] = MappingProxyType(self._records)
        self._queue = FetchQueue(self._urgency, in_trouble)
        self._orders = count()
        self._fetching: dict[ModelRef, Want] = {}
        self.fetching: Mapping[ModelRef, Want] = MappingProxyType(self._fetching)
        self._blocked: set[ModelRef] = set()
        self._short_of_space: set[ModelRef] = set()  # blocked, or in a later try
        self._with_pods: set[ModelRef] = set()
        self._asks_changed: set[ModelRef] = set()
        self._due: dict[ModelRef, float] = {}
        self._dues: list[tuple[float, ModelRef]] = []  # a heap; entries that differ from `_due` are void
        self._asking: dict[str, ModelRef] = {}  # the open pulls, by id
        self._answers: dict[str, Pull] = {}  # of the closed pulls, by id
        self._answered_at: dict[str, float] = {}  # of all pulls that have an answer, the oldest answer first

    # --- events ----------------------------------------------------------------------------------------------------

    def handle(self, ref: ModelRef, event: Event, now: float) -> list[Step]:
        """Handle an event of one version; return the steps to carry out, of this version and of others."""
        return self.handle_all({ref: event}, now)

    def handle_all(self, events: Mapping[ModelRef, Event], now: float) -> list[Step]:
        """Handle the events of several versions; the queue admits fetches after the last one."""
        steps: list[Step] = []
        moved = False
        for ref, event in events.items():
            before = self._get_state(ref)
            steps += self._apply(ref, event, now)
            moved = moved or self._get_state(ref) is not before
        return [*steps, *self.admit(now)] if moved else steps

    def start(self, want: Want, now: float) -> list[Step]:
        """Start the fetch of `want`, unless its version is being fetched already."""
        return self.handle(want.ref, Started(want, next(self._orders)), now)

    def update_pods(self, pods: Collection[PodWant], held: Collection[ModelRef], now: float) -> list[Step]:
        """Record all pods of the node; `held`: the versions that the node has."""
        by_version: defaultdict[ModelRef, list[PodWant]] = defaultdict(list)
        for pod in pods:
            by_version[pod.ref].append(pod)
        refs = self._with_pods | by_version.keys()
        return self.handle_all({ref: PodsSeen(tuple(by_version.get(ref, ())), ref in held) for ref in refs}, now)

    def end_pauses(self, refs: Collection[ModelRef], now: float) -> list[Step]:
        """Try these fetches now."""
        return self.handle_all(dict.fromkeys(refs, PauseEnded()), now)

    def record_space_plan(self, hopeless: Collection[ModelRef], now: float) -> list[Step]:
        """Record for which blocked fetches the planner frees space: all but the `hopeless` ones."""
        return self.handle_all({ref: SpacePlanned(ref not in hopeless) for ref in self._blocked}, now)

    def pass_time(self, now: float) -> list[Step]:
        """Handle what is due by now."""
        steps: list[Step] = []
        while self._dues and self._dues[0][0] <= now:
            due, ref = heapq.heappop(self._dues)
            if self._due.get(ref) == due:
                del self._due[ref]
                steps += self.handle(ref, TimePassed(), now)
        while self._answered_at:
            id_, answered_at = next(iter(self._answered_at.items()))
            if now - answered_at < _ANSWER_S and len(self._answered_at) <= _MAX_ANSWERS:
                break
            del self._answered_at[id_]
            if self._answers.pop(id_, None) is None:
                steps += self.handle(self._asking.pop(id_), AnswerExpired(id_), now)
        return steps

    def admit(self, now: float) -> list[Step]:
        """Start the tries that the queue admits; call it periodically, since a running fetch may be in trouble."""
        short = [fetch for ref in self._short_of_space if (fetch := self.get(ref).fetch) is not None]
        first = min((fetch.urgency for fetch in short if not fetch.skipped), default=None)
        return [step for ref in self._queue.admit(first) for step in self._apply(ref, Admitted(), now)]

    def take_changed_asks(self) -> set[ModelRef]:
        """Return the versions whose pods, pulls or refused pins changed since the last call."""
        changed, self._asks_changed = self._asks_changed, set()
        return changed

    # --- reads -----------------------------------------------------------------------------------------------------

    def get(self, ref: ModelRef) -> Version:
        """Return the record of a version."""
        return self._records.get(ref) or Version(ref)

    @property
    def blocked(self) -> list[tuple[ModelRef, Blocked]]:
        """The fetches blocked on disk space, the most urgent first."""
        states = [(ref, state) for ref in self._blocked if isinstance(state := self.get(ref).state, Blocked)]
        return sorted(states, key=lambda each: each[1].fetch.urgency)

    @property
    def short_of_space(self) -> list[Version]:
        """The records of the fetches that had too little disk space, in the last try or since."""
        return [self.get(ref) for ref in self._short_of_space]

    @property
    def waits(self) -> dict[ModelRef, float]:
        """Since when pods wait, in monotonic seconds, of the versions for which any does."""
        began = {ref: self.get(ref).waiting_since for ref in self._with_pods}
        return {ref: since for ref, since in began.items() if since is not None}

    @property
    def due(self) -> float:
        """The time of the next `pass_time`; `inf`: never."""
        while self._dues and self._due.get(self._dues[0][1]) != self._dues[0][0]:
            heapq.heappop(self._dues)
        oldest = next(iter(self._answered_at.values()), inf)
        return min(self._dues[0][0] if self._dues else inf, oldest + _ANSWER_S)

    def find_pull(self, id_: str) -> Pull | None:
        """Return the pull of this id; None if its answer has expired, or if an earlier daemon had it."""
        ref = self._asking.get(id_)
        if ref is None:
            return self._answers.get(id_)
        return next(pull for pull in self.get(ref).pulls if pull.id == id_)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _get_state(self, ref: ModelRef) -> VersionState:
        record = self._records.get(ref)
        return INACTIVE if record is None else record.state

    def _apply(self, ref: ModelRef, event: Event, now: float) -> list[Step]:
        before = self.get(ref)
        after, steps = handle(before, event, now)
        if after is not before:
            self._keep(before, after)
        if isinstance(event, Pulled | Resumed) and event.pull in after.pulls:
            self._asking[event.pull.id] = ref
        left: list[Step] = []
        for step in steps:
            match step:
                case AnswerPull(pull, asks):
                    self._keep_answer(pull, now, asks=asks)
                case Reopen(pull):
                    self._answered_at.pop(pull.id, None)
                case _:
                    left.append(step)
        if before.fetch is not None and after.fetch is None:
            for other in list(self._blocked):  # its unused reservation is free, and its blobs are committed
                left += self._apply(other, PauseEnded(), now)
        return left

    def _keep(self, before: Version, after: Version) -> None:
        ref = after.ref
        if not after.counted and after == Version(ref):  # nearly all that are wanted were counted
            self._records.pop(ref, None)
        else:
            self._records[ref] = after
        if after.state is not before.state:
            self._index_state(after)
        _set_member(self._with_pods, ref, present=bool(after.pods))
        asks = before.pods, before.pulls, before.wrong_pins
        if (after.pods, after.pulls, after.wrong_pins) != asks and _asks(after) != _asks(before):
            self._asks_changed.add(ref)
        due = after.due
        if due == inf:
            self._due.pop(ref, None)
        elif self._due.get(ref) != due:
            self._due[ref] = due
            heapq.heappush(self._dues, (due, ref))

    def _index_state(self, version: Version) -> None:
        ref, state, fetch = version.ref, version.state, version.fetch
        _set_member(self._blocked, ref, present=isinstance(state, Blocked))
        _set_member(self._short_of_space, ref, present=fetch is not None and fetch.lacks_space)
        if fetch is None:
            self._fetching.pop(ref, None)
        else:
            self._fetching[ref] = fetch.want
        match state:
            case Queued():
                self._queue.enqueue(ref)
            case Running(is_small=is_small):
                self._queue.set_small(ref, is_small=is_small)
            case Stopping():
                self._queue.withdraw(ref)
            case Paused() | Blocked():
                self._queue.remove(ref)
            case _ if fetch is None:
                self._queue.remove(ref)

    def _keep_answer(self, pull: Pull, now: float, *, asks: bool) -> None:
        self._answered_at.pop(pull.id, None)
        self._answered_at[pull.id] = now
        if not asks:
            self._asking.pop(pull.id, None)
            self._answers[pull.id] = pull

    def _urgency(self, ref: ModelRef) -> Urgency:
        fetch = self.get(ref).fetch
        assert fetch is not None, f"{ref} is queued without a fetch"
        return fetch.urgency


def _asks(version: Version) -> object:
    return version.pods, [pull.want for pull in version.pulls], version.refused_pins


def _set_member(refs: set[ModelRef], ref: ModelRef, *, present: bool) -> None:
    if present:
        refs.add(ref)
    else:
        refs.discard(ref)
