"""`make soak`: hours of a node's life in fast motion, with the vital signs of its daemon printed as they come.

Law: exit code 0 where memory, descriptors, threads, metrics, files and log are level after the warm-up, what is wanted
is there in the end, and SIGTERM ends the daemon with 0; else 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.system.load.soak.running import any_seed, soak
from tests.system.load.soak.vitals import Sample

_UNITS = {"s": 1, "m": 60, "h": 3600}


def main() -> int:
    """Run the soak; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.load.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--duration", type=_seconds, default="2h", help="how long, as 90s, 15m or 2h (default 2h)")
    parser.add_argument("--seed", type=int, default=any_seed(), help="repeats an earlier run's choices")
    options = parser.parse_args()
    # Not /tmp, which is often a file system in memory.
    with tempfile.TemporaryDirectory(prefix="holdfast-soak-", dir="/var/tmp") as folder:
        outcome = soak(Path(folder), options.duration, options.seed, _tell)
    print(f"\n{outcome.report()}")
    return 1 if outcome.growing or outcome.missing or outcome.code else 0


def _tell(sample: Sample) -> None:
    print("  ".join(f"{name} {value:.1f}" for name, value in asdict(sample).items()), flush=True)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90s, 15m or 2h, found {text!r}")
    return float(match[1]) * _UNITS[match[2]]


if __name__ == "__main__":
    sys.exit(main())
