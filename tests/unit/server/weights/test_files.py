from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file as reference_load_file
from safetensors.torch import save_file

from cached.contract.errors import Permanent, Transient
from server import iter_tensors, load_file
from server.weights import report
from server.weights.cuda.accelerator import Accelerator
from tests.support.checkpoints import PLAIN, Raw, contents, descriptors, random_raw, same, write
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.unit.server.weights.conftest import SMALL

ANY = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@ANY
@given(tensors=contents(), pad=st.integers(0, 20), dtype=st.sampled_from([None, torch.bfloat16, torch.float32]))
def test_tensors_are_what_the_file_says(
    tensors: dict[str, Raw], pad: int, dtype: torch.dtype | None, accelerator: Accelerator, tmp_path: Path
) -> None:
    """Any dtypes, shapes and offsets arrive to the bit on both devices, and convert as torch converts them."""
    path = write(tmp_path / "m.safetensors", tensors, pad=pad)
    plain = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
    for device in ("cpu", accelerator):
        found = load_file(path, device, dtype=dtype)
        assert list(found) == list(tensors)
        for name, raw in tensors.items():
            expected = raw.tensor()
            if dtype is not None and expected.dtype in plain:
                expected = expected.to(found[name].device).to(dtype)
            assert same(found[name], expected)


@pytest.mark.parametrize("dtype", PLAIN)
def test_every_dtype_is_the_reference_readers(dtype: str, accelerator: Accelerator, tmp_path: Path) -> None:
    """For each dtype of the format the safetensors package reads the same tensor."""
    path = write(tmp_path / "m.safetensors", {"t": random_raw(dtype, (48, 100), 3)})
    expected = reference_load_file(path)["t"]
    for device in ("cpu", accelerator):
        assert same(load_file(path, device)["t"], expected)


