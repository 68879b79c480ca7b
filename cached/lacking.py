"""Who waits for space, and for how much of it.

Law: reads the ledger, the claims and the deliveries; decides nothing. A version of which the source does not say how
large it is asks for more with every try: what it was known to need stays known, or it would push others out, find that
it still does not fit, and do it again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from cached.contract.errors import Transient
from cached.contract.reference import ModelRef
from cached.delivery import Delivery
from cached.ledger import Ledger, NoSpace, Shortage, Stake
from cached.transfer import Transfers


class Lacking:
    """The deliveries that wait for space."""

    def __init__(self, ledger: Ledger, transfers: Transfers) -> None:
        self._ledger = ledger
        self._transfers = transfers
        self._known: dict[ModelRef, int] = {}  # bytes that a version takes in all, at least

    def among(self, deliveries: Collection[Delivery]) -> list[Delivery]:
        """Those that wait for space, the most urgent first; of equals, who came first."""
        return sorted((each for each in deliveries if each.short), key=lambda each: each.urgency)

    def shortages(self, deliveries: Collection[Delivery]) -> dict[ModelRef, Shortage]:
        """What each of those needs, in their order."""
        return {
            each.want.ref: self._shortage(each.want.ref, each.short) for each in self.among(deliveries) if each.short
        }

    def stakes(self, deliveries: Collection[Delivery]) -> dict[ModelRef, Stake]:
        """What the space holds for each delivery."""
        return {each.want.ref: self._transfers.stake(each.want.ref) for each in deliveries}

    def fits(self, delivery: Delivery) -> bool:
        """Tell whether what it lacks is free by now; False where nobody knows."""
        try:
            return delivery.short is not None and self._is_free(self._shortage(delivery.want.ref, delivery.short))
        except Transient:
            return False

    def forget(self, ref: ModelRef) -> None:
        """Nobody wants `ref` any more, or it is here."""
        self._known.pop(ref, None)

    def _is_free(self, needed: Shortage) -> bool:
        use = self._ledger.use()
        return use.free >= needed.bytes and use.files_free >= needed.files

    def _shortage(self, ref: ModelRef, short: Transient) -> Shortage:
        told = self._ledger.shortage(short)
        if not isinstance(short, NoSpace):
            return told
        stake = self._transfers.stake(ref)
        here = stake.total()
        known = self._known[ref] = max(self._known.get(ref, 0), here + told.bytes)
        return replace(told, bytes=known - here)
