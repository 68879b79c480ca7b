"""Measure one load in a child process: wall time, CPU time, memory of the host and of the device.

Law: the child is warmed up before it is timed: interpreter, library, device context, and one load of a small file for a
loader's one-time work. It then waits until the page cache is in its row's state. Memory is sampled from this process,
at no cost to the child; pages of the mapped files are never counted.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.ceiling import HOST, PINNED, pinned_copy, read_and_sum
from bench.checkpoints import fingerprint
from bench.loaders import BY_NAME, OURS
from bench.measure import failed, tail

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from bench.loaders import Load

_SAMPLE_S = 0.01
_START_S = 180
_BATCH = 16 * 1024 * 1024


class _Stage(Enum):
    BASELINE = auto()
    READY = auto()


@dataclass(frozen=True, slots=True)
class Job:
    """Load `files` (`size` bytes) with `row` onto `device`, after `small`.

    `cached`: the files are in the page cache. `check`: hash the loaded tensors.
    """

    row: str
    files: tuple[Path, ...]
    size: int
    small: Path
    device: str
    cached: bool
    check: bool
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and CPU seconds of the load, and of reading every byte afterwards (on the CPU only, else 0).

    `reserved` is the peak of torch's device allocator in bytes. `how` is the loader's own report.
    """

    load_s: float
    load_cpu_s: float
    touch_s: float = 0.0
    touch_cpu_s: float = 0.0
    reserved: int = 0
    how: str = ""


@dataclass(frozen=True, slots=True)
class Watched:
    """`timing`, and the peak bytes of host and device memory above those before the library's import."""

    timing: Timing
    host_bytes: int
    device_bytes: int
    fingerprint: str | None


def watch(job: Job, log: Path, prepare: Callable[[], None], device_free: Callable[[], int]) -> Watched:
    """Run `job` in a new process; call `prepare` right before it is timed. Raises `Permanent` where it fails."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, job, log), name=f"bench {job.row}")
    process.start()
    theirs.close()
    try:
        return _follow(job, ours, process.pid or 0, prepare, device_free)
    except (EOFError, OSError) as error:
        raise failed(f"{job.row} ended: {tail(log)}") from error
    finally:
        ours.close()
        process.kill()
        process.join()


def _follow(
    job: Job, connection: Connection, pid: int, prepare: Callable[[], None], device_free: Callable[[], int]
) -> Watched:
    _expect(connection, job, _START_S)
    host, free = host_memory(pid), device_free()
    connection.send(None)
    _expect(connection, job, _START_S)
    prepare()
    most, least = host_memory(pid), device_free()
    connection.send(None)
    deadline = time.monotonic() + job.timeout_s
    while not connection.poll(_SAMPLE_S):
        most, least = max(most, host_memory(pid)), min(least, device_free())
        if time.monotonic() > deadline:
            raise failed(f"{job.row} ran past {job.timeout_s:.0f} s")
    timing: Timing = connection.recv()
    most, least = max(most, host_memory(pid)), min(least, device_free())
    connection.send(None)
    found = None
    if job.check:
        if not connection.poll(_START_S + job.timeout_s):
            raise failed(f"{job.row} did not hash what it loaded in time")
        found = connection.recv()
    return Watched(timing, most - host, free - least, found)


def _expect(connection: Connection, job: Job, timeout_s: float) -> None:
    if not connection.poll(timeout_s):
        raise failed(f"{job.row} did not start within {timeout_s:.0f} s")
    connection.recv()


def host_memory(pid: int) -> int:
    """Return a process's anonymous and shared memory in bytes, with pinned memory, without mapped files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))
    )


def _child(connection: Connection, job: Job, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    import torch

    if job.device != "cpu":
        torch.empty(1, device=job.device)
        torch.cuda.synchronize(job.device)
    connection.send(_Stage.BASELINE)
    connection.recv()
    if job.row == PINNED:
        _hand_over(connection, lambda: Timing(pinned_copy(job.size, job.device), 0.0))
    elif job.row == HOST:
        _hand_over(connection, lambda: Timing(0.0, 0.0, read_and_sum(job.files), 0.0))
    else:
        _measure(connection, job, BY_NAME[job.row].load)


def _hand_over(connection: Connection, measure: Callable[[], Timing]) -> None:
    connection.send(_Stage.READY)
    connection.recv()
    connection.send(measure())
    connection.recv()


def _measure(connection: Connection, job: Job, load: Load) -> None:
    load([job.small], job.device, job.cached)
    gc.collect()
    tensors: dict[str, torch.Tensor] = {}

    def timed() -> Timing:
        nonlocal tensors
        began, cpu = time.perf_counter(), time.process_time()
        tensors = load(job.files, job.device, job.cached)
        _synchronize(job.device)
        loaded, loaded_cpu = time.perf_counter(), time.process_time()
        if job.device != "cpu":
            return Timing(loaded - began, loaded_cpu - cpu, reserved=_reserved(job.device), how=_how(job.row))
        touch(tensors.values())
        touched, touched_cpu = time.perf_counter(), time.process_time()
        return Timing(loaded - began, loaded_cpu - cpu, touched - loaded, touched_cpu - loaded_cpu, how=_how(job.row))

    _hand_over(connection, timed)
    if job.check:
        connection.send(fingerprint(tensors))


def touch(tensors: Iterable[torch.Tensor]) -> int:
    """Sum every byte of CPU tensors on all cores, without a barrier after each tensor.

    torch's own sum has one, at which its threads spin: on a machine with other work that was most of the measured time.
    """
    import torch

    batches: list[list[NDArray[np.uint8]]] = [[]]
    room = _BATCH
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8).numpy()
        for at in range(0, len(flat), _BATCH):
            batches[-1].append(flat[at : at + _BATCH])
            room -= len(batches[-1][-1])
            if room <= 0:
                batches.append([])
                room = _BATCH
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return sum(pool.map(_add_up, batches))


def _add_up(pieces: list[NDArray[np.uint8]]) -> int:
    total = 0
    for piece in pieces:
        whole = len(piece) // 8 * 8
        total += int(piece[:whole].view(np.int64).sum()) + int(piece[whole:].sum())
    return total


def _synchronize(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def _reserved(device: str) -> int:
    import torch

    return torch.cuda.max_memory_reserved(device)


def _how(row: str) -> str:
    if row != OURS:
        return ""
    from server.weights.report import list_recent

    last = list_recent()[-1]
    stages = ", ".join(
        f"{name} {getattr(last.stages, name):.3f}"
        for name in ("headers", "plan", "allocate", "convert", "read", "copy", "wait")
    )
    return f"{last.method}, bound by {last.bound}; seconds: {stages}"
