"""Turn samples into medians, ratios and tables.

Law: pure arithmetic and text; reads no clock and no file. A ratio compares two rows of one round, so that a slower
machine slows both; figures are medians over the rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

_GB = 1e9
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of one round: `size` bytes in `wall_s` seconds, for `cpu_s` CPU seconds and `peak_bytes` of memory."""

    row: str
    round: int
    size: int
    wall_s: float
    cpu_s: float
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.size / self.wall_s

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds per 10^9 bytes."""
        return self.cpu_s / (self.size / _GB)


@dataclass(frozen=True, slots=True)
class Figures:
    """One row over all rounds: medians, but the largest peak of memory. `ratios` are by the reference row."""

    row: str
    rounds: int
    wall_s: float
    gb_per_s: float
    cpu_s_per_gb: float
    peak_bytes: int
    ratios: dict[str, float]


@dataclass(frozen=True, slots=True)
class Target:
    """A required figure: `found` must be at least, or at most, `bound`."""

    what: str
    found: float
    bound: float
    at_least: bool
    unit: str

    @property
    def met(self) -> bool:
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "MISSED"
        return f"{self.what}: {self.found:.2f}{self.unit}, target {sign} {self.bound:g}{self.unit}: {verdict}"


def ratio(samples: Iterable[Sample], row: str, reference: str) -> float | None:
    """Return the median ratio of the two rows' rates within a round; None without a pair."""
    return _paired({(s.row, s.round): s.rate for s in samples}, row, reference)


def cpu_ratio(samples: Iterable[Sample], row: str, reference: str) -> float | None:
    """Return the median ratio of the two rows' CPU times within a round; None without a pair."""
    return _paired({(s.row, s.round): s.cpu_s for s in samples}, row, reference)


def fastest(samples: Sequence[Sample], rows: Iterable[str]) -> str | None:
    """Return the row among `rows` with the highest median rate; None where none of them ran."""
    rates = {row: [s.rate for s in samples if s.row == row] for row in rows}
    measured = {row: median(found) for row, found in rates.items() if found}
    return max(measured, key=measured.__getitem__) if measured else None


def figures(samples: Sequence[Sample], rows: Iterable[str], references: Sequence[str]) -> list[Figures]:
    """Return `Figures` for each of `rows` that ran, in order, with the ratio to each of `references`."""
    made = []
    for row in rows:
        own = [s for s in samples if s.row == row]
        if not own:
            continue
        compared = {reference: ratio(samples, row, reference) for reference in references}
        made.append(
            Figures(
                row,
                len(own),
                median(s.wall_s for s in own),
                median(s.rate for s in own) / _GB,
                median(s.cpu_s_per_gb for s in own),
                max(s.peak_bytes for s in own),
                {reference: found for reference, found in compared.items() if found is not None},
            )
        )
    return made


def table(rows: Sequence[Figures], references: Sequence[str]) -> str:
    """Return the rows as a Markdown table, with a column of ratios for each of `references`."""
    head = ["row", "wall s", "GB/s", "CPU s/GB", "peak MiB", *(f"x {reference}" for reference in references)]
    body = [
        [
            row.row,
            f"{row.wall_s:.2f}",
            f"{row.gb_per_s:.2f}",
            f"{row.cpu_s_per_gb:.2f}",
            f"{row.peak_bytes / _MIB:.0f}",
            *(f"{row.ratios[r]:.2f}" if r in row.ratios else "-" for r in references),
        ]
        for row in rows
    ]
    return grid(head, body)


def grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, padded to read as plain text: first column left-aligned, figures right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(head), rule, *map(line, body)])


def bullets(lines: Iterable[object]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def _paired(values: Mapping[tuple[str, int], float], row: str, reference: str) -> float | None:
    """Return the median, over the rounds that have both rows, of one row's value by the other's."""
    paired = [
        value / values[reference, round_]
        for (name, round_), value in values.items()
        if name == row and (reference, round_) in values
    ]
    return median(paired) if paired else None


def document(samples: Sequence[Sample], rows: Sequence[Figures], targets: Sequence[Target]) -> dict[str, Any]:
    """Return every sample, the figures and the targets as one JSON object."""
    return {
        "samples": [asdict(s) for s in samples],
        "figures": [asdict(f) for f in rows],
        "targets": [asdict(t) | {"met": t.met} for t in targets],
    }
