"""The suite that every implementation of `Staging` runs, on a fake GPU; pages that cannot be pinned are a case too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.runtime import CudaError
from server.weights.cuda.staging import FilePages, RegisteredStaging, RingStaging, Staging
from server.weights.format.checkpoint import Checkpoint, open_checkpoint
from server.weights.format.selection import ByteRun
from server.weights.host.reader import Reader
from server.weights.plan import Chunk, DeviceRange, Sizes, WantedTensor, make_plan
from tests.support.checkpoints import random_raw, write
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.unit.server.weights.conftest import SMALL

# More chunks than the ring has slots; without `t3` one chunk needs two reads.
TENSORS = {f"t{number}": random_raw("U8", (90_000 + number,), number) for number in range(3)}
TENSORS |= {f"t{number}": random_raw("U8", (9_000 + number,), number) for number in range(3, 6)}
TENSORS |= {f"t{number}": random_raw("U8", (300_000 + number,), number) for number in range(6, 9)}
RING_BYTES = SMALL.slots * SMALL.slot_bytes


@dataclass(frozen=True)
class Bench:
    """A staging, and what its chunks are copied with and onto."""

    runtime: FakeRuntime
    accelerator: Accelerator
    staging: Staging
    wanted: DeviceRange

    def copy(self, chunk: Chunk, target: int) -> None:
        """Queue the copies of a chunk, and record its event, as a load does."""
        stream = self.accelerator.get_streams()[0]
        with self.staging.stage(chunk) as staged:
            for copy in chunk.copies:
                self.runtime.copy(target + copy.target, staged.base + copy.slot, copy.width, stream)
            self.runtime.record(staged.event, stream)

    def check_all(self) -> None:
        """Copy every chunk onto new memory, and compare it with the tensors."""
        target = self.runtime.allocate(self.wanted.nbytes)
        try:
            for chunk in self.wanted.chunks:
                self.copy(chunk, target.data_ptr())
        finally:
            self.drain()  # before an error frees the target
        for want, offset in self.wanted.placements:
            assert bytes(target[offset : offset + want.nbytes].numpy()) == TENSORS[want.name].data

    def drain(self) -> None:
        self.runtime.drain(self.accelerator.get_streams()[0])


def plan(checkpoint: Checkpoint) -> DeviceRange:
    """One range of all tensors but `t3`, whose bytes are a gap."""
    entries = {name: entry for name, (_, entry) in checkpoint.tensors.items() if name != "t3"}
    wants = [
        WantedTensor(name, 0, entry.end - entry.begin, (ByteRun(entry.begin, 0, entry.end - entry.begin),))
        for name, entry in entries.items()
    ]
    (wanted,) = make_plan(wants, Sizes(SMALL.slot_bytes, 1 << 30, SMALL.merge_gap)).ranges
    reads = [len(chunk.reads) for chunk in wanted.chunks]
    assert len(reads) > SMALL.slots and {1, 2} <= set(reads)
    return wanted


@pytest.fixture(params=["ring", "registered", "registered, where pages cannot be pinned"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    runtime = FakeRuntime(read_only_registration=request.param == "registered")
    accelerator = fake_accelerator(runtime, SMALL)
    path = write(tmp_path / "m.safetensors", TENSORS)
    with runtime.current(), open_checkpoint(path) as checkpoint:
        file = checkpoint.files[0]
        with closing(Reader(file, SMALL)) as reader:
            ring = RingStaging(accelerator.get_ring(), [reader])
            staging = ring if request.param == "ring" else RegisteredStaging(runtime, [FilePages(file)], ring)
            yield Bench(runtime, accelerator, staging, plan(checkpoint))
        accelerator.close()
    assert (runtime.violations, runtime.pending, runtime.registered_bytes) == ([], 0, 0)


def test_every_chunk_is_the_files_bytes(bench: Bench) -> None:
    """The device reads a chunk's bytes at its slots' offsets, also when the copies run as late as CUDA allows."""
    bench.check_all()
    bench.check_all()
    bench.staging.close()


def test_a_closed_staging_holds_nothing(bench: Bench) -> None:
    """After `close` only the ring is pinned, all its slots are free, and every event of the staging is destroyed."""
    calls = bench.runtime.calls
    bench.accelerator.get_ring()
    events = calls["cudaEventCreateWithFlags"] - calls["cudaEventDestroy"]
    bench.check_all()
    bench.staging.close()
    assert calls["cudaEventCreateWithFlags"] - calls["cudaEventDestroy"] == events
    assert (bench.runtime.registered_bytes, bench.accelerator.get_ring().lent_slots) == (RING_BYTES, 0)


def test_close_waits_for_the_copies_from_its_memory(bench: Bench) -> None:
    """Copies that are queued when a staging closes deliver the right bytes, and read no memory that was released."""
    target = bench.runtime.allocate(bench.wanted.nbytes)
    chunk = bench.wanted.chunks[0]
    bench.copy(chunk, target.data_ptr())
    bench.staging.close()
    bench.drain()
    begin, end, _ = chunk.reads[0]
    assert bytes(target[: end - begin].numpy()) == TENSORS["t0"].data[: end - begin]


def test_an_error_in_the_block_costs_its_chunk_only(bench: Bench) -> None:
    """An error that leaves `stage` after its copies were drained keeps neither a slot nor the chunks that follow."""
    for chunk in bench.wanted.chunks:
        with pytest.raises(ZeroDivisionError), bench.staging.stage(chunk):
            raise ZeroDivisionError
    bench.check_all()
    bench.staging.close()
    assert bench.accelerator.get_ring().lent_slots == 0


@pytest.mark.parametrize(
    "call", ["cudaHostRegister", "cudaHostUnregister", "cudaEventCreateWithFlags", "cudaEventSynchronize"]
)
def test_a_failed_call_leaves_nothing_pinned(bench: Bench, call: str) -> None:
    """Whichever call of the runtime fails once, `close` afterwards releases all that was pinned for the load."""
    for number in (1, 2, 7):
        bench.runtime.fail[call] = (bench.runtime.calls[call] + number, 999)
        with suppress(CudaError):
            bench.check_all()
        bench.runtime.fail.clear()
    bench.staging.close()
    assert (bench.runtime.registered_bytes, bench.accelerator.get_ring().lent_slots) == (RING_BYTES, 0)
    bench.check_all()
    bench.staging.close()
