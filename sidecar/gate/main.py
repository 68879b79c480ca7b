"""`holdfast gate`: block a pod's start until its versions are on this node and verified, then hold their leases.

Law: reads a read-only mount and uses no network: no port of the daemon, no token, no Kubernetes API. Standard library
and watchdog only, and imports nothing that a version already present does not need.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import SnapshotLayout
from cached.contract.program.options import LOG_JSON, find_log_format
from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRequest
from cached.contract.snapshot.verify import check_full, check_record, load_manifest
from cached.contract.status import ModelStatus, State
from sidecar.gate import daemon_status, exit_codes
from sidecar.gate.doubts import GateDoubts, Identity
from sidecar.gate.probe import GateReadiness, Probe
from sidecar.gate.progress import (
    EventOutput,
    GateProgress,
    ProgressPrinter,
    TextOutput,
    of_hashing,
    of_refusal,
    of_status,
)
from sidecar.gate.settings import GateOptions, parse
from sidecar.gate.snapshot import ChangingSnapshot, HeldSnapshot, InvalidLink, hold_snapshot, still_named
from sidecar.gate.wakeup import FolderWatch, Wakeup

if TYPE_CHECKING:  # loaded with `--log-format json` only
    from cached.contract.program.events import EventWriter

# The first check after an event may be too early (a temporary symlink is created, then renamed, and watchdog may report
# the rename half a second late), so checks follow quickly, then ever more slowly, down to the rate of plain polling.
FIRST_PAUSE_S = 0.005
LAST_PAUSE_S = 1.0
DOUBT_PAUSE_S = 0.2  # the most while the daemon is asked: no watched folder tells of its verdict
REPORT_EVERY_S = 0.1
FOLLOW_EVERY_S = 5.0
_NOT_BEGUN = (State.QUEUED, State.RESOLVING)  # without progress of its own
SILENCE_S = 10.0  # without a status file, after which the gate prints a hint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gate; return its exit code."""
    started = time.monotonic()
    arguments = sys.argv[1:] if argv is None else argv
    log = _open_events(arguments)
    settings = parse(arguments)
    wakeup = Wakeup()
    readiness = GateReadiness()
    printer = ProgressPrinter(TextOutput(sys.stderr) if log is None else EventOutput(log))
    try:
        if settings.listen is not None:
            printer.print_line(f"probes on http://{Probe(settings.listen, readiness).address}")
        gate = Gate(settings, wakeup, printer, readiness, started)
        gate.open()
    except HoldfastError as error:
        exit_codes.write_reason(error, settings.termination_log, log)
        return exit_codes.code_of(error)
    while not settings.once and wakeup.stopped_by is None:
        wakeup.wait(FOLLOW_EVERY_S)
        gate.follow()
    return exit_codes.READY


def _open_events(arguments: Sequence[str]) -> EventWriter | None:
    if find_log_format(arguments) != LOG_JSON:
        return None
    from cached.contract.program import events, pod

    made = events.open_events("gate", arguments)
    if made is not None:
        made.add_constant(pod=pod.find_name() or "", node=pod.find_node() or "")
    return made


