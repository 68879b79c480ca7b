"""A process's vital signs over time, and whether they are level.

Law: reads /proc and the daemon's own port and tree; decides by a fitted line over what came after the warm-up.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from cached.contract.layout import TEMPORARY_PREFIX, Layout
from tests.support.processes import memory

_MIB = 1 << 20
_WARM_UP = 1 / 3  # of the samples: pools fill, caches of the interpreter grow
_SLACK = {  # what may be gained between the ends of the fitted line, however long the run
    "anonymous_mib": 6.0,
    "pss_mib": 8.0,
    "descriptors": 6.0,
    "threads": 4.0,
    "series": 6.0,
    "temporaries": 3.0,
    "status_files": 12.0,  # they come and go with the versions; each version's own series do too
    "log_lines_per_s": 5.0,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `at_s`: seconds since the first; memory in MiB, the rest are counts."""

    at_s: float
    anonymous_mib: float
    pss_mib: float
    descriptors: float
    threads: float
    series: float
    temporaries: float
    status_files: float
    log_lines_per_s: float


class Vitals:
    """Takes samples of one daemon."""

    def __init__(self, pid: int, layout: Layout, log: Path) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._layout = layout
        self._log = log
        self._log_bytes = 0
        self._began = self._last = time.monotonic()

    def look(self, metrics: str) -> Sample:
        """Take a sample; `metrics` is what the daemon's `/metrics` says now."""
        now = time.monotonic()
        held = memory(self._pid)
        sample = Sample(
            at_s=now - self._began,
            anonymous_mib=held["Anonymous"] / _MIB,
            pss_mib=held["Pss"] / _MIB,
            descriptors=len(os.listdir(f"/proc/{self._pid}/fd")),
            threads=len(os.listdir(f"/proc/{self._pid}/task")),
            series=sum(1 for line in metrics.splitlines() if line and line[0] != "#" and 'model="' not in line),
            temporaries=self._temporaries(),
            status_files=self._statuses(),
            log_lines_per_s=self._lines() / max(1.0, now - self._last),
        )
        self._last = now
        self.samples.append(sample)
        return sample

    def _lines(self) -> int:
        with self._log.open("rb") as file:
            file.seek(self._log_bytes)
            text = file.read()
        self._log_bytes += len(text)
        return text.count(b"\n")

    def _statuses(self) -> int:
        """Status files but for failures: a pull of what left the catalog since keeps its answer for ten minutes."""
        count = 0
        for path in self._layout.public.status.glob("*/*.json"):
            with contextlib.suppress(FileNotFoundError):
                count += b'"state": "failed"' not in path.read_bytes()
        return count

    def _temporaries(self) -> int:
        """What publication and deletion leave behind only while they are at it."""
        found = sum(
            name.startswith(TEMPORARY_PREFIX)
            for _, folders, files in os.walk(self._layout.root)
            for name in (*folders, *files)
        )
        return found + sum(len(os.listdir(folder)) for folder in (self._layout.trash, self._layout.quarantine))


def gains(samples: Sequence[Sample]) -> dict[str, float]:
    """What a line fitted to each sign gains from the end of the warm-up to the last sample (Theil and Sen: the median
    of the slopes of all pairs, so that no single look decides)."""
    level = samples[int(len(samples) * _WARM_UP) :]
    span_s = level[-1].at_s - level[0].at_s
    times = [sample.at_s for sample in level]
    return {sign: _slope(times, [asdict(sample)[sign] for sample in level]) * span_s for sign in _SLACK}


def growing(samples: Sequence[Sample]) -> dict[str, float]:
    """The signs that gained more than they may, with what they gained."""
    return {sign: gain for sign, gain in gains(samples).items() if gain > _SLACK[sign]}


def table(samples: Iterable[Sample], rows: int) -> str:
    """At most about so many samples as a table in Markdown."""
    found = list(samples)
    names = [field.name for field in fields(Sample)]
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    chosen = found[:: max(1, len(found) // rows)]
    lines += ["| " + " | ".join(f"{value:.1f}" for value in asdict(sample).values()) + " |" for sample in chosen]
    return "\n".join(lines)


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    step = max(1, len(times) // 300)  # all pairs of a night's samples would be millions
    points = list(zip(times, values, strict=True))[::step]
    return median((v2 - v1) / (t2 - t1) for i, (t1, v1) in enumerate(points) for t2, v2 in points[i + 1 :])
