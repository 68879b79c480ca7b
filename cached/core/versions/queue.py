"""The fetch queue: the fetches that may run now.

Law: in memory, an index of the records; reads no clock. The cost of a call depends on the running fetches only, not on
the number of those that wait.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable

from cached.contract.reference import ModelRef
from cached.core.demand import Priority, Urgency

_CHECKS = 8  # fetches in trouble that each call checks again
_AT_ONCE = {Priority.WAITING: 16, Priority.PULL: 16, Priority.PREFETCH: 4}  # few enough that the first ones finish
_WITH_SMALL = 16  # of a priority: small ones finish soon, and those that run together share the syncs of the disk


class FetchQueue:
    """Runs a limited number of fetches at each priority, and more of small ones, the most urgent first. `urgency`
    returns that of a queued fetch, `in_trouble` whether the source of a running one keeps it waiting."""

    def __init__(self, urgency: Callable[[ModelRef], Urgency], in_trouble: Callable[[ModelRef], bool]) -> None:
        self._urgency = urgency
        self._in_trouble = in_trouble
        self._queues: dict[Priority, list[tuple[Urgency, ModelRef]]] = {priority: [] for priority in Priority}  # heaps
        self._waiting: dict[ModelRef, Urgency] = {}  # heap entries that differ are void
        self._running: set[ModelRef] = set()  # not in trouble when last checked
        self._small: set[ModelRef] = set()  # running, and known to be small
        self._troubled: deque[ModelRef] = deque()  # running, in trouble when last checked

    def enqueue(self, ref: ModelRef) -> None:
        """Queue a fetch, or requeue it at its current urgency."""
        urgency = self._urgency(ref)
        if self._waiting.get(ref) != urgency:
            self._waiting[ref] = urgency
            heapq.heappush(self._queues[urgency.priority], (urgency, ref))

    def set_small(self, ref: ModelRef, *, is_small: bool) -> None:
        """Count a running fetch as small, or as large."""
        if is_small:
            self._small.add(ref)
        else:
            self._small.discard(ref)

    def withdraw(self, ref: ModelRef) -> None:
        """Remove a fetch from the queue; a running one continues."""
        self._waiting.pop(ref, None)

    def remove(self, ref: ModelRef) -> None:
        """Remove a fetch that neither waits nor runs."""
        self.withdraw(ref)
        self._running.discard(ref)
        self._small.discard(ref)
        if ref in self._troubled:
            self._troubled.remove(ref)

    def admit(self, first: Urgency | None) -> list[ModelRef]:
        """Return the fetches to run now, and count them as running.

        Fetches in trouble do not count, or one dead origin would keep the versions of all others waiting. A fetch of
        unknown size counts as large. `first`: the most urgent fetch for which space is freed: no later one may start,
        or it would take that space.
        """
        self._update_troubled()
        running = Counter(self._urgency(ref).priority for ref in self._running)
        large = Counter(self._urgency(ref).priority for ref in self._running - self._small)
        admitted = []
        for priority, at_once in _AT_ONCE.items():
            while large[priority] < at_once and running[priority] < max(at_once, _WITH_SMALL):
                ref = self._head(priority)
                if ref is None or (first is not None and self._waiting[ref] > first):
                    break
                heapq.heappop(self._queues[priority])
                del self._waiting[ref]
                self._running.add(ref)
                running[priority] += 1
                large[priority] += 1
                admitted.append(ref)
        return admitted

    def _update_troubled(self) -> None:
        """Check all running fetches for trouble, and a few of those that had trouble."""
        for _ in range(min(_CHECKS, len(self._troubled))):
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
