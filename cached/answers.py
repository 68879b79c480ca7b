"""What is said of versions that are not under way: that they are here, failed, were refused, or nothing.

Law: writes to the board what the holdings and what was settled say; decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from cached.board import Board
from cached.catalog import Catalog, CatalogVersion
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from cached.holdings import Holdings
from cached.pulls import Pulls
from cached.settled import Settled
from cached.surroundings import Surroundings


class Answers:
    """The board, as far as no fetch writes to it."""

    def __init__(self, board: Board, holdings: Holdings, settled: Settled, pulls: Pulls) -> None:
        self._board = board
        self._holdings = holdings
        self._settled = settled
        self._pulls = pulls
        self._pinned_wrong: frozenset[ModelRef] = frozenset()

    def failed(self, ref: ModelRef, error: HoldfastError, *, under_way: bool) -> None:
        """A version can never be; what its fetch said of source and progress stays, where there was one."""
        if self._board.get(ref) is None or not under_way:
            self._board.begin(ref, State.FAILED, "", None)
        self._board.trouble(ref, State.FAILED, error)
        self._pulls.failed(ref, error)

    def refused(self, ref: ModelRef, error: Permanent) -> None:
        """Nobody who asks for a version can have it: the catalog lacks it, or their pins are wrong. What is here stays
        ready, for gates open with it: the refusal is the askers' own then."""
        self._pulls.failed(ref, error)
        if ref in self._holdings.models:
            self._show_ready(ref)
        else:
            self.failed(ref, error, under_way=False)

    def over(self, ref: ModelRef) -> None:
        """A version is not under way any more: what holds of it now is a refusal, that it is here, or nothing."""
        settled = self._settled.outcomes.get(ref)
        if settled is not None:
            if isinstance(settled, Permanent):
                self.refused(ref, settled)
        elif ref in self._holdings.models:
            self._show_ready(ref)
        else:
            self._board.drop(ref)

    def pins(self, verdicts: Mapping[tuple[ModelRef, Digest], Permanent], around: Surroundings) -> None:
        """Tell who waits behind a gate that his pin cannot be met; pulls have an answer of their own."""
        wrong: defaultdict[ModelRef, dict[str, StatusError]] = defaultdict(dict)
        for pod in around.pods() if verdicts else ():
            if pod.pin is not None and (pod.ref, pod.pin) in verdicts:
                wrong[pod.ref][str(pod.pin)] = StatusError.of(verdicts[pod.ref, pod.pin])
        for ref in self._pinned_wrong - wrong.keys():
            self._board.refuse_pins(ref, {})
        for ref, pins in wrong.items():
            self._board.refuse_pins(ref, pins)
        self._pinned_wrong = frozenset(wrong)

    def here(self, catalog: Catalog, around: Surroundings) -> None:
        """Say of what is here whether it is what the catalog asks for, and whether anybody promises its digest now: the
        catalog, a pod, or who pulled it last."""
        pods = {(pod.ref, pod.pin) for pod in around.pods()}
        for ref, digest in self._holdings.models.items():
            entry = catalog.find(ref)
            promised = (ref, digest) in pods or self._pulls.pins.get(ref) == digest
            pinned = promised or (entry is not None and entry.digest == digest)
            self._board.know(ref, str(digest), None if entry is None else self._stale(ref, digest, entry))
            status = self._board.get(ref)
            if status is not None and status.state is State.READY and status.pinned != pinned:
                self._ready(ref, pinned=pinned)

    def _stale(self, ref: ModelRef, digest: Digest, entry: CatalogVersion) -> tuple[str, str | None] | None:
        """Why what is here is not what the catalog asks for; unknown origins are told when they are resolved."""
        if entry.digest is not None:
            return None if entry.digest == digest else ("catalog_changed", str(entry.digest))
        request = self._holdings.fetched[ref].request
        return None if request in (None, entry.request) else ("catalog_changed", None)

    def _show_ready(self, ref: ModelRef) -> None:
        status = self._board.get(ref)
        if status is None or status.state is not State.READY:
            self._ready(ref, pinned=False)

    def _ready(self, ref: ModelRef, *, pinned: bool) -> None:
        held = self._holdings
        self._board.ready(ref, held.models[ref], held.size(ref), pinned, held.fetched[ref].source)
