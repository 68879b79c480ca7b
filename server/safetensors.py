"""Read safetensors headers, strictly: what a file says of its tensors is believed only if all of it fits.

Law: pure parsing and the few reads it needs; no torch, no tensor data. Format: 8 bytes little-endian length N,
N bytes of JSON (padded with spaces), then the tensors' bytes without a gap
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached.contract.errors import Permanent

MAX_HEADER_BYTES = 100_000_000
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000
_MAX_RANK = 64  # torch's own limit
_METADATA = "__metadata__"
_LENGTH_BYTES = 8

# Bits per element, by the name the format gives the type.
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `dtype` as the format names it, `begin` and `end` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds: its tensors by name, in the order of their bytes, and its metadata."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of one file; raises `Permanent` (`invalid_weights`) that names the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_LENGTH_BYTES)
            if len(prefix) < _LENGTH_BYTES:
                raise _refuse(path, f"expected a header length of 8 bytes, found a file of {size} bytes")
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise _refuse(path, f"the header says it is {length} bytes long, at most {MAX_HEADER_BYTES} are read")
            if _LENGTH_BYTES + length > size:
                raise _refuse(path, f"the header says it is {length} bytes long, but the file has {size} bytes")
            data = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    return parse_header(path, data, size)


def parse_header(path: Path, data: bytes, file_size: int) -> Header:
    """Check the JSON `data` of a header against a file of `file_size` bytes; `path` is for the messages."""
    if not data.startswith(b"{"):
        raise _refuse(path, "expected the header to begin with `{`")
    document = _json(path, data)
    metadata = document.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refuse(path, f"expected `{_METADATA}` to map text to text")
    start = _LENGTH_BYTES + len(data)
    entries = {name: _entry(path, name, item, start) for name, item in document.items()}
    ordered = dict(sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)))
    end = start
    for name, entry in ordered.items():
        if entry.begin != end:
            what = "overlaps the tensor before it" if entry.begin < end else "leaves a gap before it"
            raise _refuse(path, f"{name!r} {what}: expected to begin at byte {end}, found {entry.begin}")
        end = entry.end
    if end != file_size:
        raise _refuse(path, f"the tensors end at byte {end}, but the file has {file_size} bytes")
    return Header(ordered, metadata)


def find_shards(directory: Path) -> dict[Path, Header]:
    """Find and check the weight files of a model's folder: `model.safetensors`, or the shards its index names.

    Raises `Permanent` where there are none, or where the index and the files disagree.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file():
        return {single: read_header(single)}
    if not index.is_file():
        raise Permanent(
            "no_weights",
            f"expected {SINGLE_FILE} or {INDEX_FILE} in {directory}, found {_what_there_is(directory)}",
            "publish the model's safetensors files; other formats are not read, for they can carry code",
        )
    weight_map = _weight_map(index)
    shards = {directory / name: read_header(directory / name) for name in sorted(set(weight_map.values()))}
    seen: dict[str, str] = {}
    for path, header in shards.items():
        for tensor in header.tensors:
            if tensor in seen:
                raise _refuse(path, f"the tensor {tensor!r} is also in {seen[tensor]}")
            seen[tensor] = path.name
    for tensor, name in weight_map.items():
        if seen.get(tensor) != name:
            raise _refuse(index, f"the tensor {tensor!r} should be in {name}, found in {seen.get(tensor, 'no file')}")
    return shards


def _weight_map(index: Path) -> dict[str, str]:
    try:
        size = index.stat().st_size
        if size > _MAX_INDEX_BYTES:
            raise _refuse(index, f"{size} bytes, at most {_MAX_INDEX_BYTES} are read")
        document = _json(index, index.read_bytes())
    except OSError as error:
        raise _unreadable(index, error) from error
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _refuse(index, "expected `weight_map` to map tensors to files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise _refuse(index, f"the tensor {tensor!r} names the file {name!r}, expected a file in the same folder")
    return weight_map


def _entry(path: Path, name: str, item: object, start: int) -> TensorEntry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise _refuse(path, f"{name!r}: expected an object of dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _refuse(path, f"{name!r}: unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_size(length) for length in shape):
        raise _refuse(path, f"{name!r}: expected a shape of at most {_MAX_RANK} lengths, found {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise _refuse(path, f"{name!r}: expected two data_offsets, found {str(offsets)[:80]}")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise _refuse(path, f"{name!r}: {dtype} of shape {str(shape)[:80]} does not fill whole bytes")
    if end - begin != bits // 8:
        raise _refuse(path, f"{name!r}: {dtype} of shape {str(shape)[:80]} does not fit bytes {begin} to {end}")
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)


def _is_size(value: object) -> bool:
    # No file comes near 2^63 bytes; the bound also keeps the product of a shape's lengths cheap.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _json(path: Path, data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            for name, _ in pairs:
                if name not in found:  # its first mention took it out
                    raise _refuse(path, f"the key {name[:200]!r} is there twice")
                del found[name]
        return found

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"not JSON in UTF-8: {error}") from error
    if not isinstance(document, dict):
        raise _refuse(path, f"expected a JSON object, found {type(document).__name__}")
    return document


def _what_there_is(directory: Path) -> str:
    names = sorted(
        entry.name for entry in directory.iterdir() if entry.suffix in (".safetensors", ".bin", ".pt", ".gguf")
    )
    return ", ".join(names[:5]) if names else "no weights at all"


def _refuse(path: Path, message: str) -> Permanent:
    return Permanent(
        "invalid_weights", f"{path}: {message}", "the file is damaged or no safetensors file: publish the model again"
    )


def _unreadable(path: Path, error: OSError) -> Permanent:
    return Permanent("unreadable", f"{path}: {error.strerror}", "check that the version is complete and may be read")
