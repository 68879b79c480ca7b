"""Checkpoints that benchmarks make: of the size asked for, whole, and unlike themselves anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import checkpoints
from bench.loaders import BY_NAME, OURS, PEERS
from cached.contract.errors import Permanent

SIZE = 8 << 20


def test_a_checkpoint_has_the_size_and_shards_it_was_asked_for(tmp_path: Path) -> None:
    """Sizes come out within a layer, in several shards, in bfloat16."""
    made = checkpoints.synthetic(tmp_path, SIZE)
    assert abs(made.size - SIZE) < SIZE / 8
    assert len(made.files) > 1
    tensors = BY_NAME[OURS].load(made.files, "cpu", True)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_checkpoint_is_made_once(tmp_path: Path) -> None:
    """The second run with a size finds what the first one wrote."""
    first = checkpoints.synthetic(tmp_path, SIZE)
    before = [path.stat().st_mtime_ns for path in first.files]
    again = checkpoints.synthetic(tmp_path, SIZE)
    assert again == first
    assert [path.stat().st_mtime_ns for path in again.files] == before


@pytest.mark.parametrize("name", [OURS, *PEERS])
def test_every_loader_gives_what_the_files_have(name: str, tmp_path: Path) -> None:
    """A loader's tensors have the fingerprint of the files' own bytes."""
    loader = BY_NAME[name]
    if (reason := loader.missing("cpu")) is not None:
        pytest.skip(reason)
    made = checkpoints.synthetic(tmp_path, SIZE)
    assert checkpoints.fingerprint(loader.load(made.files, "cpu", True)) == checkpoints.fingerprint_of_files(made.files)


def test_a_chunk_in_anothers_place_is_seen(tmp_path: Path) -> None:
    """Two tensors that exchanged a part of their bytes have another fingerprint."""
    made = checkpoints.synthetic(tmp_path, SIZE)
    tensors = {name: tensor.clone() for name, tensor in BY_NAME[OURS].load(made.files, "cpu", True).items()}
    right = checkpoints.fingerprint(tensors)
    one, other = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    one[0], other[0] = other[0].clone(), one[0].clone()
    assert checkpoints.fingerprint(tensors) != right


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """A folder given by mistake is an error that names it."""
    with pytest.raises(Permanent, match=r"no \*\.safetensors"):
        checkpoints.given(tmp_path)
