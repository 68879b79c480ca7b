"""What is said of versions that are not fetched: that they are here, failed, were refused, or nothing.

Law: writes to the status files what the records and the holdings say; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from cached.core.catalog import Catalog, CatalogVersion
from cached.core.versions.record import Version
from cached.node.inventory import Inventory
from cached.node.status_files import StatusFiles


class VersionStatuses:
    """The board, as far as no fetch writes to it."""

    def __init__(self, board: StatusFiles, holdings: Inventory) -> None:
        self._board = board
        self._holdings = holdings

    def show_failed(self, ref: ModelRef, error: HoldfastError) -> None:
        """The fetch of a version failed for good; what it said of source and progress stays."""
        if self._board.get(ref) is None:
            self._board.reset(ref, State.FAILED, "", None)
        self._board.set_error(ref, State.FAILED, error)

    def show_refused(self, ref: ModelRef, error: Permanent) -> None:
        """No one who asks for a version can have it: the catalog lacks it, or their pins are wrong. What is here stays
        ready, for gates open with it: the refusal is the askers' own then."""
        if ref in self._holdings.models:
            self._show_ready(ref)
        else:
            self._board.reset(ref, State.FAILED, "", None)
            self._board.set_error(ref, State.FAILED, error)

    def show_idle(self, ref: ModelRef) -> None:
        """A version is neither fetched nor refused: it is here, or there is nothing to say."""
        if ref in self._holdings.models:
            self._show_ready(ref)
        else:
            self._board.drop(ref)

    def show_pins(self, version: Version, verdicts: Mapping[Digest, Permanent]) -> None:
        """Tell the pods that wait for a version behind a gate that their pin cannot be met; pulls have an answer of
        their own."""
        pinned = {pod.pin for pod in version.pods if pod.pin is not None and pod.pin in verdicts}
        self._board.refuse_pins(version.ref, {str(pin): StatusError.of(verdicts[pin]) for pin in pinned})

    def compare(self, refs: Iterable[ModelRef], catalog: Catalog) -> None:
        """Say of those of `refs` that are here whether they are what the catalog asks for. Comes before anything else
        is said of them: `ready` with the staleness of an earlier catalog would be wrong."""
        for ref in refs:
            digest = self._holdings.models.get(ref)
            if digest is not None:
                entry = catalog.find(ref)
                self._board.set_content(ref, str(digest), None if entry is None else self._stale(ref, digest, entry))

    def show_pinned(self, version: Version, catalog: Catalog) -> None:
        """Say of a version that is here whether its digest is promised now: by the catalog, by a pod, or by the last
        pull that was met."""
        ref = version.ref
        digest = self._holdings.models.get(ref)
        if digest is None:
            return
        entry = catalog.find(ref)
        promised = any(pod.pin == digest for pod in version.pods) or version.pulled_pin == digest
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
        self._board.set_ready(ref, held.models[ref], held.size(ref), pinned, held.fetched[ref].source)
