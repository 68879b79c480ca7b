"""The torch dtype and shape of each type of the format. Law: a table and its two lookups; creates no tensors."""

from __future__ import annotations

import torch

from server.weights.errors import WeightsError
from server.weights.format.safetensors import TensorEntry

# The parser reads the F6 types, but torch has no dtype for them.
NAMES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_PACKED = "F4"  # two numbers a byte, so torch's tensor has half the columns

# Only these are converted to another dtype: the others are codes, indexes or masks, not plain numbers.
CONVERTED = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def resolve(name: str, entry: TensorEntry) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return the torch dtype and shape of the tensor `name`; raises `Permanent` where torch has no such dtype."""
    dtype = NAMES.get(entry.dtype)
    if dtype is not None:
        return dtype, entry.shape
    packed: torch.dtype | None = getattr(torch, "float4_e2m1fn_x2", None)  # missing in the oldest supported torch
    if entry.dtype == _PACKED and packed is not None:
        if not entry.shape or entry.shape[-1] % 2:
            raise _unsupported(name, entry, "whose last length is odd: torch packs two of them into one element")
        return packed, (*entry.shape[:-1], entry.shape[-1] // 2)
    raise _unsupported(name, entry, f"which torch {torch.__version__} does not have")


def convert(dtype: torch.dtype, target: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a tensor of `dtype` after a conversion to `target`."""
    return target if target is not None and dtype in CONVERTED else dtype


def _unsupported(name: str, entry: TensorEntry, why: str) -> WeightsError:
    return WeightsError(
        "unsupported_dtype",
        f"the tensor {name!r} is {entry.dtype} of shape {list(entry.shape)}, {why}",
        "convert the model, or leave the tensor out",
    )
