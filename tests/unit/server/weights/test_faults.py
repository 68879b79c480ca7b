from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from cached.contract.errors import HoldfastError, Permanent, Transient
from server import iter_tensors, load_file
from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.runtime import CudaError
from tests.support.checkpoints import Raw, random_raw, same, write
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.unit.server.weights.conftest import SMALL


@pytest.fixture
def tensors() -> dict[str, Raw]:
    """A megabyte: some twenty chunks in six ranges."""
    return {f"t{number}": random_raw("F32", (40, 1000 + number), number) for number in range(7)}


@pytest.fixture
def path(tensors: dict[str, Raw], tmp_path: Path) -> Path:
    return write(tmp_path / "m.safetensors", tensors)


def copies(path: Path) -> int:
    """How many copies a load of the file makes."""
    runtime = FakeRuntime()
    load_file(path, fake_accelerator(runtime, SMALL))
    return runtime.calls["cudaMemcpyAsync"]


def at_copy(number: int, cancel: threading.Event) -> Callable[[int], None]:
    """Set `cancel` when the copy of this number is queued."""

    def seen(found: int) -> None:
        if found == number:
            cancel.set()

    return seen


def test_a_load_cancelled_at_any_copy_leaves_nothing_behind(path: Path, tensors: dict[str, Raw]) -> None:
    """Wherever the cancellation comes, copies are drained before memory goes, and the next load is right."""
    for number in range(1, copies(path) + 1):
        runtime = FakeRuntime()
        accelerator = fake_accelerator(runtime, SMALL)
        cancel = threading.Event()
        runtime.on_copy = at_copy(number, cancel)
        try:
            found = load_file(path, accelerator, cancel=cancel)
        except Transient as error:
            assert error.code == "load_cancelled"
        else:  # too late to stop: then everything is there
            assert all(same(found[name], raw.tensor()) for name, raw in tensors.items())
            del found
        assert (runtime.pending, runtime.allocated, runtime.violations) == (0, 0, [])
        assert accelerator.get_ring().lent_slots == 0
        if number % 6 == 0:
            runtime.on_copy = lambda seen: None
            again = load_file(path, accelerator)
            assert all(same(again[name], raw.tensor()) for name, raw in tensors.items())


CALLS = [
    "cudaSetDevice",
    "cudaHostRegister",
    "cudaStreamCreateWithFlags",
    "cudaEventCreateWithFlags",
    "cudaMemcpyAsync",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaStreamWaitEvent",
    "cudaStreamSynchronize",
    "cudaMemGetInfo",
]


@pytest.mark.parametrize("call", CALLS)
def test_any_failing_call_is_named_and_nothing_is_freed_too_early(
    call: str, path: Path, tensors: dict[str, Raw]
) -> None:
    """Whichever call of the runtime fails, the first or a later one, the error names it and the next load is right."""
    for number in (1, 2, 7):
        runtime = FakeRuntime()
        accelerator = fake_accelerator(runtime, SMALL)
        runtime.fail[call] = (number, 999)
        try:
            load_file(path, accelerator)
        except CudaError as error:
            assert (error.call, error.number) == (call, 999)
            assert error.code == "cuda_error"
        else:
            assert runtime.calls[call] < number
        assert (runtime.violations, runtime.allocated) == ([], 0)
        runtime.fail.clear()
        again = load_file(path, accelerator)
        assert all(same(again[name], raw.tensor()) for name, raw in tensors.items())
        assert (runtime.pending, accelerator.get_ring().lent_slots) == (0, 0)


def test_a_file_cut_while_it_is_read_is_an_error(path: Path, accelerator: Accelerator) -> None:
    """Truncation at any time after the header is an error that says so: never a signal, never wrong bytes."""
    whole = path.read_bytes()
    seen = 0
    for keep in range(len(whole) - 4096, 70_000, -190_000):
        path.write_bytes(whole)
        iterator = iter_tensors(path, accelerator)
        try:
            next(iterator)
            with path.open("r+b") as file:
                file.truncate(keep)
            with pytest.raises(Permanent) as caught:
                list(iterator)
        finally:
            iterator.close()  # type: ignore[attr-defined]
        assert caught.value.code == "weights_changed"
        seen += 1
    assert seen > 3


def test_a_file_written_to_while_it_is_read_is_an_error(path: Path, accelerator: Accelerator) -> None:
    """A change in place of the same length is noticed when the load ends."""
    iterator = iter_tensors(path, accelerator)
    next(iterator)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    with pytest.raises(Permanent, match="written to while") as caught:
        list(iterator)
    assert caught.value.code == "weights_changed"


def test_a_replaced_file_is_still_the_one_that_was_opened(
    path: Path, tensors: dict[str, Raw], accelerator: Accelerator
) -> None:
    """Another file renamed over the path changes nothing for a load that began."""
    iterator = iter_tensors(path, accelerator)
    name, tensor = next(iterator)
    write(path.with_name("new"), {"x": random_raw("U8", (9,), 1)}).rename(path)
    found = {name: tensor, **dict(iterator)}
    assert all(same(found[name], raw.tensor()) for name, raw in tensors.items())


def test_no_memory_in_the_middle_is_drained(path: Path, tensors: dict[str, Raw]) -> None:
    """An allocation that fails while other ranges are being filled is reported, and those are drained first."""
    runtime = FakeRuntime()
    accelerator = fake_accelerator(runtime, SMALL)
    allocate, made = runtime.allocate, 0

    class Scarce:
        def allocate(self, nbytes: int) -> torch.Tensor:
            nonlocal made
            made += 1
            if made == 3:
                raise Permanent("gpu_memory", "no room", "none")
            return allocate(nbytes)

        def stream(self) -> int:
            return 1 << 20

        def reusable(self) -> int:
            return 0

        def current(self) -> AbstractContextManager[object]:
            return runtime.current()

    accelerator.memory = Scarce()
    with pytest.raises(HoldfastError, match="no room"):
        load_file(path, accelerator)
    assert (runtime.pending, runtime.allocated, runtime.violations) == (0, 0, [])
    found = load_file(path, accelerator)
    assert all(same(found[name], raw.tensor()) for name, raw in tensors.items())


def test_the_fake_catches_a_slot_that_is_used_too_early() -> None:
    """Bytes are taken from a slot as late as CUDA may: overwriting it before its event gives the wrong ones."""
    runtime = FakeRuntime()
    accelerator = fake_accelerator(runtime, SMALL)
    target = runtime.allocate(4)
    stream = accelerator.get_streams()[0]
    with accelerator.get_ring().lend() as (slot, _):
        slot.view[:4] = b"good"
        runtime.copy(target.data_ptr(), slot.address, 4, stream)
        slot.view[:4] = b"evil"
        runtime.record(slot.event, stream)
    runtime.synchronize(slot.event)
    assert bytes(target.numpy()) == b"evil"
    runtime.copy(target.data_ptr(), slot.address, 4, stream)
    del target
    assert runtime.violations == ["freed while a copy writes it"]
    runtime.unregister(slot.address - slot.address % (2 << 20))
    assert runtime.violations[1:] == ["unregistered while a copy reads it"]
