"""The fetch queue: which fetches may run now.

Law: in memory, an index of the records; reads no clock. Each call looks at the fetches that run and at the heads of the
queues, however many wait.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable

from cached.contract.reference import ModelRef
from cached.core.demand import Priority, Urgency

_LOOKS = 8  # fetches in trouble that are looked at again in each call
_AT_ONCE = {Priority.WAITING: 16, Priority.PULL: 16, Priority.PREFETCH: 4}  # versions, so that the first ones finish


class FetchQueue:
    """At each priority so many fetches run at once, the most urgent first. `urgency`: of a fetch in the queue;
    `in_trouble`: whether the source of a running one keeps it waiting."""

    def __init__(self, urgency: Callable[[ModelRef], Urgency], in_trouble: Callable[[ModelRef], bool]) -> None:
        self._urgency = urgency
        self._in_trouble = in_trouble
        self._queues: dict[Priority, list[tuple[Urgency, ModelRef]]] = {priority: [] for priority in Priority}  # heaps
        self._waiting: dict[ModelRef, Urgency] = {}  # entries of the heaps that differ are void
        self._running: set[ModelRef] = set()  # as far as known, none of them is in trouble
        self._troubled: deque[ModelRef] = deque()  # running, and in trouble when last looked at

    def enqueue(self, ref: ModelRef) -> None:
        """A fetch waits for its turn, or waits at another urgency than before."""
        urgency = self._urgency(ref)
        if self._waiting.get(ref) != urgency:
            self._waiting[ref] = urgency
            heapq.heappush(self._queues[urgency.priority], (urgency, ref))

    def withdraw(self, ref: ModelRef) -> None:
        """A fetch waits for its turn no more; if it runs, it runs on."""
        self._waiting.pop(ref, None)

    def leave(self, ref: ModelRef) -> None:
        """A fetch neither waits nor runs."""
        self.withdraw(ref)
        self._running.discard(ref)
        if ref in self._troubled:
            self._troubled.remove(ref)

    def admit(self, first: Urgency | None) -> list[ModelRef]:
        """Choose the fetches to run now, of which each is running from now on.

        Those in trouble take no room, or one dead origin would keep versions of all others waiting. `first`: the most
        urgent fetch for which room is made: none that comes after it may begin, or it would take that space.
        """
        self._look_for_trouble()
        running = Counter(self._urgency(ref).priority for ref in self._running)
        admitted = []
        for priority, at_once in _AT_ONCE.items():
            while running[priority] < at_once:
                ref = self._head(priority)
                if ref is None or (first is not None and self._waiting[ref] > first):
                    break
                heapq.heappop(self._queues[priority])
                del self._waiting[ref]
                self._running.add(ref)
                running[priority] += 1
                admitted.append(ref)
        return admitted

    def _look_for_trouble(self) -> None:
        """Tell which fetches are in trouble: of those that run all, of those that were a few each time."""
        for _ in range(min(_LOOKS, len(self._troubled))):
            ref = self._troubled.popleft()
            if self._in_trouble(ref):
                self._troubled.append(ref)
            else:
                self._running.add(ref)
        for ref in [each for each in self._running if self._in_trouble(each)]:
            self._running.discard(ref)
            self._troubled.append(ref)

    def _head(self, priority: Priority) -> ModelRef | None:
        queue = self._queues[priority]
        while queue:
            urgency, ref = queue[0]
            if self._waiting.get(ref) == urgency:
                return ref
            heapq.heappop(queue)
        return None
