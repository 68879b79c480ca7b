"""What is said of versions that are not under way: that they are here, failed, were refused, or nothing.

Law: writes to the board what the holdings and what was settled say; decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from cached.core.catalog import Catalog, CatalogVersion
from cached.core.demand import PodWant
from cached.core.pulls import Pulls
from cached.core.settled import Settled
from cached.node.inventory import Holdings
from cached.node.status_files import Board

Pods = Callable[[ModelRef], Iterable[PodWant]]  # those of this node that want a version
Verdicts = Mapping[tuple[ModelRef, Digest], Permanent]


class Answers:
    """The board, as far as no fetch writes to it."""

    def __init__(self, board: Board, holdings: Holdings, settled: Settled, pulls: Pulls) -> None:
        self._board = board
        self._holdings = holdings
        self._settled = settled
        self._pulls = pulls
        self._pinned_wrong: set[ModelRef] = set()

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

    def pins(self, refs: Iterable[ModelRef], pods: Pods, verdicts: Verdicts) -> None:
        """Tell those who wait for `refs` behind a gate that their pin cannot be met; pulls have an answer of their
        own."""
        for ref in refs:
            pinned = {pod.pin for pod in pods(ref) if pod.pin is not None and (ref, pod.pin) in verdicts}
            if pinned or ref in self._pinned_wrong:
                self._board.refuse_pins(ref, {str(pin): StatusError.of(verdicts[ref, pin]) for pin in pinned})
            if pinned:
                self._pinned_wrong.add(ref)
            else:
                self._pinned_wrong.discard(ref)

    def compare(self, refs: Iterable[ModelRef], catalog: Catalog) -> None:
        """Say of those of `refs` that are here whether they are what the catalog asks for. Comes before anything else
        is said of them: `ready` with the staleness of an earlier catalog would be wrong."""
        for ref in refs:
            digest = self._holdings.models.get(ref)
            if digest is not None:
                entry = catalog.find(ref)
                self._board.know(ref, str(digest), None if entry is None else self._stale(ref, digest, entry))

    def here(self, refs: Iterable[ModelRef], pods: Pods, catalog: Catalog) -> None:
        """Say of those of `refs` that are here whether anybody promises their digest now: the catalog, a pod, or who
        pulled it last."""
        for ref in refs:
            digest = self._holdings.models.get(ref)
            if digest is None:
                continue
            entry = catalog.find(ref)
            promised = any(pod.pin == digest for pod in pods(ref)) or self._pulls.pins.get(ref) == digest
            pinned = promised or (entry is not None and entry.digest == digest)
            status = self._board.get(ref)
            if status is not None and status.state is State.READY and status.pinned != pinned:
                self._ready(ref, pinned=pinned)

    def _stale(self, ref: ModelRef, digest: Digest, entry: CatalogVersion) -> tuple[str, str | None] | None:
        """Why what is here is not what the catalog asks for; unknown origins are told when they are resolved."""
        if entry.digest is not None:
            return None if entry.digest == digest else ("catalog_changed", str(entry.digest))
        request = self._holdings.fetched[ref].request
        if request not in (None, entry.request):
            return "catalog_changed", None
        if ref in self._holdings.drifted:
            drifted = self._holdings.drifted[ref]
            return "source_changed", None if drifted is None else str(drifted)
        return None

    def _show_ready(self, ref: ModelRef) -> None:
        status = self._board.get(ref)
        if status is None or status.state is not State.READY:
            self._ready(ref, pinned=False)

    def _ready(self, ref: ModelRef, *, pinned: bool) -> None:
        held = self._holdings
        self._board.ready(ref, held.models[ref], held.size(ref), pinned, held.fetched[ref].source)
