"""`holdfast pull`: want a version on this node, and wait until it is ready.

Law: asks through the socket, then reads the public tree. The daemon replaces an old `failed` status before it answers.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from cached.commands.shared import bars
from cached.commands.shared.common import (
    command_parser,
    describe_status,
    get_layout,
    parse_digest,
    parse_reference,
    parse_seconds,
    print_json,
    report_errors,
    run_within,
)
from cached.commands.shared.control_client import ControlClient, FetchFiles, PullAnswer
from cached.commands.shared.tree import find_held_version, read_daemon_status, read_model_status, seconds_since
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.layout import Layout, PublicLayout
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.units import format_duration
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State

if TYPE_CHECKING:
    from rich.console import Console

_POLL_S = 0.05
_ANSWER_S = 30.0
_ASK_S = 0.25
_LATER_ANSWER_S = 2.0
_LINE_EVERY_S = 2.0  # between lines of one state, where the stream is no terminal
_HEARTBEAT_LOST_S = 20.0  # it moves at least every 5 s (design, section 3)


@report_errors("pull")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast pull NAME@VERSION`; return the exit code."""
    parser = command_parser("pull", "Ask the daemon of this node for a version, and wait until it is ready.")
    parser.add_argument("ref", metavar="NAME@VERSION", type=parse_reference)
    parser.option("--digest", type=parse_digest, metavar="DIGEST", help="the manifest digest it must have, sha256:…")
    parser.switch("--refresh", help="ask the source again, although the version is here, and take what it has now")
    parser.switch("--no-wait", help="return once the daemon knows")
    patience = "stop waiting after this many seconds (the daemon goes on)"
    parser.option("--timeout", type=parse_seconds, otherwise="never", metavar="S", help=patience)
    parser.switch("--json", help="print one JSON object instead of folder and digest")
    options = parser.parse_args(argv)
    layout, started = get_layout(options), time.monotonic()
    state = "stopped before the daemon answered, which drops a pull that it has not begun"
    try:
        answer = _ask(layout, options)
        state = f"stopped waiting; the daemon goes on fetching {options.ref}"
        if options.no_wait:
            if answer.error is not None:
                raise answer.error
            _report_state(options, answer)
            return EXIT_DONE
        left_s = None if options.timeout is None else max(0.0, started + options.timeout - time.monotonic())
        patience_s = _LATER_ANSWER_S if options.timeout is None else min(_LATER_ANSWER_S, options.timeout)
        client = ControlClient(layout, patience_s)
        # Ended here: the thread that shows it may not end, and a terminal must get its cursor back.
        with contextlib.closing(_open_progress(options.ref, client)) as progress:
            pull = _Pull(client, options, answer)
            return run_within(left_s, layout, lambda: _finish(layout, pull, options, started, progress))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nholdfast pull: {state}\n")
        return EXIT_FAILED


def _ask(layout: Layout, options: argparse.Namespace) -> PullAnswer:
    """Tell the daemon what is wanted; return its first answer."""
    patience_s = _ANSWER_S if options.timeout is None else min(_ANSWER_S, options.timeout)
    client = ControlClient(layout, patience_s)
    return run_within(patience_s, layout, lambda: client.pull(options.ref, options.digest, refresh=options.refresh))


def _finish(layout: Layout, pull: _Pull, options: argparse.Namespace, started: float, progress: _Progress) -> int:
    """Wait until the version is here, and print where; return the exit code."""
    ref: ModelRef = options.ref
    _wait(layout.public, pull, options.timeout, started, progress)
    progress.close()
    held = find_held_version(layout.public, ref)
    if held is None:
        raise Transient("gone_again", f"{ref} was ready and is gone again", "pull it again, and `holdfast pin` it")
    if options.digest is not None and held.digest != options.digest:  # another want decided the digest
        raise DigestMismatch(
            f"{ref}: the manifest digest",
            f"{options.digest} (--digest)",
            f"{held.digest} (on this node)",
            "correct the digest, or ask for another version",
        )
    _warn_if_not_loadable(layout.public, ref)
    if options.json:
        print_json(
            {
                "model": ref.name,
                "version": ref.version,
                "state": State.READY.value,
                "digest": str(held.digest),
                "bytes": held.size_bytes,
                "files": held.files,
                "path": str(held.path),
            }
        )
    else:
        sys.stdout.write(f"{held.path}\n{held.digest}\n")
    return EXIT_DONE


def _report_state(options: argparse.Namespace, answer: PullAnswer) -> None:
    """Print the first answer, of a pull that is not waited for."""
    ref: ModelRef = options.ref
    if options.json:
        named = {"model": ref.name, "version": ref.version, "state": answer.state.value, "digest": answer.digest}
        print_json({**named, "bytes": None, "files": None, "path": None})
    else:
        sys.stdout.write(f"{ref} is {answer.state.value}; `holdfast status --watch` follows it\n")


def _warn_if_not_loadable(public: PublicLayout, ref: ModelRef) -> None:
    """Say what the daemon found about the version's files: it is here, and an engine may not load it."""
    status = read_model_status(public, ref)
    for finding in () if status is None else status.verdict.findings:
        if finding.fatal:
            sys.stderr.write(f"holdfast pull: {ref} may not load: {finding}\n")


