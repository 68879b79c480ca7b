"""Weight files byte by byte: any dtype, any order, any offset, which no library's writer makes.

Law: writes files and generates them; reads none.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st

from server.weights.format import dtypes
from server.weights.format.safetensors import DTYPE_BITS

# F4 needs an even last length and F6 has no torch dtype: both have tests of their own.
PLAIN = sorted(set(DTYPE_BITS) - {"F4", "F6_E2M3", "F6_E3M2"})


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor as the file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def tensor(self) -> torch.Tensor:
        """The same in torch, made without any of our code but the dtype's name."""
        dtype = dtypes.NAMES[self.dtype]
        if not self.data:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.data), dtype=torch.uint8).view(dtype).view(self.shape)


def write(path: Path, tensors: Mapping[str, Raw], metadata: Mapping[str, str] | None = None, pad: int = 0) -> Path:
    """Write a file with `tensors` one behind the other, and a header that is padded with `pad` spaces."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, raw in tensors.items():
        header[name] = {"dtype": raw.dtype, "shape": list(raw.shape), "data_offsets": [end, end + len(raw.data)]}
        end += len(raw.data)
    encoded = json.dumps(header).encode() + b" " * pad
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for raw in tensors.values():
            file.write(raw.data)
    return path


def random_raw(dtype: str, shape: tuple[int, ...], seed: int) -> Raw:
    """A tensor of arbitrary bytes; of booleans where it is one."""
    nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == "BOOL" else 256
    return Raw(dtype, shape, bytes(torch.randint(0, high, (nbytes,), dtype=torch.uint8, generator=generator).numpy()))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are alike to the bit: NaNs too."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.numel() == 0:
        return True
    left, right = (t.detach().cpu().clone(memory_format=torch.contiguous_format).flatten() for t in (one, other))
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def descriptors(path: Path) -> list[str]:
    """This process's descriptors of a file, or of files below a folder: a GPU's driver opens files of its own."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(link))
    return [found for found in links if Path(found).is_relative_to(path.resolve())]


_SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple) | st.tuples(st.integers(500, 3000), st.integers(1, 33))


@st.composite
def raws(draw: st.DrawFn) -> Raw:
    """One tensor of any dtype, mostly small, sometimes larger than a slot."""
    return random_raw(draw(st.sampled_from(PLAIN)), draw(_SHAPES), draw(st.integers(0, 1000)))


def contents(max_size: int = 12) -> st.SearchStrategy[dict[str, Raw]]:
    """The tensors of a file, by name, in the order of their bytes."""
    return st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), raws(), min_size=1, max_size=max_size)
