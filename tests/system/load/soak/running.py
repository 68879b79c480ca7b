"""Run the soak: live for a while, look all the time, and judge.

Law: takes its time from the monotonic clock; says what it found and leaves the verdict to its caller.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon import daemon_process
from tests.system.load.soak.life import OPTIONS, Life
from tests.system.load.soak.vitals import Sample, Vitals, gains, growing, table

_STEP_S = 0.25
_SAMPLES = 720  # of a run of any length


@dataclass(frozen=True)
class Outcome:
    """What a soak found: `missing` are versions that did not come in the end, `code` the daemon's exit code."""

    seed: int
    samples: list[Sample]
    happened: dict[str, int]
    missing: list[str]
    code: int

    @property
    def growing(self) -> dict[str, float]:
        """The vital signs that are not level."""
        return growing(self.samples)

    def report(self) -> str:
        """The whole run for a person."""
        acts = ", ".join(f"{name} {count}" for name, count in sorted(self.happened.items()))
        gained = ", ".join(f"{sign} {gain:+.2f}" for sign, gain in gains(self.samples).items())
        hours = self.samples[-1].at_s / 3600
        return "\n".join(
            [
                f"seed {self.seed}, {hours:.2f} h, {len(self.samples)} samples",
                f"happened: {acts}",
                f"gained after the warm-up: {gained}",
                f"not level: {self.growing or 'nothing'}",
                f"not ready in the end: {self.missing or 'nothing'}",
                f"exit code of the daemon: {self.code}",
                "",
                table(self.samples, 20),
            ]
        )


def soak(folder: Path, duration_s: float, seed: int, tell: Callable[[Sample], None]) -> Outcome:
    """Soak one daemon in `folder` for so many seconds; `tell` hears of every sample."""
    every_s = max(1.0, duration_s / _SAMPLES)
    with daemon_process(folder, *OPTIONS) as daemon, Life(folder, seed, daemon) as life:
        daemon.start()
        vitals = Vitals(daemon.pid, daemon.layout, daemon.log_file)
        end = time.monotonic() + duration_s
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            life.step()
            if now >= due:
                due = now + every_s
                tell(vitals.look(daemon.get("/metrics")[1]))
            time.sleep(_STEP_S)
            assert daemon.code() is None, f"seed {seed}: the daemon ended with {daemon.code()}: {daemon.log()[-4000:]}"
        missing = life.settle()
        return Outcome(seed, vitals.samples, life.happened, missing, daemon.stop())


def any_seed() -> int:
    """A seed to print, so that a run can be repeated."""
    return int.from_bytes(os.urandom(4))
