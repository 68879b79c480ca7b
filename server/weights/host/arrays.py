"""Tensors of torch and arrays of numpy over bytes in this process's memory.

Law: copies only where the offset is one that the dtype does not allow.
"""

from __future__ import annotations

from typing import Any

import torch

from server.weights.errors import WeightsError
from server.weights.format.dtypes import resolve
from server.weights.format.safetensors import TensorEntry
from server.weights.host.mapping import HostBytes

# numpy's names; those that numpy itself lacks are there once the package ml_dtypes is imported.
_NUMPY = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32"},
    **{"U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64"},
    **{"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2": "float8_e5m2"},
    **{"F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu"},
}


def make_tensor(name: str, entry: TensorEntry, found: HostBytes) -> torch.Tensor:
    """Return the tensor `name`; raises `Permanent` where torch lacks its dtype."""
    dtype, shape = resolve(name, entry)
    size = entry.end - entry.begin
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    if found.offset % dtype.itemsize == 0:
        count = size // dtype.itemsize
        return torch.frombuffer(found.buffer, dtype=dtype, count=count, offset=found.offset).view(shape)
    # Legal, though no known writer does it; kernels need aligned elements, so these few bytes are copied.
    raw = torch.frombuffer(found.buffer, dtype=torch.uint8, count=size, offset=found.offset)
    return raw.clone().view(dtype).view(shape)


def make_array(name: str, entry: TensorEntry, found: HostBytes) -> Any:
    """Return the tensor `name` as a numpy array; raises `Permanent` where numpy lacks its dtype, or is missing."""
    numpy = import_numpy()
    try:
        dtype = numpy.dtype(_NUMPY[entry.dtype])
    except (KeyError, TypeError) as error:
        raise WeightsError(
            "unsupported_dtype",
            f"the tensor {name!r} is {entry.dtype}, which numpy {numpy.__version__} does not have",
            "ask for the framework pt, or import ml_dtypes first, which adds bfloat16 and the float8 types to numpy",
        ) from error
    if entry.begin == entry.end:
        return numpy.empty(entry.shape, dtype)
    count = (entry.end - entry.begin) // dtype.itemsize
    array = numpy.frombuffer(found.buffer, dtype, count, found.offset).reshape(entry.shape)
    return array if array.flags.aligned else array.copy()


def import_numpy() -> Any:
    """Return the module numpy; raises `Permanent` where it is not installed."""
    try:
        import numpy
    except ImportError as error:
        raise WeightsError("missing_package", "the package numpy is missing", "pip install numpy") from error
    return numpy