class Gate:
    """One gate: opens once, and holds its leases until the process ends. `started` is in monotonic seconds."""

    def __init__(
        self, settings: GateOptions, wakeup: Wakeup, printer: ProgressPrinter, readiness: GateReadiness, started: float
    ) -> None:
        self._settings = settings
        self._public = settings.public
        self._wakeup = wakeup
        self._printer = printer
        self._readiness = readiness
        self._started = started
        self._heartbeat = daemon_status.Heartbeat(settings.public, time.monotonic, time.time)
        self._doubts = GateDoubts(settings.public, time.monotonic)
        self._held: dict[ModelRequest, HeldSnapshot] = {}
        self._progress: dict[ModelRequest, GateProgress] = {}
        self._remedies: dict[ModelRequest, str] = {}  # of the daemon's errors, while there are any

    def open(self) -> None:
        """Return when every version is present, verified and leased; raises `HoldfastError` where that fails."""
        with closing(FolderWatch(self._wakeup)) as watch, closing(self._doubts):
            pause_s = FIRST_PAUSE_S
            while not self._check():
                self._check_time()
                self._report_trouble(watch)
                if watch.follow(self._folders()):
                    continue  # a version may have appeared before the watch began
                woken = self._wakeup.wait(min(pause_s, self._left_s()))
                most_s = DOUBT_PAUSE_S if self._doubts.any else LAST_PAUSE_S
                pause_s = FIRST_PAUSE_S if woken else min(pause_s * 2, most_s)
        self._readiness.opened_at = time.time()
        waited_s = time.monotonic() - self._started
        self._printer.print_line(f"open after {waited_s:.2f} s; {_count(len(self._held), 'lease')} held")

    def follow(self) -> None:
        """Move the leases to the snapshots' current folders, as a repair replaces a corrupt one under its name."""
        for want, held in self._held.items():
            trouble = None
            try:
                held.lease.relock(held.snapshot.lease)
            except OSError as error:
                trouble = f"{want}: its lease cannot be read: {error}; trying again"
            self._printer.print_notice(f"lease {want}", trouble, f"{want}: its lease can be read again", want)

    def _check(self) -> bool:
        """Hold the versions that are present and not held yet; return whether all are held."""
        for want in self._settings.wanted:
            if want not in self._held:
                with self._doubting_names(want):
                    self._hold_or_report(want)
        for want, held in list(self._held.items()):
            # One may be replaced while the gate waits for another; the pod would then read an unleased snapshot.
            named = False
            with self._doubting_names(want):
                named = still_named(self._public, want.ref, held)
            if not named:
                held.lease.close()
                del self._held[want]
        return len(self._held) == len(self._settings.wanted)

    @contextmanager
    def _doubting_names(self, want: ModelRequest) -> Iterator[None]:
        """Have the daemon look at a name that is no symlink to a snapshot, which it puts right, before that ends us."""
        try:
            yield
        except InvalidLink as error:
            self._doubt(want, None, error)

    def _hold_or_report(self, want: ModelRequest) -> None:
        doubted = self._doubts.check(want)
        if doubted is not None:
            self._report_doubt(want, *doubted)
            return
        found = hold_snapshot(self._public, want.ref)
        if found is not None:
            self._report_error(want, None)
        if found is None:
            self._report_status(want)
        elif isinstance(found, ChangingSnapshot):
            self._report(want, GateProgress("published, but", found.reason))
        else:
            self._verify_and_hold(want, found)

    def _verify_and_hold(self, want: ModelRequest, found: HeldSnapshot) -> None:
        """Verify a snapshot and hold it. If the daemon withdraws it as corrupt during that, which a lease does not
        prevent, this is no mismatch; else the daemon is asked to look at it now."""
        seen = self._doubts.identify(want, found.snapshot)
        try:
            self._verify(want, found)
        except BaseException as error:
            found.lease.close()
            if not isinstance(error, exit_codes.Unverified):
                raise
            if still_named(self._public, want.ref, found):
                if want.pin is not None and want.pin.hex != found.snapshot.path.name:
                    raise  # nothing on the node can meet it
                self._doubt(want, found.snapshot, error, seen)
            else:
                self._report(want, GateProgress("withdrawn while it was verified;", "waiting for it to come back"))
        else:
            self._held[want] = found

    def _doubt(
        self, want: ModelRequest, snapshot: SnapshotLayout | None, error: Permanent, seen: Identity | None = None
    ) -> None:
        if not self._doubts.add(want, snapshot, error, seen):
            return  # the next look is due at once
        self._printer.print_line(f"{error.message}; the daemon of this node is asked to look at it now", want)
        self._report_doubt(want, error, None)

    def _report_doubt(self, want: ModelRequest, error: Permanent, status: ModelStatus | None) -> None:
        """Report a version whose verdict is waited for; `status`: of the daemon while it hashes the version."""
        if status is not None:
            self._report(want, of_status(status))
        else:
            self._report(want, GateProgress(f"refused ({error.message}),", "waiting for the daemon"), is_told=True)

    def _report_status(self, want: ModelRequest) -> None:
        status = daemon_status.read_status(self._public, want.ref)
        waited_s = time.monotonic() - self._started
        silent = status is None and waited_s >= SILENCE_S
        hint = daemon_status.describe_silence(self._public, want, SILENCE_S) if silent else None
        self._printer.print_notice(f"silence {want}", hint, f"{want}: the daemon speaks of it now", want)
        if status is None:
            self._report_error(want, None)
            self._report(want, GateProgress("waiting", f"for {format_duration(waited_s)}, no status yet"))
            return
        refusal = daemon_status.find_refusal(status, want)
        if refusal is not None and (refusal.only_by_pod or not self._settings.waits_for_correction):
            raise exit_codes.DaemonRefused(want, refusal.reason)
        error = daemon_status.describe_error(want, status, refusal)
        self._report_error(want, error, "" if status.error is None else status.error.remedy)
        if refusal is not None:
            self._report(want, of_refusal(refusal.reason.message), is_told=True)
        else:
            self._report(want, of_status(status), is_told=error is not None and status.state in _NOT_BEGUN)

    def _report_error(self, want: ModelRequest, text: str | None, remedy: str = "") -> None:
        """Print the daemon's error of `want` when it appears, changes or ends (None)."""
        self._printer.print_notice(f"error {want}", text, f"{want}: the daemon's last error is over", want)
        if text is None or not remedy:
            self._remedies.pop(want, None)
        else:
            self._remedies[want] = remedy

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
        self._printer.print_line(
            f"{want}: {_count(len(manifest.files), 'file')}, {format_size(manifest.total_bytes)}, {how} in "
            f"{time.monotonic() - began:.2f} s: {manifest.digest}",
            want,
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
                if now - reported_at < REPORT_EVERY_S:  # thousands of calls a second: formatting is slow
                    return
                reported_at = now
                self._check_time()
                self._report(want, of_hashing(done, total, now - began))

        return report

    def _report(self, want: ModelRequest, progress: GateProgress, *, is_told: bool = False) -> None:
        """Report the progress of `want`; `is_told`: a notice in the log says it already."""
        self._progress[want] = progress
        self._readiness.text = self._state()
        if is_told:
            self._printer.print_reminder(want, progress)
        else:
            self._printer.print_progress(want, progress)

    def _state(self) -> str:
        states = "; ".join(f"{want}: {progress}" for want, progress in self._progress.items())
        return states or f"no look at {', '.join(map(str, self._settings.wanted))} ended yet"

    def _report_trouble(self, watch: FolderWatch) -> None:
        mount, daemon = daemon_status.find_mount_trouble(self._public), self._heartbeat.find_trouble()
        self._printer.print_notice("mount", mount, f"{self._public.path} is there now")
        self._printer.print_notice("daemon", daemon, "the daemon of this node is back")
        if watch.trouble is not None:
            self._printer.print_notice("inotify", f"{watch.trouble}; looking every {LAST_PAUSE_S:g} s instead")

    def _check_time(self) -> None:
        if self._wakeup.stopped_by is not None:
            raise exit_codes.GateStopped(self._wakeup.stopped_by, self._state())
        if self._left_s() <= 0:
            raise exit_codes.DeadlinePassed(
                self._settings.timeout_s, self._state(), list(dict.fromkeys(self._remedies.values()))
            )

    def _left_s(self) -> float:
        return self._started + self._settings.timeout_s - time.monotonic()

    def _folders(self) -> list[Path]:
        links = [self._public.model_link(want.ref) for want in self._settings.wanted if want not in self._held]
        return [self._public.path, self._public.models, *(link.parent for link in links)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
