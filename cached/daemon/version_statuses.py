"""The status of versions without a running fetch: queued, ready, failed, refused, or none.

Law: writes the records and the inventory to the status files and the log; decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program.events import describe_error
from cached.contract.program.logs import about
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from cached.core.catalog import EMPTY_CATALOG, Catalog, CatalogVersion
from cached.core.versions import messages
from cached.core.versions.messages import Step
from cached.daemon.node_state import NodeState

_log = logging.getLogger(__name__)


class VersionStatuses:
    """Writes to the status files, except for running fetches."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._status_files = state.status_files
        self._inventory = state.inventory

    def show(self, step: Step) -> None:
        """Show a step that a version takes, if it is one to show."""
        match step:
            case messages.ShowQueued(ref, want):
                if (digest := self._inventory.models.get(ref)) is not None:
                    _log.info("%s: resolving again, because the want changed; until then %s stays", ref, digest)
                self._status_files.reset(ref, State.QUEUED, "", want.pin)
            case messages.ShowTrouble(ref, error):
                _log.warning("%s: %s", ref, ref.drop_name(str(error)), extra=about(**describe_error(error)))
                self._status_files.set_error(ref, State.QUEUED, error)
            case messages.LogFailure(ref, failure):
                _log.error("%s: %s", ref, ref.drop_name(str(failure)), extra=about(**describe_error(failure)))
            case messages.ShowFailed(ref, failure):
                self._show_failed(ref, failure)
            case messages.ShowRefused(ref, refusal):
                self._show_refused(ref, refusal)
            case messages.ShowIdle(ref):
                self.show_idle(ref)

    def _show_failed(self, ref: ModelRef, error: HoldfastError) -> None:
        """Show that a fetch failed permanently; its source and progress stay."""
        if self._status_files.get(ref) is None:
            self._status_files.reset(ref, State.FAILED, "", None)
        self._status_files.set_error(ref, State.FAILED, error)

    def _show_refused(self, ref: ModelRef, error: Permanent) -> None:
        """Show that every request for a version is refused: the catalog lacks it, or the pins are wrong. A version on
        the node stays ready, as gates open with it: only the requests are refused then."""
        if ref in self._inventory.models:
            self._show_ready(ref)
        else:
            self._status_files.reset(ref, State.FAILED, "", None)
            self._status_files.set_error(ref, State.FAILED, error)

    def show_idle(self, ref: ModelRef) -> None:
        """Show a version that is neither fetched nor refused: ready, or no status."""
        if ref in self._inventory.models:
            self._show_ready(ref)
        else:
            self._status_files.drop(ref)

    def show_refusals(self, ref: ModelRef) -> None:
        """Show the waiting pods whose pin cannot be met, and those whose namespace the catalog does not give the
        version to; pulls have their own answers."""
        refused_pins, pods = self._state.index.get_refused_pins(ref), self._state.versions.get(ref).pods
        pinned = {pod.pin for pod in pods if pod.pin is not None and pod.pin in refused_pins}
        self._status_files.set_refusals(
            ref,
            {str(pin): StatusError.of(refused_pins[pin]) for pin in pinned},
            {namespace: StatusError.of(error) for namespace, error in self._state.index.get_forbidden(ref).items()},
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

    def show_pinned(self, ref: ModelRef) -> None:
        """Show whether the digest of a ready version is promised now."""
        status = self._status_files.get(ref)
        if ref in self._inventory.models and status is not None and status.state is State.READY:
            pinned = self._is_pinned(ref)
            if status.pinned != pinned:
                self._ready(ref, pinned=pinned)

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

    def _show_ready(self, ref: ModelRef) -> None:
        status = self._status_files.get(ref)
        if status is None or status.state is not State.READY:
            self._ready(ref, pinned=self._is_pinned(ref))

    def _is_pinned(self, ref: ModelRef) -> bool:
        """Return whether the catalog, a pod, or the last met pull promises the digest on the node."""
        digest, version = self._inventory.models[ref], self._state.versions.get(ref)
        entry = (self._state.catalog or EMPTY_CATALOG).find(ref)
        if entry is not None and entry.digest == digest:
            return True
        return version.pulled_pin == digest or any(pod.pin == digest for pod in version.pods)

    def _ready(self, ref: ModelRef, *, pinned: bool) -> None:
        inventory = self._inventory
        self._status_files.set_ready(
            ref, inventory.models[ref], inventory.size(ref), pinned=pinned, source=inventory.fetched[ref].source
        )
