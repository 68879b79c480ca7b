"""`holdfast demo`: its options, its folder, how it ends.

Law: whatever happens, the processes it started end and the folder it made goes, unless `--keep` asks for the folder.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cached.commands.common import tell_error
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, OptionParser
from cached.contract.program.units import parse_rate
from cached.demo.processes import Processes, ProcessFailed, Stopped
from cached.demo.report import Report
from cached.demo.steps import Demo, Settings
from cached.demo.workspace import Stage

_GRACE_S = 10.0
_OPENING = """Holdfast, from end to end on this machine: a real sentence encoder (all-MiniLM-L6-v2) goes into a real S3
server; a node's daemon caches it by digest; a gate holds a pod until it is there; a server embeds sentences with it.
Each is a process of its own, as in a cluster. Nothing is faked, and nothing leaves this machine."""


def main(argv: Sequence[str]) -> int:
    """`holdfast demo [--exit] [--keep] [--root DIR] [--port P] [--max-bandwidth RATE]`; returns the exit code."""
    parser = OptionParser(prog="holdfast demo", description="Run the whole path on this machine with a real model.")
    parser.switch("--exit", help="end after the last table instead of staying until Ctrl-C")
    parser.switch("--keep", help="keep the demo's folder: store, catalog, logs")
    parser.option("--root", type=Path, help="an empty or new folder for it all (default: a temporary one)")
    parser.option("--port", type=_port, default=8080, help="the inference server's port, if free (default 8080)")
    parser.option(
        "--max-bandwidth", type=_rate, default="16MiB/s", help="the network of the second, slow node (default 16MiB/s)"
    )
    options = parser.parse_args(argv)
    report = Report()
    report.text(_OPENING)
    try:
        with _folder(options.root, keep=options.keep) as folder:
            stage = Stage(folder)
            stage.prepare()
            return _run(stage, report, Settings(options.max_bandwidth, options.port), stay=not options.exit)
    except (Stopped, KeyboardInterrupt):
        report.text("\nstopped before the end; everything was cleaned up")
    except HoldfastError as error:
        tell_error("demo", error.message, error.remedy)
    return EXIT_FAILED


def _run(stage: Stage, report: Report, settings: Settings, *, stay: bool) -> int:
    with Processes(stage.logs, _GRACE_S) as processes:
        try:
            demo = Demo(stage, processes, report, settings)
            demo.play()
            if stay:
                demo.invite()
                report.text("\nCtrl-C ends it all.")
                processes.stay()
                report.text("\nending…")
        except ProcessFailed as error:
            report.text("")
            for line in error.tail:
                report.text(f"   {line}")
            raise
    return EXIT_DONE


@contextlib.contextmanager
def _folder(root: Path | None, *, keep: bool) -> Iterator[Path]:
    """The demo's folder; removed on the way out unless `keep`. A folder that already holds something is refused."""
    if root is None:
        folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    else:
        folder = root.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Permanent(
                "not_empty",
                f"{folder} is not empty: the demo would have to remove what it did not make",
                "name an empty or a new folder with --root, or none at all",
            )
    try:
        yield folder
    finally:
        if keep:
            sys.stdout.write(f"\nkept: {folder}\n")
        else:
            shutil.rmtree(folder)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError(f"expected a port, found {text!r}")
    return int(text)


def _rate(text: str) -> str:
    """A rate that the daemon will read; kept as it was written."""
    parse_rate(text)
    return text
