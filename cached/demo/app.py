"""`holdfast demo`: its options, its folder, its exit.

Law: on every way out the processes end and the folder is removed, unless `--keep` asks for the folder.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cached.commands.common import print_error
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, OptionParser, parse_address
from cached.contract.program.units import parse_rate
from cached.demo.components import Demo
from cached.demo.processes import Processes, ProcessFailed, Stopped
from cached.demo.report import Report
from cached.demo.workspace import Stage

_OPENING = """Holdfast, from end to end on this machine: a real sentence encoder (all-MiniLM-L6-v2) goes into a real S3
server; a node's daemon caches it by digest; a gate holds a pod until it is there; a server embeds sentences with it.
Each is a process of its own, as in a cluster. Nothing is faked, and nothing leaves this machine."""


def main(argv: Sequence[str]) -> int:
    """Run `holdfast demo [--exit] [--keep] [--root DIR] [--port P] [--max-bandwidth RATE]`; return the exit code."""
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
            with Processes(stage.logs, grace_s=10.0) as processes:
                demo = Demo(stage, processes, report, port=options.port, slow_rate=options.max_bandwidth)
                demo.play()
                if not options.exit:
                    demo.invite()
                    report.text("\nCtrl-C ends it all.")
                    processes.stay()
                    report.text("\nending…")
        return EXIT_DONE
    except (Stopped, KeyboardInterrupt):
        report.text("\nstopped before the end; everything was cleaned up")
    except HoldfastError as error:
        if isinstance(error, ProcessFailed):
            report.text("\n".join(["", *(f"   {line}" for line in error.tail)]))
        print_error("demo", error.message, error.remedy)
    return EXIT_FAILED


@contextlib.contextmanager
def _folder(root: Path | None, *, keep: bool) -> Iterator[Path]:
    """Make the demo's folder, and remove it on the way out unless `keep`; refuse one with content."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-")) if root is None else root.absolute()
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
    return parse_address(f"127.0.0.1:{text}")[1]


def _rate(text: str) -> str:
    parse_rate(text)
    return text
