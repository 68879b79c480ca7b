"""`holdfast gate --hold`: hold the leases of versions that another gate of the pod has verified.

Law: decides nothing, blocks nothing and never ends by itself: the pod runs, and a restart of this process would only
leave its weights without a lease. What cannot be held yet is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from cached.contract.errors import HoldfastError
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRequest
from sidecar.gate.probe import GateReadiness
from sidecar.gate.progress import ProgressPrinter
from sidecar.gate.settings import GateOptions
from sidecar.gate.snapshot import ChangingSnapshot, HeldSnapshot, hold_content, hold_snapshot
from sidecar.gate.wakeup import FolderWatch, Wakeup

FOLLOW_EVERY_S = 5.0
# A snapshot's rename, and the end of an eviction's lock, are no events of the watched folders.
_FIRST_PAUSE_S = 0.02
_LAST_PAUSE_S = 1.0
_SILENCE_S = 2.0  # after which a version that is not here is worth a line


def hold_leases(options: GateOptions, wakeup: Wakeup, printer: ProgressPrinter, readiness: GateReadiness) -> int:
    """Take the lease of every version as soon as it is here, and hold them until a signal; return the exit code 0."""
    held: dict[ModelRequest, HeldSnapshot] = {}
    started, pause_s = time.monotonic(), _FIRST_PAUSE_S
    with closing(FolderWatch(wakeup)) as watch:
        while wakeup.stopped_by is None and not _take_leases(options, held, printer, time.monotonic() - started):
            readiness.text = f"{len(held)} of {len(options.wanted)} leases held"
            if watch.follow(_folders(options, held)):
                continue  # a version may have appeared before the watch began
            woken = wakeup.wait(pause_s)
            pause_s = _FIRST_PAUSE_S if woken else min(pause_s * 2, _LAST_PAUSE_S)
    if wakeup.stopped_by is None:
        readiness.opened_at = time.time()
    while wakeup.stopped_by is None:
        wakeup.wait(FOLLOW_EVERY_S)
        follow_leases(held, printer)
    return 0


def follow_leases(held: Mapping[ModelRequest, HeldSnapshot], printer: ProgressPrinter) -> None:
    """Move the leases to the snapshots' current folders, as a repair replaces a corrupt one under its name."""
    for want, each in held.items():
        trouble = None
        try:
            each.lease.relock(each.snapshot.lease)
        except OSError as error:
            trouble = f"{want}: its lease cannot be read: {error}; trying again"
        printer.print_notice(f"lease {want}", trouble, f"{want}: its lease can be read again")


def _take_leases(
    options: GateOptions, held: dict[ModelRequest, HeldSnapshot], printer: ProgressPrinter, waited_s: float
) -> bool:
    """Hold the versions that are present and not held yet; return whether all are held."""
    for want in options.wanted:
        if want in held:
            continue
        trouble: str | None = f"{want}: not on this node now: its lease is taken as soon as it is back"
        try:
            found = _find(options.public, want)
        except HoldfastError as error:
            trouble = f"{want}: its lease cannot be taken: {error}; trying again"
        else:
            if isinstance(found, HeldSnapshot):
                held[want] = found
                printer.print_line(f"{want}: lease held, sha256:{found.snapshot.path.name}")
                continue
        if waited_s >= _SILENCE_S:
            printer.print_notice(f"lease {want}", trouble)
    return len(held) == len(options.wanted)


def _find(public: PublicLayout, want: ModelRequest) -> HeldSnapshot | ChangingSnapshot | None:
    """Take the lease of a version. One that is pinned is found by its content: its name may lead elsewhere since the
    other gate verified it, and what was verified is what the pod may be reading."""
    return hold_snapshot(public, want.ref) if want.pin is None else hold_content(public, want.pin)


def _folders(options: GateOptions, held: Mapping[ModelRequest, HeldSnapshot]) -> list[Path]:
    public = options.public
    links = [public.model_link(want.ref) for want in options.wanted if want not in held]
    return [public.path, public.models, public.snapshots, *(link.parent for link in links)]
