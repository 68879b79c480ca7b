"""The status of versions without a running fetch: ready, failed, refused, or none.

Law: writes the records and the inventory to the status files; decides nothing.
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
    """Writes to the status files, except for running fetches."""

    def __init__(self, status_files: StatusFiles, inventory: Inventory) -> None:
        self._status_files = status_files
        self._inventory = inventory

    def show_failed(self, ref: ModelRef, error: HoldfastError) -> None:
        """Show that a fetch failed permanently; its source and progress stay."""
        if self._status_files.get(ref) is None:
            self._status_files.reset(ref, State.FAILED, "", None)
        self._status_files.set_error(ref, State.FAILED, error)

    def show_refused(self, version: Version, error: Permanent, catalog: Catalog | None) -> None:
        """Show that every request for a version is refused: the catalog lacks it, or the pins are wrong. A version on
        the node stays ready, as gates open with it: only the requests are refused then."""
        if version.ref in self._inventory.models:
            self._show_ready(version, catalog)
        else:
            self._status_files.reset(version.ref, State.FAILED, "", None)
            self._status_files.set_error(version.ref, State.FAILED, error)

    def show_idle(self, version: Version, catalog: Catalog | None) -> None:
        """Show a version that is neither fetched nor refused: ready, or no status."""
        if version.ref in self._inventory.models:
            self._show_ready(version, catalog)
        else:
            self._status_files.drop(version.ref)

    def show_refusals(
        self, version: Version, refused_pins: Mapping[Digest, Permanent], forbidden: Mapping[str, Permanent]
    ) -> None:
        """Show the waiting pods whose pin cannot be met, and those whose namespace the catalog does not give the
        version to; pulls have their own answers."""
        pinned = {pod.pin for pod in version.pods if pod.pin is not None and pod.pin in refused_pins}
        self._status_files.set_refusals(
            version.ref,
            {str(pin): StatusError.of(refused_pins[pin]) for pin in pinned},
            {namespace: StatusError.of(error) for namespace, error in forbidden.items()},
        )

    def compare(self, refs: Iterable[ModelRef], catalog: Catalog) -> None:
        """Show whether the held ones of `refs` are as the catalog asks. Call it first: `ready` with the staleness of an
        earlier catalog would be wrong."""
        for ref in refs:
            digest = self._inventory.models.get(ref)
            if digest is not None:
                entry = catalog.find(ref)
                self._status_files.set_content(
                    ref, str(digest), None if entry is None else self._find_stale(ref, digest, entry)
                )
                self._status_files.set_verdict(ref, self._inventory.fetched[ref].verdict)

    def show_pinned(self, version: Version, catalog: Catalog) -> None:
        """Show whether the digest of a ready version is promised now."""
        status = self._status_files.get(version.ref)
        if version.ref in self._inventory.models and status is not None and status.state is State.READY:
            pinned = self._is_pinned(version, catalog)
            if status.pinned != pinned:
                self._ready(version.ref, pinned=pinned)

    def _find_stale(self, ref: ModelRef, digest: Digest, entry: CatalogVersion) -> tuple[str, str | None] | None:
        """Return why the content is not what the catalog asks for; an unknown origin counts once it is resolved."""
        if entry.digest is not None:
            return None if entry.digest == digest else ("catalog_changed", str(entry.digest))
        request = self._inventory.fetched[ref].request
        if request not in (None, entry.request):
            return "catalog_changed", None
        if ref in self._inventory.drifted:
            drifted = self._inventory.drifted[ref]
            return "source_changed", None if drifted is None else str(drifted)
        return None

    def _show_ready(self, version: Version, catalog: Catalog | None) -> None:
        status = self._status_files.get(version.ref)
        if status is None or status.state is not State.READY:
            self._ready(version.ref, pinned=self._is_pinned(version, catalog))

    def _is_pinned(self, version: Version, catalog: Catalog | None) -> bool:
        """Return whether the catalog, a pod, or the last met pull promises the digest on the node."""
        digest = self._inventory.models[version.ref]
        entry = None if catalog is None else catalog.find(version.ref)
        if entry is not None and entry.digest == digest:
            return True
        return version.pulled_pin == digest or any(pod.pin == digest for pod in version.pods)

    def _ready(self, ref: ModelRef, *, pinned: bool) -> None:
        inventory = self._inventory
        self._status_files.set_ready(
            ref, inventory.models[ref], inventory.size(ref), pinned=pinned, source=inventory.fetched[ref].source
        )
