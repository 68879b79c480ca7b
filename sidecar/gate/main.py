"""`holdfast gate`: block a pod's start until its versions are on this node and verified, then hold their leases.

Law: reads a read-only mount and uses no network: no port of the daemon, no token, no Kubernetes API. Standard library
and watchdog only, and imports nothing that a version already present does not need.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRequest
from cached.contract.status import State
from cached.contract.verify import check_full, check_record, load_manifest
from sidecar.gate import daemon_status, exit_codes
from sidecar.gate.probe import GateReadiness, Probe
from sidecar.gate.progress import GateProgress, ProgressPrinter, of_hashing, of_status
from sidecar.gate.settings import GateOptions, parse
from sidecar.gate.snapshot import HeldSnapshot, Unsettled, hold, still_named
from sidecar.gate.wakeup import Changes, Wakeup

# The first check after an event may be too early (a temporary symlink is created, then renamed, and watchdog may report
# the rename half a second late), so checks follow quickly, then ever more slowly, down to the rate of plain polling.
FIRST_PAUSE_S = 0.005
LAST_PAUSE_S = 1.0
TELL_EVERY_S = 0.1
FOLLOW_EVERY_S = 5.0
SILENCE_S = 10.0  # without a status file, after which the gate prints a hint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gate; return its exit code."""
    started = time.monotonic()
    settings = parse(sys.argv[1:] if argv is None else argv)
    bell = Wakeup()
    readiness = GateReadiness()
    narrator = ProgressPrinter(sys.stderr)
    try:
        if settings.listen is not None:
            probe = Probe(settings.listen, readiness)
            probe.start()
            narrator.line(f"probes on http://{probe.address}")
        gate = Gate(settings, bell, narrator, readiness, started)
        gate.open()
    except HoldfastError as error:
        exit_codes.write_reason(error, settings.termination_log)
        return exit_codes.code_of(error)
    while not settings.once and bell.stopped_by is None:
        bell.wait(FOLLOW_EVERY_S)
        gate.follow()
    return exit_codes.READY


