"""Measure the machine's limit without a loader: the same bytes from pinned memory, the page cache, or the disk.

Law: no safetensors and no tensors. Every ceiling is the best of several sizes in one run, since a low ceiling flatters.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from bench.measure import failed

PINNED, HOST = "pinned copy", "read + sum"
FIO, DIRECT = "fio O_DIRECT", "O_DIRECT reads"
_MIB = 1024 * 1024
_PIECE = 64 * _MIB
_RING = 128 * _MIB  # the size of the loader's own ring
_COPY_SLOTS = (2 * _MIB, 4 * _MIB, 8 * _MIB, 16 * _MIB, 32 * _MIB)
_COPY_STREAMS = (1, 2)
_HOST_BUFFERS = (256 * 1024, _MIB, 4 * _MIB)
_DISK_BLOCK = 8 * _MIB
_FIO_BLOCK = 4 * _MIB
_DISK_THREADS = (8, 16, 32)


def pinned_copy(nbytes: int, device: str) -> float:
    """Return the seconds to copy `nbytes` from a ring of pinned memory to the device."""
    import torch

    from server.weights.cuda.cudart import CudaRuntime, load_library
    from server.weights.cuda.processors import find_near
    from server.weights.cuda.ring import Ring

    index = torch.device(device).index or 0
    runtime = CudaRuntime(load_library(), index)
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    streams = [runtime.new_stream() for _ in range(max(_COPY_STREAMS))]
    processors = find_near(runtime.get_pci_bus_id())
    times = []
    for size in _COPY_SLOTS:
        ring = Ring(runtime, _RING // size, size, processors)
        slots = []
        for _ in range(_RING // size):
            with ring.lend() as (slot, _waited):
                slots.append(slot.address)
        for count in _COPY_STREAMS:
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            for number, at in enumerate(range(0, nbytes, size)):
                source = slots[number % len(slots)]
                runtime.copy(target.data_ptr() + at, source, min(size, nbytes - at), streams[number % count])
            for stream in streams[:count]:
                runtime.drain(stream)
            times.append(time.perf_counter() - began)
        ring.close()
    for stream in streams:
        runtime.destroy_stream(stream)
    return min(times)


def read_and_sum(files: Sequence[Path]) -> float:
    """Return the seconds in which all cores sum every byte, from read buffers or from mapped pages."""
    jobs = [(path, at) for path in files for at in range(0, path.stat().st_size, _PIECE)]
    count = len(os.sched_getaffinity(0))

    def timed(add_up: Callable[[tuple[Path, int]], int]) -> float:
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            list(pool.map(add_up, jobs))
            return time.perf_counter() - began

    return min([timed(_sum_mapped), *(timed(partial(_sum_read, size=size)) for size in _HOST_BUFFERS)])


def direct_reads(files: Sequence[Path], scratch: Path) -> tuple[str, float]:
    """Return the name and bytes a second of direct reads: fio where it is installed, else our own."""
    program = shutil.which("fio")
    large = [path for path in files if path.stat().st_size >= _FIO_BLOCK]  # fio refuses a file smaller than a block
    return (FIO, _fio(program, large, scratch)) if program and large else (DIRECT, _own_direct(files))


def _sum_read(job: tuple[Path, int], size: int) -> int:
    path, at = job
    total, buffer = 0, np.empty(size // 8, np.int64)
    view = buffer.data.cast("B")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for offset in range(at, at + _PIECE, size):
            count = os.preadv(descriptor, [view], offset)
            total += int(buffer[: count // 8].sum())
            if count < size:
                break
    finally:
        os.close(descriptor)
    return total


def _sum_mapped(job: tuple[Path, int]) -> int:
    path, at = job
    with path.open("rb") as file:
        size = min(_PIECE, path.stat().st_size - at)
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ, offset=at)
    return int(np.frombuffer(mapped, np.int64, size // 8).sum())


def _fio(program: str, files: Sequence[Path], scratch: Path) -> float:
    """Read each file sequentially: one after another with a deep queue, and all at once; return the better rate."""
    common = [program, "--rw=read", f"--bs={_FIO_BLOCK}", "--direct=1", "--ioengine=libaio", "--readonly"]
    common += ["--group_reporting", "--file_service_type=sequential", "--output-format=json"]
    names = [str(path).replace(":", "\\:") for path in files]
    one = ["--iodepth=32", "--name=read", f"--filename={':'.join(names)}"]
    each = [word for name in names for word in ("--name=read", "--iodepth=16", f"--filename={name}")]
    rates = []
    for layout in (one, each):
        done = subprocess.run([*common, *layout], capture_output=True, text=True, check=False, cwd=scratch)
        if done.returncode != 0:
            raise failed(f"fio ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
        found = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
        rates.append(float(found["io_bytes"]) / max(float(found["runtime"]) / 1000, 1e-3))
    return max(rates)


def _own_direct(files: Sequence[Path]) -> float:
    size = sum(path.stat().st_size for path in files)
    jobs = [(path, at) for path in files for at in range(0, path.stat().st_size, _PIECE)]
    times = []
    for count in _DISK_THREADS:
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            list(pool.map(_read_direct, jobs))
            times.append(time.perf_counter() - began)
    return size / min(times)


def _read_direct(job: tuple[Path, int]) -> None:
    path, at = job
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise failed(
            f"{path} cannot be opened with O_DIRECT: {error.strerror}", "work on another file system"
        ) from error
    try:
        with mmap.mmap(-1, _DISK_BLOCK) as buffer:
            for offset in range(at, at + _PIECE, _DISK_BLOCK):
                if os.preadv(descriptor, [buffer], offset) < _DISK_BLOCK:
                    break
    finally:
        os.close(descriptor)
