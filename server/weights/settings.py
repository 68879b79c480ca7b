"""How a loader uses the machine: threads, the ring of pinned memory, read sizes.

Law: numbers and their reasons; reads the environment on request, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cached.contract.errors import Permanent
from cached.contract.program.units import parse_size

PAGE = 4096
MIB = 1024 * 1024

_MAX_THREADS = 12
_SLOT = 8 * MIB
_MIN_SLOT = 64 * 1024


class Io(StrEnum):
    """Read through the page cache, past it, or by whether the bytes are cached."""

    AUTO = "auto"
    BUFFERED = "buffered"
    DIRECT = "direct"


class Backend(StrEnum):
    """How tensors come onto the CPU: `MMAP` as views of the page cache, `PREAD` as copies in this process's memory.
    Onto a GPU bytes are always read, never mapped."""

    MMAP = "mmap"
    PREAD = "pread"


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """One loader.

    `threads`: a core copies some 5 GB/s out of the page cache, so a dozen fill a Gen5 link; more only compete for the
    interpreter. `slot_bytes`: at 8 MiB and 55 GB/s there are 6 600 chunks a second, 150 µs each, which Python handles;
    smaller ones do not keep an NVMe's queue full. `slots`: one per thread, and a few for the device to copy from; 16 of
    8 MiB fit the last-level cache of hosts with such GPUs. `range_bytes`: tensors share one allocation up to about this
    size; the allocator rounds each up by at most 2 MiB, so well below 1 % is lost, and a tensor that is kept alone
    keeps no more than this. `convert_range_bytes`: smaller where the dtype changes, as a range then exists twice.
    `merge_gap`: unwanted bytes that are cheaper to read than to skip, as a call costs as much as copying these.
    `local_readers`: processes on this node that read the same files now; above one all reads use the page cache, so
    that the disk reads each byte once.
    """

    threads: int = _MAX_THREADS
    slots: int = 16
    slot_bytes: int = _SLOT
    range_bytes: int = 256 * MIB
    convert_range_bytes: int = 64 * MIB
    merge_gap: int = 64 * 1024
    streams: int = 2
    io: Io = Io.AUTO
    local_readers: int = 1

    def __post_init__(self) -> None:
        for name in ("threads", "slots", "range_bytes", "convert_range_bytes", "streams", "local_readers"):
            if getattr(self, name) < 1:
                raise _refuse(f"{name} = {getattr(self, name)}", "at least 1")
        if self.slot_bytes < _MIN_SLOT or self.slot_bytes % PAGE:
            raise _refuse(f"slot_bytes = {self.slot_bytes}", f"a multiple of {PAGE}, at least {_MIN_SLOT}")
        if self.merge_gap < 0:
            raise _refuse(f"merge_gap = {self.merge_gap}", "at least 0")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> LoaderSettings:
        """Return this machine's defaults, changed by `HOLDFAST_LOADER_THREADS`, `_SLOTS`, `_SLOT_SIZE` and `_IO`.
        `LOCAL_WORLD_SIZE`, which torchrun sets, is the number of `local_readers`, which share the processors."""
        readers = _number(environment, "LOCAL_WORLD_SIZE", 1)
        share = min(_MAX_THREADS, max(2, len(os.sched_getaffinity(0)) // readers))
        threads = _number(environment, "HOLDFAST_LOADER_THREADS", share)
        return cls(
            threads=threads,
            slots=_number(environment, "HOLDFAST_LOADER_SLOTS", max(8, threads + 4)),
            slot_bytes=_size(environment, "HOLDFAST_LOADER_SLOT_SIZE", _SLOT),
            io=_io(environment, "HOLDFAST_LOADER_IO"),
            local_readers=readers,
        )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise _refuse(f"{name}={text!r}", "a whole number above 0")
    return int(text) if text else default


def _size(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    try:
        return parse_size(text) if text else default
    except ValueError as error:
        raise _refuse(f"{name}={text!r}", str(error)) from error


def _io(environment: Mapping[str, str], name: str) -> Io:
    text = environment.get(name, "")
    try:
        return Io(text) if text else Io.AUTO
    except ValueError as error:
        raise _refuse(f"{name}={text!r}", "one of " + ", ".join(Io)) from error


def _refuse(found: str, expected: str) -> Permanent:
    return Permanent("invalid_setting", f"the loader's setting {found}: expected {expected}", "correct or unset it")