class Gate:
    """One gate: opens once, and holds its leases until the process ends."""

    def __init__(
        self, settings: GateOptions, bell: Wakeup, narrator: ProgressPrinter, readiness: GateReadiness, started: float
    ) -> None:
        self._settings = settings
        self._public = settings.public
        self._bell = bell
        self._narrator = narrator
        self._readiness = readiness
        self._started = started  # monotonic seconds
        self._heartbeat = daemon_status.Heartbeat(settings.public, time.monotonic, time.time)
        self._held: dict[ModelRequest, HeldSnapshot] = {}
        self._progress: dict[ModelRequest, GateProgress] = {}

    def open(self) -> None:
        """Return when every version is present, verified and leased; raises `HoldfastError` where that fails."""
        with Changes(self._bell) as changes:
            pause_s = FIRST_PAUSE_S
            while not self._check():
                self._check_time()
                self._report_trouble(changes)
                if changes.follow(self._folders()):
                    continue  # a version may have appeared before the watch began
                rang = self._bell.wait(min(pause_s, self._left_s()))
                pause_s = FIRST_PAUSE_S if rang else min(pause_s * 2, LAST_PAUSE_S)
        self._readiness.opened_at = time.time()
        self._narrator.line(
            f"open after {time.monotonic() - self._started:.2f} s; {_count(len(self._held), 'lease')} held"
        )

    def follow(self) -> None:
        """Move the leases to the snapshots' current folders, as a repair replaces a corrupt one under its name."""
        for want, held in self._held.items():
            trouble = None
            try:
                held.lease.relock(held.snapshot.lease)
            except OSError as error:
                trouble = f"{want}: its lease cannot be read: {error}; trying again"
            self._narrator.notice(f"lease {want}", trouble, f"{want}: its lease can be read again")

    def _check(self) -> bool:
        for want in self._settings.wanted:
            if want not in self._held:
                self._find(want)
        for want, held in list(self._held.items()):
            # One may be replaced while the gate waits for another; the pod would then read an unleased snapshot.
            if not still_named(self._public, want.ref, held):
                held.lease.close()
                del self._held[want]
        return len(self._held) == len(self._settings.wanted)

    def _find(self, want: ModelRequest) -> None:
        found = hold(self._public, want.ref)
        if isinstance(found, HeldSnapshot):
            self._verify_and_hold(want, found)
        elif isinstance(found, Unsettled):
            self._report(want, GateProgress("published, but", found.reason))
        else:
            self._report_status(want)

    def _verify_and_hold(self, want: ModelRequest, found: HeldSnapshot) -> None:
        """Verify a snapshot and hold it. One that the daemon withdrew during that, as corrupt, is no mismatch: a
        lease prevents eviction, not that."""
        try:
            self._verify(want, found)
        except BaseException as error:
            found.lease.close()
            if not isinstance(error, exit_codes.Unverified) or still_named(self._public, want.ref, found):
                raise
            self._report(want, GateProgress("withdrawn while it was verified;", "waiting for it to come back"))
        else:
            self._held[want] = found

    def _report_status(self, want: ModelRequest) -> None:
        status = daemon_status.read_status(self._public, want.ref)
        waited_s = time.monotonic() - self._started
        silent = status is None and waited_s >= SILENCE_S
        hint = daemon_status.silence(self._public, want, SILENCE_S) if silent else None
        self._narrator.notice(f"silence {want}", hint, f"{want}: the daemon speaks of it now")
        if status is None:
            self._report(want, GateProgress("waiting", f"for {format_duration(waited_s)}, no status yet"))
            return
        refused = status.refused_pins.get(str(want.pin))
        if refused is not None:
            raise exit_codes.DaemonRefused(want, refused)
        failed = status.state is State.FAILED and status.error is not None and status.error.permanent
        if failed and status.error is not None and status.error not in status.refused_pins.values():
            raise exit_codes.DaemonRefused(want, status.error)
        self._report(want, of_status(status))

    def _verify(self, want: ModelRequest, held: HeldSnapshot) -> None:
        began = time.monotonic()
        try:
            manifest = load_manifest(held.snapshot, want.pin)
            if self._settings.full:
                check_full(held.snapshot, manifest, self._settings.threads, self._hashing(want, manifest.total_bytes))
            else:
                check_record(held.snapshot, manifest)
        except Permanent as error:
            raise exit_codes.Unverified(want, error) from error
        how = "hashed" if self._settings.full else "checked by record"
        self._progress[want] = GateProgress("verified")
        self._narrator.line(
            f"{want}: {_count(len(manifest.files), 'file')}, {format_size(manifest.total_bytes)}, {how} in "
            f"{time.monotonic() - began:.2f} s: {manifest.digest}"
        )

    def _hashing(self, want: ModelRequest, total: int) -> Callable[[int], None]:
        began = time.monotonic()
        lock = threading.Lock()
        done, reported_at = 0, began

        def report(size: int) -> None:
            nonlocal done, reported_at
            with lock:
                done += size
                now = time.monotonic()
                if now - reported_at < TELL_EVERY_S:  # thousands of calls a second: formatting would slow the hashing
                    return
                reported_at = now
                self._check_time()
                self._report(want, of_hashing(done, total, now - began))

        return report

    def _report(self, want: ModelRequest, progress: GateProgress) -> None:
        self._progress[want] = progress
        self._readiness.text = self._state()
        self._narrator.progress(str(want), progress)

    def _state(self) -> str:
        return "; ".join(f"{want}: {progress}" for want, progress in self._progress.items())

    def _report_trouble(self, changes: Changes) -> None:
        mount, daemon = daemon_status.mount_trouble(self._public), self._heartbeat.trouble()
        self._narrator.notice("mount", mount, f"{self._public.path} is there now")
        self._narrator.notice("daemon", daemon, "the daemon of this node is back")
        if changes.trouble is not None:
            self._narrator.notice("inotify", f"{changes.trouble}; looking every {LAST_PAUSE_S:g} s instead")

    def _check_time(self) -> None:
        if self._bell.stopped_by is not None:
            raise exit_codes.GateStopped(self._bell.stopped_by, self._state())
        timeout_s = self._settings.timeout_s
        if timeout_s is not None and self._left_s() <= 0:
            raise exit_codes.DeadlinePassed(timeout_s, self._state())

    def _left_s(self) -> float:
        if self._settings.timeout_s is None:
            return math.inf
        return self._started + self._settings.timeout_s - time.monotonic()

    def _folders(self) -> list[Path]:
        links = [self._public.model_link(want.ref) for want in self._settings.wanted if want not in self._held]
        return [self._public.path, self._public.models, *(link.parent for link in links)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