class _Pull:
    """One pull and its own answer: the version's status may belong to other wants."""

    def __init__(self, client: ControlClient, options: argparse.Namespace, answer: PullAnswer) -> None:
        self.ref: ModelRef = options.ref
        self._client = client
        self._options = options
        self._answer = answer
        self._asked_at = time.monotonic()
        self._state = answer.state

    def is_ready(self, status: ModelStatus | None) -> bool:
        """Tell whether the version is ready; raises the daemon's error once the pull has failed."""
        if self._answer.id == "":  # an older daemon answers by status only, and retries what is not permanent
            if status is None:
                return False
            if status.state is State.FAILED and status.error is not None and status.error.permanent:
                raise Permanent(status.error.code, status.error.message, status.error.remedy)
            return status.state is State.READY
        changed = status is not None and status.state is not self._state
        if changed or time.monotonic() - self._asked_at >= _ASK_S:
            self._refresh_answer()
        if status is not None:
            self._state = status.state
        if self._answer.error is not None:
            raise self._answer.error
        return self._answer.digest is not None

    def _refresh_answer(self) -> None:
        """Ask again; pull again where the daemon has restarted. A daemon without an answer is detected by its
        heartbeat."""
        try:
            self._answer = self._client.get_pull(self._answer.id)
        except HoldfastError as error:
            if error.code == "unknown_pull":
                with contextlib.suppress(HoldfastError):
                    self._answer = self._client.pull(self.ref, self._options.digest, refresh=self._options.refresh)
        self._asked_at = time.monotonic()


class _Progress(Protocol):
    """The progress that a person sees, or a log has."""

    def show(self, status: ModelStatus) -> None:
        """Show a status."""

    def close(self) -> None:
        """Show no more. Idempotent."""


class _Lines:
    """Prints lines of progress: refreshed in place on a terminal, elsewhere a new line at times."""

    def __init__(self, ref: ModelRef, stream: TextIO) -> None:
        self._ref = ref
        self._stream = stream
        self._in_place = stream.isatty()
        self._shown = ""
        self._kind = ""
        self._shown_at = 0.0
        self._is_closed = False

    def show(self, status: ModelStatus) -> None:
        """Print a line; off a terminal at once for a new state, else every 2 s at most."""
        line, kind = f"{self._ref}: {describe_status(status)}", status.state.value
        if line == self._shown or self._is_closed:
            return
        now = time.monotonic()
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be drawn over
            self._stream.write(f"\r\x1b[2K{line[:width]}")
        elif kind != self._kind or now - self._shown_at >= _LINE_EVERY_S:
            self._stream.write(f"{line}\n")
        else:
            return
        self._stream.flush()
        self._shown, self._kind, self._shown_at = line, kind, now

    def close(self) -> None:
        """End the line on a terminal, which keeps it visible."""
        if self._in_place and self._shown and not self._is_closed:
            self._stream.write("\n")
            self._stream.flush()
        self._is_closed = True


class _Bars:
    """Draws a bar for the version, and one for each file that is being received. Errors are lines above them."""

    def __init__(self, ref: ModelRef, client: ControlClient, console: Console) -> None:
        self._ref = ref
        self._client = client
        self._console = console
        self._closing = contextlib.ExitStack()
        self._live = self._closing.enter_context(bars.open_live(console, whole_screen=False))
        self._error = ""
        self._asked_at = 0.0
        self._files: FetchFiles | None = None
        self._is_closed = False

    def show(self, status: ModelStatus) -> None:
        """Draw a status; ask for the files four times a second at most."""
        if time.monotonic() - self._asked_at >= _ASK_S:
            with contextlib.suppress(HoldfastError):  # the version's own bar is enough
                self._files = self._client.list_files(self._ref)
            self._asked_at = time.monotonic()
        error = "" if status.error is None or status.error.permanent else describe_status(status)
        if error and error != self._error:
            self._console.print(f"{self._ref}: {error}")
        self._error = error
        if not self._is_closed:
            self._live.update(bars.draw_pull(str(self._ref), status, self._files), refresh=True)

    def close(self) -> None:
        """Remove the bars."""
        self._is_closed = True
        self._closing.close()


def _open_progress(ref: ModelRef, client: ControlClient) -> _Progress:
    console = bars.open_console(sys.stderr)
    return _Lines(ref, sys.stderr) if console is None else _Bars(ref, client, console)


def _wait(public: PublicLayout, pull: _Pull, timeout_s: float | None, started: float, progress: _Progress) -> None:
    """Print the version's status until it is ready; raises the daemon's error once the pull has failed."""
    ref = pull.ref
    deadline = None if timeout_s is None else started + timeout_s
    while True:
        status = read_model_status(public, ref)
        ready = pull.is_ready(status)
        if status is not None:
            progress.show(status)
        if ready and find_held_version(public, ref) is not None:
            return
        _raise_if_daemon_lost(public, ref)
        if deadline is not None and time.monotonic() >= deadline:
            where = "no status yet" if status is None else describe_status(status)
            raise Transient(
                "timeout",
                f"{ref} is not ready after {timeout_s:g} s: {where}",
                "the daemon goes on; `holdfast status --watch` follows it",
            )
        time.sleep(_POLL_S)


def _raise_if_daemon_lost(public: PublicLayout, ref: ModelRef) -> None:
    daemon = read_daemon_status(public)
    if daemon is None:
        return
    silent_s = seconds_since(daemon.updated)
    if silent_s > _HEARTBEAT_LOST_S:
        raise Transient(
            "daemon_lost",
            f"waiting for {ref}, but the daemon's heartbeat stopped {format_duration(silent_s)} ago",
            "start the daemon and pull again: what it fetched so far is kept",
        )
