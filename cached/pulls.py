"""What people pulled, until it is here, or the answer that it never will be is old.

Law: remembers; decides nothing. What was on its way when the daemon stopped, or went bad, is wanted like a pull.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.demand import PullWant

_KEPT_S = 600.0  # how long a pull that cannot be met keeps its answer


@dataclass(slots=True)
class _Pull:
    want: PullWant
    failed_at: float | None = None  # on the monotonic clock


class Pulls:
    """The pulls that have not run out. `pins`: what the last pull of each version asked for, met or not."""

    def __init__(self) -> None:
        self.pins: dict[ModelRef, Digest | None] = {}
        self._pulls: dict[ModelRef, _Pull] = {}

    def ask(self, ref: ModelRef, pin: Digest | None) -> None:
        """A person wants this now."""
        self._pulls[ref] = _Pull(PullWant(ref, pin))
        self.pins[ref] = pin

    def resume(self, ref: ModelRef, pin: Digest | None) -> None:
        """This is wanted again, unless somebody pulls it already."""
        if ref not in self._pulls:
            self.ask(ref, pin)

    def wants(self) -> list[PullWant]:
        """What is wanted."""
        return [pull.want for pull in self._pulls.values()]

    def met(self, refs: Iterable[ModelRef]) -> None:
        """These are here."""
        for ref in refs:
            del self._pulls[ref]

    def failed(self, ref: ModelRef) -> None:
        """This cannot be met, as far as anybody knows."""
        if ref in self._pulls:
            self._pulls[ref].failed_at = time.monotonic()

    def begun(self, ref: ModelRef) -> None:
        """This is tried again."""
        if ref in self._pulls:
            self._pulls[ref].failed_at = None

    def expire(self) -> None:
        """Old answers go."""
        now = time.monotonic()
        for ref, pull in list(self._pulls.items()):
            if pull.failed_at is not None and now - pull.failed_at >= _KEPT_S:
                del self._pulls[ref]
