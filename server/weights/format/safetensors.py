"""Parse safetensors headers strictly: a header is accepted only if all of it is consistent.

Law: parsing and the few reads it needs; no torch, no tensor data. Format: 8 bytes little-endian length N, N bytes of
JSON (padded with spaces), then the tensors' bytes without a gap (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cached.contract.unique_keys import DuplicateKey, unique_keys
from server.weights.errors import MissingFile, WeightsError
from server.weights.format.foreign import HEAD_BYTES, identify
from server.weights.settings import PAGE

MAX_HEADER_BYTES = 100_000_000
_MAX_RANK = 64  # torch's own limit
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
# Every string of a JSON text in order; the group marks a key.
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?', re.DOTALL)

_DAMAGED = "the file is damaged or no safetensors file: publish the model again"
_SHORT = "a download or a copy was cut short: download the file again, then publish the model again"


# Bits per element, by the format's name of the type.
DTYPE_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class TensorEntry(NamedTuple):  # a tuple: some files have 100 000 of them
    """One tensor: `dtype` as the format names it, `begin` and `end` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's tensors by name, in byte order, and its metadata, None where it has none."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str] | None


def open_file(path: Path) -> int:
    """Open a weight file for reading and return its descriptor; raises `Permanent` (`unreadable`)."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingFile(path) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def read_header(path: Path, descriptor: int) -> Header:
    """Read and check the header of an open file; raises `Permanent` (`invalid_weights`) that names `path`."""
    try:
        size = os.fstat(descriptor).st_size
        with os.fdopen(descriptor, "rb", buffering=PAGE, closefd=False) as file:
            prefix = file.read(_LENGTH_BYTES)
            if len(prefix) < _LENGTH_BYTES:
                raise _refuse(path, f"expected a header length of 8 bytes, found a file of {size} bytes", _SHORT)
            length = int.from_bytes(prefix, "little")
            data = file.read(min(length, size) if length <= MAX_HEADER_BYTES else HEAD_BYTES)
            if not data.startswith(b"{"):
                found = identify((prefix + data)[:HEAD_BYTES])
                if found is not None:
                    raise _refuse(path, f"expected weights, found {found.kind}, of {size} bytes", found.remedy)
            if length > MAX_HEADER_BYTES:
                raise _refuse(path, f"the header says it is {length} bytes long, at most {MAX_HEADER_BYTES} are read")
            if _LENGTH_BYTES + length > size:
                raise _refuse(path, f"the header says it is {length} bytes long, but the file has {size} bytes", _SHORT)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) != length:
        raise _refuse(
            path, f"expected a header of {length} bytes, found {len(data)}: the file was truncated while it was read"
        )
    return parse_header(path, data, size)


def parse_header(path: Path, data: bytes, file_size: int) -> Header:
    """Check the JSON `data` of a header against a file of `file_size` bytes; `path` is for the messages."""
    if not data.startswith(b"{"):
        raise _refuse(path, "expected the header to begin with `{`")
    document = _json(path, data, None)
    keys, has_metadata = len(document), document.get(_METADATA) is not None
    metadata = document.pop(_METADATA, None)
    if metadata is None:  # as the reference reads null
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refuse(path, f"expected `{_METADATA}` to map text to text")
    start = _LENGTH_BYTES + len(data)
    entries = {name: _entry(path, name, item, start) for name, item in document.items()}
    # A dict hides a duplicate key. Counting the keys of the text costs a quarter of a hook that gets each object's
    # pairs.
    keys += len(entries) * len(_ENTRY_KEYS) + len(metadata)
    if sum(map(bool, _STRINGS.findall(data))) != keys:
        _json(path, data, unique_keys)
        raise _refuse(path, "a key is there twice")
    ordered = dict(sorted(entries.items(), key=lambda pair: pair[1][2:]))
    end = start
    for name, entry in ordered.items():
        if entry.begin != end:
            fault = "overlaps the tensor before it" if entry.begin < end else "leaves a gap before it"
            raise _refuse(path, f"{name!r} {fault}: expected to begin at byte {end}, found {entry.begin}")
        end = entry.end
    if end != file_size:
        remedy = _SHORT if end > file_size else _DAMAGED
        raise _refuse(path, f"the tensors end at byte {end}, but the file has {file_size} bytes", remedy)
    return Header(ordered, metadata if has_metadata else None)


def _entry(path: Path, name: str, item: object, start: int) -> TensorEntry:
    if not isinstance(item, dict) or item.keys() != _ENTRY_KEYS:
        raise _refuse(path, f"{name!r}: expected an object of dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    bits_each = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits_each is None:
        raise _refuse(path, f"{name!r}: unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(map(_is_size, shape)):
        raise _refuse(path, f"{name!r}: expected a shape of at most {_MAX_RANK} lengths, found {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _refuse(path, f"{name!r}: expected two data_offsets, found {str(offsets)[:80]}")
    begin, end = offsets
    bits = math.prod(shape) * bits_each
    if bits % 8:
        raise _refuse(path, f"{name!r}: {dtype} of shape {str(shape)[:80]} does not fill whole bytes")
    if end - begin != bits // 8:
        raise _refuse(path, f"{name!r}: {dtype} of shape {str(shape)[:80]} does not fit bytes {begin} to {end}")
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)


def _is_size(value: object) -> bool:
    # No file comes near 2^63 bytes; the bound also keeps the product of a shape's lengths cheap.
    return type(value) is int and 0 <= value < 2**63  # a bool is no length


def _json(path: Path, data: bytes, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None) -> dict[str, Any]:
    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    # Python's parser accepts two things that the reference refuses; each is checked only where it can occur.
    whole = _whole if b"-0" in data else None
    try:
        with _without_garbage_collection():
            document = json.loads(
                data.decode("utf-8"), object_pairs_hook=pairs, parse_int=whole, parse_constant=constant
            )
            if b"\\u" in data:
                json.dumps(document, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except DuplicateKey as error:
        raise _refuse(path, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"not JSON in UTF-8: {error}") from error
    if not isinstance(document, dict):
        raise _refuse(path, f"expected a JSON object, found {type(document).__name__}")
    return document


def _whole(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is no whole number")
    return int(text)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector: parsing makes no garbage, and collection takes longer than parsing. Several
    threads may be in here: the last one to leave always enables it."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _refuse(path: Path, message: str, remedy: str = _DAMAGED) -> WeightsError:
    return WeightsError("invalid_weights", f"{path}: {message}", remedy)


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError("unreadable", f"{path}: {error.strerror}", "check that the version is complete and may be read")