def test_packed_numbers_have_half_the_columns(accelerator: Accelerator, tmp_path: Path) -> None:
    """F4 becomes torch's packed type with the last length halved, and an odd last length is refused by name."""
    path = write(tmp_path / "m.safetensors", {"t": random_raw("F4", (6, 8), 1)})
    expected = reference_load_file(path)["t"]
    for device in ("cpu", accelerator):
        assert same(load_file(path, device)["t"], expected)
    odd = write(tmp_path / "odd.safetensors", {"t": random_raw("F4", (2, 3), 1)})
    with pytest.raises(Permanent, match=r"'t' is F4 of shape \[2, 3\]"):
        load_file(odd, accelerator)


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_a_dtype_that_torch_lacks_is_refused_by_name(dtype: str, accelerator: Accelerator, tmp_path: Path) -> None:
    """The file is read, other tensors load, and the one that cannot be made says why."""
    path = write(tmp_path / "m.safetensors", {"six": random_raw(dtype, (4,), 1), "ok": random_raw("F32", (4,), 1)})
    for device in ("cpu", accelerator):
        with pytest.raises(Permanent, match=f"'six' is {dtype}") as caught:
            load_file(path, device)
        assert caught.value.code == "unsupported_dtype"
        assert list(load_file(path, device, keys=["ok"])) == ["ok"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of three shards with an index."""
    weight_map = {}
    for number in range(3):
        tensors = {f"t{number}.{i}": random_raw("BF16", (100 + i, 301), number * 9 + i) for i in range(4)}
        write(tmp_path / f"{number}.safetensors", tensors)
        weight_map.update(dict.fromkeys(tensors, f"{number}.safetensors"))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_a_folder_is_its_shards(shards: Path, accelerator: Accelerator) -> None:
    """A folder, the list of its files and each file give the same tensors, and `keys` some of them."""
    files = sorted(shards.glob("*.safetensors"))
    expected = {name: tensor for path in files for name, tensor in reference_load_file(path).items()}
    for device in ("cpu", accelerator):
        for source in (shards, files, [str(path) for path in files]):
            found = load_file(source, device)
            assert found.keys() == expected.keys()
            assert all(same(found[name], tensor) for name, tensor in expected.items())
        assert list(load_file(shards, device, keys={"t2.1", "t0.3"})) == ["t0.3", "t2.1"]
        with pytest.raises(Permanent, match="'nope'"):
            load_file(shards, device, keys={"nope"})


def test_tensors_come_one_by_one_in_bounded_memory(shards: Path, accelerator: Accelerator) -> None:
    """A consumer that drops each tensor sees all of them in order while three ranges at most exist."""
    expected = load_file(shards)
    free, _ = accelerator.get_free_memory()
    most = 0
    names = []
    for name, tensor in iter_tensors(shards, accelerator):
        assert same(tensor, expected[name])
        names.append(name)
        del tensor
        most = max(most, free - accelerator.get_free_memory()[0])
    assert names == list(expected)
    if accelerator.device.type == "cpu":  # the allocator of a real device gives its own blocks back when it likes
        assert most <= 3 * (accelerator.settings.range_bytes + 2 * 101 * 301 * 2)


def test_threads_that_wait_keep_no_range(tmp_path: Path, fake: FakeRuntime) -> None:
    """With a consumer that holds one tensor at a time, three ranges at most exist, however many threads had one."""
    settings = replace(SMALL, range_bytes=SMALL.slot_bytes)
    path = write(tmp_path / "m.safetensors", {f"t{n}": random_raw("U8", (SMALL.slot_bytes,), n) for n in range(40)})
    assert sum(1 for _ in iter_tensors(path, fake_accelerator(fake, settings))) == 40
    assert fake.peak <= 3 * (settings.range_bytes + 512)


def test_the_device_holds_the_weights_and_one_chunk_at_most(shards: Path, fake: FakeRuntime) -> None:
    """Raw bytes take 1 % and one chunk more than the weights at most, and three ranges where they are converted."""
    accelerator = fake_accelerator(fake, SMALL)
    found = load_file(shards, accelerator)
    assert fake.peak <= sum(tensor.nbytes for tensor in found.values()) * 1.01 + SMALL.slot_bytes
    del found
    fake.peak = 0
    load_file(shards, accelerator, dtype=torch.float32)
    assert fake.peak <= 3 * (SMALL.convert_range_bytes + 104 * 301 * 2)


def test_a_consumer_may_stop_early(shards: Path, accelerator: Accelerator) -> None:
    """Closing the iterator after any tensor leaves nothing under way, and what was taken stays right."""
    expected = load_file(shards)
    for count in range(1, len(expected)):
        iterator = iter_tensors(shards, accelerator)
        taken = dict(next(iterator) for _ in range(count))
        iterator.close()  # type: ignore[attr-defined]
        assert all(same(tensor, expected[name]) for name, tensor in taken.items())


def test_threads_share_one_ring(shards: Path, accelerator: Accelerator) -> None:
    """Loads at the same time from several threads are each right."""
    expected = load_file(shards)
    results: list[dict[str, torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: results.append(load_file(shards, accelerator))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(same(found[name], tensor) for found in results for name, tensor in expected.items())


def test_the_ring_is_pinned_once(shards: Path, accelerator: Accelerator) -> None:
    """A second load pins nothing more, and closing the accelerator gives the slots back."""
    load_file(shards, accelerator)
    before = accelerator.get_ring()
    load_file(shards, accelerator)
    assert accelerator.get_ring() is before
    assert before.lent_slots == 0


def test_a_full_device_is_refused_with_both_numbers(tmp_path: Path, accelerator: Accelerator) -> None:
    """Weights that do not fit are refused before anything is allocated, with what is needed and what is free."""
    _, total = accelerator.get_free_memory()
    path = tmp_path / "m.safetensors"
    header = json.dumps({"t": {"dtype": "U8", "shape": [total], "data_offsets": [0, total]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + total)
    with pytest.raises(Permanent, match=r"for the weights.* free of") as caught:
        load_file(path, accelerator)
    assert caught.value.code == "gpu_memory"


def test_a_load_is_reported(shards: Path, accelerator: Accelerator) -> None:
    """A listener gets each load's bytes, stages and bound until it stops listening."""
    heard: list[report.LoadReport] = []
    stop = report.subscribe(heard.append)
    found = load_file(shards, accelerator)
    list(iter_tensors(shards))
    stop()
    load_file(shards)
    on_device, on_host = heard
    # Of a GPU that can read registered pages, either way may be the faster.
    assert on_device.method == "ring" or (accelerator.device.type == "cuda" and on_device.method == "registered")
    assert on_host.method == "mapped"
    assert on_device.bytes == sum(tensor.nbytes for tensor in found.values())
    assert (on_device.files, on_device.tensors) == (3, 12)
    assert on_device.bytes <= on_device.device_bytes <= on_device.bytes * 1.01
    assert on_device.bound in ("disk", "copy", "pcie")
    assert on_host.bound == "nothing"
    assert report.list_recent()[-3:-1] == heard


def test_a_cancelled_load_says_so(shards: Path, accelerator: Accelerator) -> None:
    """A load whose event is set ends with a transient error."""
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Transient) as caught:
        load_file(shards, accelerator, cancel=cancel)
    assert caught.value.code == "load_cancelled"


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:nine"])
def test_another_device_is_refused(device: str, tmp_path: Path) -> None:
    """Only the CPU and CUDA devices are loaded onto."""
    with pytest.raises(Permanent) as caught:
        load_file(tmp_path, device)
    assert caught.value.code == "unsupported_device"


def test_a_tensor_outlives_its_file(tmp_path: Path, accelerator: Accelerator) -> None:
    """Tensors stay right after the file is gone."""
    expected = torch.arange(5000.0)
    save_file({"t": expected}, tmp_path / "m.safetensors")
    found = [load_file(tmp_path / "m.safetensors", device)["t"] for device in ("cpu", accelerator)]
    (tmp_path / "m.safetensors").unlink()
    assert all(same(tensor, expected) for tensor in found)


def damage(path: Path, how: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(how(path.read_bytes()))
    return path


def test_nothing_is_left_open(shards: Path, accelerator: Accelerator) -> None:
    """Good loads and refused ones close every file."""
    for device in ("cpu", accelerator):
        load_file(shards, device)
        with pytest.raises(Permanent):
            load_file([*sorted(shards.glob("*.safetensors")), shards / "absent"], device)
    damage(shards / "1.safetensors", lambda data: data[:-1])
    with pytest.raises(Permanent, match="file has"):
        load_file(shards, accelerator)
    assert descriptors(shards) == []
