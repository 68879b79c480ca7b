"""Report the runs of bench.load: tables of medians, shares of the ceiling, targets.

Law: pure arithmetic and text; a share or ratio compares two rows of one round and one state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from bench import report
from bench.ceiling import DIRECT, FIO, HOST, PINNED
from bench.loaders import INSTANTTENSOR, OURS, PEERS
from bench.loading import Watched
from bench.pages import is_cold, is_warm

_MIB = 1024 * 1024
_CEILINGS = (PINNED, HOST, FIO, DIRECT)
_CHUNK = 8 * _MIB  # the slot of our ring
_H200_GB_PER_S = 48.5  # InstantTensor's docs/benchmark.md: 61.1 GB from memory in 1.26 s


class State(StrEnum):
    """Whether all bytes are in the page cache before a row, or none."""

    WARM = "warm"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class Run:
    """One row of one round. `sample` includes the touch; `cached` is the share of pages cached before the load.

    `device_bytes` is the device memory used, `reserved` the peak of torch's allocator in it.
    """

    state: State
    sample: report.Sample
    load_s: float
    cached: float
    device_bytes: int
    reserved: int
    how: str

    @classmethod
    def of(cls, row: str, state: State, round_: int, size: int, cached: float, watched: Watched) -> Run:
        timing = watched.timing
        sample = report.Sample(
            row,
            round_,
            size,
            timing.load_s + timing.touch_s,
            timing.load_cpu_s + timing.touch_cpu_s,
            watched.host_bytes,
        )
        return cls(state, sample, timing.load_s, cached, watched.device_bytes, timing.reserved, timing.how)

    @classmethod
    def of_ceiling(cls, row: str, state: State, round_: int, size: int, cached: float, rate: float) -> Run:
        return cls(state, report.Sample(row, round_, size, size / rate, 0.0, 0), 0.0, cached, 0, 0, "")

    @property
    def in_state(self) -> bool:
        """Whether the page cache was in the stated state."""
        return is_warm(self.cached) if self.state is State.WARM else is_cold(self.cached)

    def __str__(self) -> str:
        found = self.sample
        said = "" if self.in_state else f", NOT {self.state}: {self.cached:.1%} cached"
        how = f" ({self.how})" if self.how else ""
        return f"{self.state}: {found.row}: {found.wall_s:.3f} s, {found.rate / 1e9:.2f} GB/s{said}{how}"


def text(runs: Sequence[Run], device: str, notes: Sequence[str]) -> str:
    """Return one table a state, then targets and notes."""
    parts = []
    for state in State:
        of_state = [run for run in runs if run.state is state]
        if of_state:
            parts.append(f"{state.capitalize()}:\n\n{_table(of_state, device)}")
    parts.append(report.bullets([*targets(runs, device), *_strays(runs), *notes]))
    return "\n\n".join(part for part in parts if part)


def document(runs: Sequence[Run], device: str, notes: Sequence[str]) -> dict[str, Any]:
    """Return runs, targets and notes as one JSON object."""
    return {
        "runs": [asdict(run) for run in runs],
        "targets": [asdict(target) | {"met": target.met} for target in targets(runs, device)],
        "notes": list(notes),
    }


def targets(runs: Sequence[Run], device: str) -> list[report.Target]:
    """Return the targets that these runs measure; a run outside its state does not count."""
    made = []
    for state in State:
        samples = [run.sample for run in runs if run.state is state and run.in_state]
        limit = report.fastest(samples, _CEILINGS)
        if device == "cpu":
            if state is State.WARM and (best := report.fastest(samples, PEERS)) is not None:
                made += _ratio(f"warm, touched, rate against {best}", samples, best, 1.0)
            continue
        if limit is not None:
            made += _ratio(f"{state}, share of {limit}", samples, limit, 0.95)
        made += _ratio(f"{state}, rate against {INSTANTTENSOR}", samples, INSTANTTENSOR, 1.0)
        own = [sample.rate / 1e9 for sample in samples if sample.row == OURS]
        if state is State.WARM and own:
            made.append(report.Target("warm, on one H200", median(own), _H200_GB_PER_S, True, " GB/s"))
    extra = [run for run in runs if run.sample.row == OURS]
    if device != "cpu" and extra:
        found = max(run.device_bytes - run.sample.size for run in extra) / _MIB
        bound = (extra[0].sample.size / 100 + _CHUNK) / _MIB
        made.append(report.Target("device memory above the weights", found, bound, False, " MiB"))
    return made


def _ratio(what: str, samples: Sequence[report.Sample], reference: str, bound: float) -> list[report.Target]:
    found = report.ratio(samples, OURS, reference)
    return [] if found is None else [report.Target(what, found, bound, True, " x")]


def _table(runs: Sequence[Run], device: str) -> str:
    samples = [run.sample for run in runs]
    limit, best = report.fastest(samples, _CEILINGS), report.fastest(samples, PEERS)
    references = [name for name in (limit, best) if name is not None]
    names = list(dict.fromkeys(sample.row for sample in sorted(samples, key=_order)))
    on_cpu = device == "cpu"
    head = ["row", *(["load s", "load + touch s"] if on_cpu else ["load s"]), "GB/s"]
    head += [f"of {limit}"] if limit else []
    head += [f"x {best}"] if best else []
    head += ["CPU s/GB", "host MiB", *([] if on_cpu else ["device MiB", "torch MiB"]), "cached before"]
    body = []
    for figure in report.figures(samples, names, references):
        own = [run for run in runs if run.sample.row == figure.row]
        body.append(_cells(figure, own, references, on_cpu))
    return report.grid(head, body)


def _cells(figure: report.Figures, own: Sequence[Run], references: Sequence[str], on_cpu: bool) -> list[str]:
    is_loader = figure.row not in _CEILINGS
    size = own[0].sample.size
    seconds = [f"{median(run.load_s for run in own):.3f}" if is_loader else "-"]
    above = [max(run.device_bytes for run in own) - size, max(run.reserved for run in own) - size]
    return [
        figure.row,
        *([*seconds, f"{figure.wall_s:.3f}"] if on_cpu else [f"{figure.wall_s:.3f}"]),
        f"{figure.gb_per_s:.2f}",
        *(f"{figure.ratios[name]:.2f}" if name in figure.ratios else "-" for name in references),
        f"{figure.cpu_s_per_gb:.2f}" if is_loader else "-",
        f"{figure.peak_bytes / _MIB:.0f}" if is_loader else "-",
        *([] if on_cpu else [f"{found / _MIB:.0f}" if is_loader else "-" for found in above]),
        f"{median(run.cached for run in own):.1%}",
    ]


def _strays(runs: Sequence[Run]) -> list[str]:
    """Return a note for each run outside its state."""
    found = [run for run in runs if not run.in_state]
    return [
        f"{run.sample.row}, round {run.sample.round}: not {run.state}, {run.cached:.1%} of its pages were cached"
        for run in found
    ]


def _order(sample: report.Sample) -> tuple[bool, int]:
    known = (OURS, *PEERS)
    return sample.row in _CEILINGS, known.index(sample.row) if sample.row in known else 0
