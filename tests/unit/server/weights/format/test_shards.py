from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import Permanent
from server import Shards, iter_tensors, load_file, safe_open
from server.weights import report
from server.weights.cuda.accelerator import Accelerator
from tests.support.checkpoints import random_raw, same, write
from tests.support.fake_cuda import fake_accelerator
from tests.unit.server.weights.conftest import SMALL

# A layer as Megatron cuts it: the outputs of `up`, the inputs of `down`, the vocabulary's rows; norms whole.
RAWS = {
    "embed.weight": random_raw("BF16", (1024, 48), 1),
    "layers.0.norm.weight": random_raw("F32", (48,), 2),
    "layers.0.qkv.weight": random_raw("BF16", (3, 96, 48), 3),
    "layers.0.up.bias": random_raw("F32", (4096,), 4),
    "layers.0.up.weight": random_raw("BF16", (4096, 48), 5),
    "layers.0.down.weight": random_raw("F8_E4M3", (48, 4096), 6),
    "layers.0.down.scale": random_raw("F32", (), 7),
}
DIMS = {"embed.weight": 0, "*.qkv.weight": 1, "*.up.*": 0, "*.down.weight": -1}
AXES = {"embed.weight": 0, "layers.0.qkv.weight": 1, "layers.0.up.bias": 0, "layers.0.up.weight": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "m.safetensors", RAWS)


@pytest.fixture(params=["cpu", "fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """Whatever weights are loaded onto."""
    if request.param == "fake":
        return fake_accelerator(request.getfixturevalue("fake"), SMALL)
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return request.param


@pytest.mark.parametrize("world", [1, 2, 16])
def test_each_rank_has_its_chunk(path: Path, device: Any, world: int) -> None:
    """A share is what `torch.chunk` gives that rank, and a tensor that no pattern fits is whole on each."""
    for rank in range(world):
        found = load_file(path, device, shards=Shards(rank, world, DIMS))
        assert list(found) == list(RAWS)
        for name, raw in RAWS.items():
            axis = AXES.get(name, 1 if name == "layers.0.down.weight" else None)
            plain = raw.tensor()
            if axis is not None:
                plain = plain.view(torch.uint8 if plain.itemsize == 1 else plain.dtype).chunk(world, axis)[rank]
                plain = plain.view(raw.tensor().dtype)
            assert same(found[name], plain), name


def test_one_after_another_gives_the_same_shares(path: Path, accelerator: Accelerator) -> None:
    """`iter_tensors` cuts as `load_file` does, with `keys` and `dtype` too."""
    shards = Shards(1, 2, DIMS)
    keys = ["layers.0.up.weight", "layers.0.down.weight"]
    found = dict(iter_tensors(path, accelerator, dtype=torch.float32, keys=keys, shards=shards))
    assert found.keys() == set(keys)
    up = RAWS["layers.0.up.weight"].tensor()[2048:]
    assert same(found["layers.0.up.weight"], up.to(torch.float32))
    assert same(found["layers.0.down.weight"], RAWS["layers.0.down.weight"].tensor()[:, 2048:])


def test_shares_on_a_device_take_no_more_than_their_bytes(path: Path, accelerator: Accelerator) -> None:
    """What a rank gets is contiguous, and device memory is its share's, not the file's."""
    found = load_file(path, accelerator, shards=Shards(0, 16, DIMS))
    assert all(tensor.is_contiguous() for tensor in found.values())
    nbytes = sum(tensor.nbytes for tensor in found.values())
    last = report.list_recent()[-1]
    assert last.bytes == nbytes
    assert last.device_bytes <= nbytes + 16 * len(found)


def test_shares_on_the_cpu_are_views_of_the_page_cache(path: Path) -> None:
    """Ranks on a CPU share the file's pages: a part is a view, along either axis."""
    found = load_file(path, shards=Shards(1, 2, DIMS))
    with safe_open(path, "pt") as file:
        plain = file.get_tensor("layers.0.down.weight")
    down = found["layers.0.down.weight"]
    assert down.stride() == plain.stride()
    assert same(down, plain[:, 2048:])


@given(shape=st.lists(st.integers(0, 12), min_size=1, max_size=4).map(tuple), world=st.integers(1, 6), data=st.data())
def test_shares_of_any_shape_cover_it_once(shape: tuple[int, ...], world: int, data: st.DataObject) -> None:
    """Boxes of all ranks, one behind the other, are the tensor; what does not divide is refused for each of them."""
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    every = [Shards(rank, world, {"*": dim}) for rank in range(world)]
    if shape[dim] % world:
        for shards in every:
            with pytest.raises(Permanent, match="cannot be cut") as refused:
                shards.select_part("t", shape)
            assert refused.value.code == "invalid_shards"
        return
    plain = torch.arange(torch.Size(shape).numel()).view(shape)
    parts = []
    for shards in every:
        box = shards.select_part("t", shape)
        assert box is not None
        parts.append(plain[tuple(slice(a, a + n) for a, n in zip(box.starts, box.shape, strict=True))])
    assert torch.equal(torch.cat(parts, dim), plain)


@pytest.mark.parametrize(
    ("rank", "world", "dims", "told"),
    [
        (0, 2, {"*.down.scale": 0}, "no axis 0"),
        (0, 2, {"*.qkv.weight": 3}, "no axis 3"),
        (0, 5, {"embed.weight": 0}, "cannot be cut in 5"),
        (0, 2, {"*.gate.weight": 0}, "'*.gate.weight' fits none of the 7 tensors"),
        (2, 2, {}, "rank 2 of 2"),
        (-1, 2, {}, "rank -1 of 2"),
        (0, 0, {}, "rank 0 of 0"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    path: Path, rank: int, world: int, dims: dict[str, int], told: str
) -> None:
    """An axis that is not there, that does not divide, a pattern without tensors: an error that names it."""
    with pytest.raises(Permanent) as refused:
        load_file(path, shards=Shards(rank, world, dims))
    assert refused.value.code == "invalid_shards"
    assert told in str(refused.value)


def test_the_first_pattern_that_fits_decides(path: Path) -> None:
    """A tensor that several patterns fit is cut as the first of them says."""
    found = load_file(path, shards=Shards(0, 2, {"*.up.weight": 1, "*.up.*": 0}))
    assert found["layers.0.up.weight"].shape == (4096, 24)
    assert found["layers.0.up.bias"].shape == (2048,)
