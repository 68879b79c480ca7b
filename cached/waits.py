"""How long pods wait: from the first pod's want of a version until the version is here.

Law: keeps times and pods' uids, decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from cached.contract.reference import ModelRef
from cached.demand import PodWant


class Waits:
    """The pods of this node, and the versions that they wait for."""

    def __init__(self) -> None:
        self._since: dict[ModelRef, float] = {}  # on the monotonic clock
        self._seen: frozenset[tuple[str, ModelRef]] = frozenset()

    def look(self, wants: Iterable[PodWant], here: Collection[ModelRef]) -> frozenset[ModelRef]:
        """Note what pods want now, given what is here; returns the versions that a new pod wants."""
        now = time.monotonic()
        seen = frozenset((want.uid, want.ref) for want in wants)
        new = frozenset(ref for _, ref in seen - self._seen)
        wanted = {ref for _, ref in seen}
        self._seen = seen
        self._since = {ref: since for ref, since in self._since.items() if ref in wanted}
        for ref in wanted.difference(here):
            self._since.setdefault(ref, now)
        return new

    def over(self, here: Collection[ModelRef]) -> list[float]:
        """The waits, in seconds, for versions that are here now; they are forgotten."""
        now = time.monotonic()
        return [now - self._since.pop(ref) for ref in [ref for ref in self._since if ref in here]]
