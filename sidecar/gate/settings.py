"""The gate's options, from the command line and the environment.

Law: values only; every mistake is a usage error (exit 2) that names the option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import HoldfastError
from cached.contract.layout import DEFAULT_MOUNT, PublicLayout
from cached.contract.program.options import OptionParser, parse_address, whole_number
from cached.contract.program.processors import count_processors
from cached.contract.program.termination_log import DEFAULT_TERMINATION_LOG, find_termination_log
from cached.contract.reference import ModelRef, ModelRequest, add_pins, parse_models

_LISTEN = ("0.0.0.0", 9401)  # noqa: S104 - the kubelet comes from outside the pod
_parse_threads = whole_number(1, 1 << 22, "a whole number")  # the kernel's limit of threads (PID_MAX_LIMIT)


@dataclass(frozen=True, slots=True)
class GateOptions:
    """The options of one gate. `timeout_s` may be infinite; `listen` None: no probes; `full`: hash every file;
    `waits_for_correction`: wait where the daemon refuses a version for a reason outside the pod."""

    public: PublicLayout
    wanted: tuple[ModelRequest, ...]
    full: bool
    threads: int
    timeout_s: float
    once: bool
    waits_for_correction: bool
    listen: tuple[str, int] | None
    termination_log: Path | None


def parse(arguments: Sequence[str]) -> GateOptions:
    """Parse the options; exits with 2 where they are invalid."""
    parser = _parser()
    given = parser.parse_args(list(arguments))
    try:
        wanted = _wanted(given.model, given.version, given.models, given.digest)
    except (HoldfastError, ValueError) as error:
        parser.error(str(error))
    return GateOptions(
        public=PublicLayout(given.root),
        wanted=wanted,
        full=given.verify == "full",
        threads=given.threads or count_processors(),
        timeout_s=math.inf if given.timeout is None else given.timeout,
        once=given.once,
        waits_for_correction=given.wait_for_correction,
        listen=given.listen or (None if given.once else _LISTEN),
        termination_log=find_termination_log(given.termination_log),
    )


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="holdfast gate",
        description="Hold until model versions are on this node and verified, then hold their leases until SIGTERM.",
        epilog="exit codes: 0 ready, 1 failed, 2 usage, 65 checksum mismatch, 69 the daemon says this can never be, "
        "75 deadline passed, 128 + N stopped by signal N before the gate was open",
    )
    parser.option("--root", type=Path, default=str(DEFAULT_MOUNT), metavar="DIR", help="the public folder")
    parser.option("--model", metavar="NAME", help="the model's name; with --version")
    parser.option("--version", metavar="V", help="the model's version")
    several = "instead, several: alias=name@version,…; alias= may be left out"
    parser.option("--models", type=parse_models, metavar="MODELS", help=several)
    pins = "the only manifest digest that will do: sha256:…, or of several models alias=sha256:…,name@version=sha256:…"
    parser.option("--digest", metavar="DIGEST", help=pins)
    verify = "record: compare size, mtime and inode with the daemon's record; full: hash every file"
    parser.option("--verify", choices=("record", "full"), default="record", help=verify)
    threads = "threads for --verify full"
    parser.option("--threads", type=_parse_threads, otherwise="all allowed CPUs", metavar="N", help=threads)
    timeout = "seconds to wait at most"
    parser.option("--timeout", type=_parse_seconds, otherwise="for ever", metavar="S", help=timeout)
    parser.switch("--once", help="exit when ready instead of staying")
    correction = (
        "wait, where the daemon refuses a version, for a correction of the catalog, source, space or credentials"
    )
    parser.switch("--wait-for-correction", help=f"{correction}, instead of exiting with 65 or 69")
    listen, usual = "answer /readyz, /healthz and /metrics here", f"{_LISTEN[0]}:{_LISTEN[1]}, with --once nowhere"
    parser.option("--listen", type=parse_address, otherwise=usual, metavar="HOST:PORT", help=listen)
    log, usual = "write the reason of a failure here", f"{DEFAULT_TERMINATION_LOG} where that exists"
    parser.option("--termination-log", type=Path, otherwise=usual, metavar="FILE", help=log)
    parser.log_format()
    return parser


def _wanted(
    name: str | None, version: str | None, models: tuple[ModelRequest, ...] | None, pins: str | None
) -> tuple[ModelRequest, ...]:
    if models is None:
        if not name or not version:
            raise ValueError("expected --model and --version, or --models")
        models = (ModelRequest(ModelRef(name, version)),)
    elif name or version:
        raise ValueError("expected --model and --version, or --models, found both")
    return add_pins(models, pins) if pins else models


def _parse_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"expected seconds from 0, found {text!r}")
    return seconds
