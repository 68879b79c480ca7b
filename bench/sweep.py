"""Try the loader's settings one axis at a time on a device, and report the fastest.

Law: one process, so that a context is made once; on each axis the candidates take turns, and the one with the best
median is kept for the next axis. Two passes over the axes, since the best value of one depends on the others.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from bench import pages, report
from bench.load_report import State
from bench.measure import failed
from server.weights.settings import MIB, Io, LoaderSettings

if TYPE_CHECKING:
    from server.weights.cuda.accelerator import Accelerator

    Make = Callable[[LoaderSettings], Accelerator]

_PASSES = 2
_TURNS = {State.WARM: 3, State.COLD: 1}
Axes: TypeAlias = tuple[tuple[str, tuple[Any, ...]], ...]  # names of settings, and values to try
_AXES: dict[State, Axes] = {
    State.WARM: (
        ("threads", (4, 6, 8, 10, 12, 14, 16, 20)),
        ("slot_bytes", tuple(size * MIB for size in (1, 2, 4, 8, 16, 32))),
        ("slots", (8, 12, 16, 20, 24, 32, 48, 64)),
        ("streams", (1, 2, 3, 4)),
        ("range_bytes", tuple(size * MIB for size in (64, 256, 1024))),
    ),
    State.COLD: (
        ("io", (Io.DIRECT, Io.BUFFERED, Io.AUTO)),
        ("threads", (8, 12, 16, 24, 32)),
        ("slot_bytes", tuple(size * MIB for size in (2, 4, 8, 16, 32))),
        ("slots", (16, 24, 32, 48, 64)),
    ),
}


def sweep(files: Sequence[Path], device: str, states: Sequence[State], left: Callable[[], float]) -> str:
    """Return tables of the tried settings and the best ones of each state; `left` returns the remaining seconds."""
    make = _maker(device)
    parts = []
    for state in states:
        rows, best = search(files, state, _AXES[state], make, left)
        spelled = ", ".join(f"{name}={_spell(getattr(best, name))}" for name, _ in _AXES[state])
        head = ["settings", "axis", "s", "GB/s", "x default"]
        parts.append(f"{state.capitalize()}:\n\n{report.grid(head, rows)}\n\n- best: {spelled}")
    return "\n\n".join(parts)


def search(
    files: Sequence[Path], state: State, axes: Axes, make: Make, left: Callable[[], float]
) -> tuple[list[list[str]], LoaderSettings]:
    """Return a table's rows, in the order tried, and the settings with the best median."""
    size = sum(path.stat().st_size for path in files)
    best = LoaderSettings.from_environment()
    default_s = 0.0
    rows: list[list[str]] = []
    for _, (axis, values) in itertools.product(range(_PASSES), axes):
        candidates = list(_candidates(best, axis, values))
        times = _turns(files, state, make, candidates, left)
        if not times:  # out of time
            break
        default_s = default_s or times[candidates[0]]
        for found, seconds in times.items():
            label = f"{axis} {_spell(getattr(found, axis))}"
            rate = size / seconds / 1e9
            rows.append([label, axis, f"{seconds:.3f}", f"{rate:.2f}", f"{default_s / seconds:.3f}"])
            print(f"{state}: {label}: {seconds:.3f} s, {rate:.2f} GB/s", flush=True)
        best = min(times, key=times.__getitem__)
    return rows, best


def _candidates(best: LoaderSettings, axis: str, values: Sequence[Any]) -> Iterator[LoaderSettings]:
    """Yield the best settings so far, then the others, always with more slots than threads."""
    yield best
    for value in values:
        if value != getattr(best, axis):
            changed = replace(best, **{axis: value})
            yield replace(changed, slots=max(changed.slots, changed.threads + 2))


def _turns(
    files: Sequence[Path], state: State, make: Make, candidates: Sequence[LoaderSettings], left: Callable[[], float]
) -> dict[LoaderSettings, float]:
    """Return the candidates' medians; empty where the time is too short for a whole turn."""
    times: dict[LoaderSettings, list[float]] = {candidate: [] for candidate in candidates}
    turn_s = 0.0
    for _ in range(_TURNS[state]):
        if left() < turn_s:
            break
        began = time.monotonic()
        for candidate in candidates:
            if left() < 0:
                return {}
            with closing(make(candidate)) as accelerator:
                times[candidate].append(_timed(files, state, accelerator))
        turn_s = time.monotonic() - began
    return {candidate: median(found) for candidate, found in times.items() if found}


def _timed(files: Sequence[Path], state: State, accelerator: Accelerator) -> float:
    from server import load_file

    if state is State.WARM:
        pages.warm(files)
        load_file(list(files), accelerator)  # it chooses the method and fills the allocator
    else:
        accelerator.get_ring()
        if not pages.is_cold(share := pages.drop(files)):
            raise failed(f"{share:.1%} of the files' pages stay in the page cache", "sweep with --states warm")
    gc.collect()
    began = time.perf_counter()
    load_file(list(files), accelerator)
    for stream in accelerator.get_streams():
        accelerator.runtime.drain(stream)
    return time.perf_counter() - began


def _maker(device: str) -> Make:
    import torch

    from server.weights.cuda.accelerator import Accelerator, TorchMemory
    from server.weights.cuda.cudart import CudaRuntime, load_library

    named = torch.device(device)
    if named.type != "cuda":
        raise failed(f"a sweep has nothing to set on {device}: the CPU maps the files", "sweep on a machine with a GPU")
    if named.index is None:
        named = torch.device("cuda", torch.cuda.current_device())
    library = load_library()
    return lambda settings: Accelerator(named, CudaRuntime(library, named.index), TorchMemory(named), settings)


def _spell(value: object) -> str:
    return f"{value // MIB} MiB" if isinstance(value, int) and value >= MIB else str(value)
