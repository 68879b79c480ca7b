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

    def show_refused(self, version: Version, error: Permanent, catalog: Catalog | None) -> None:
        """Show that every request for a version is refused: the catalog lacks it, or the pins are wrong. A version on
        the node stays ready, as gates open with it: only the requests are refused then."""
        if version.ref in self._holdings.models:
            self._show_ready(version, catalog)
        else:
            self._board.reset(version.ref, State.FAILED, "", None)
            self._board.set_error(version.ref, State.FAILED, error)

    def show_idle(self, version: Version, catalog: Catalog | None) -> None:
        """Show a version that is neither fetched nor refused: ready, or no status."""
        if version.ref in self._holdings.models:
            self._show_ready(version, catalog)
        else:
            self._board.drop(version.ref)

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
                self._board.set_verdict(ref, self._holdings.fetched[ref].verdict)

    def show_pinned(self, version: Version, catalog: Catalog) -> None:
        """Show whether the digest of a ready version is promised now."""
        status = self._board.get(version.ref)
        if version.ref in self._holdings.models and status is not None and status.state is State.READY:
            pinned = self._is_pinned(version, catalog)
            if status.pinned != pinned:
                self._ready(version.ref, pinned=pinned)

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

    def _show_ready(self, version: Version, catalog: Catalog | None) -> None:
        status = self._board.get(version.ref)
        if status is None or status.state is not State.READY:
            self._ready(version.ref, pinned=self._is_pinned(version, catalog))

    def _is_pinned(self, version: Version, catalog: Catalog | None) -> bool:
        """Return whether the catalog, a pod, or the last pull that was met promises the digest on the node."""
        digest = self._holdings.models[version.ref]
        entry = None if catalog is None else catalog.find(version.ref)
        promised = {entry.digest if entry is not None else None, version.pulled_pin, *(pod.pin for pod in version.pods)}
        return digest in promised

    def _ready(self, ref: ModelRef, *, pinned: bool) -> None:
        held = self._holdings
        self._board.set_ready(ref, held.models[ref], held.size(ref), pinned, held.fetched[ref].source)
