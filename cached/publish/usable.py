"""Refuse to publish files that no server can use: pointers of Git LFS, incomplete sets of shards, golden predictions
that cannot be replayed.

Law: reads only the beginnings of files, indexes and golden predictions. Only certainly wrong files are refused; a file
that is no safetensors file or index has another format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from cached.contract.errors import Permanent
from cached.contract.golden import MAX_GOLDEN_BYTES, Golden
from cached.sources.local.tree import PlainFile, file_error

_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024  # the specification's own limit
_MAX_INDEX_BYTES = 64 * 1024 * 1024
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_SHOWN = 3


def refuse_unusable(files: Sequence[PlainFile]) -> None:
    """Raise `Permanent` (`lfs_pointer`, `incomplete`), with the file's name, for a pointer or a missing shard."""
    small = (file for file in files if file.size <= _MAX_POINTER_BYTES)
    pointers = [file.path for file in small if _beginning(file, len(_POINTER)) == _POINTER]
    if pointers:
        raise Permanent(
            "lfs_pointer",
            f"expected the model's files, found pointers of Git LFS in their place: {_some(pointers)}",
            "fetch the files themselves with `git lfs pull`, then publish again",
        )
    paths = {file.path for file in files}
    for file in files:
        if _decides(file.path, paths):
            _check_index(file, paths)
        if file.path.endswith(".safetensors"):
            _check_length(file)


def check_golden(file: PlainFile) -> None:
    """Raise `HoldfastError`, with the file's name, for golden predictions that no server can replay."""
    data = _beginning(file, MAX_GOLDEN_BYTES + 1)
    try:
        Golden.parse(data)
    except Permanent as error:
        raise Permanent(error.code, f"{file.real}: {error.message}", error.remedy) from error


def _decides(path: str, paths: set[str]) -> bool:
    """Return whether this index lists the weights: an index of the older format may remain without its shards."""
    if path.endswith(".safetensors.index.json"):
        return True
    folder = path.rpartition("/")[0]
    beside = (other for other in paths if other.rpartition("/")[0] == folder)
    return path.endswith(".bin.index.json") and not any(other.endswith(".safetensors") for other in beside)


def _check_index(file: PlainFile, paths: set[str]) -> None:
    folder = file.path[: file.path.rfind("/") + 1]
    missing = sorted({name for name in _shards(file) if folder + name not in paths})
    if missing:
        raise Permanent(
            "incomplete",
            f"{file.real} names files that are not there: {_some(missing)}",
            "fetch the missing files, or remove the index if the model does not need them; then publish again",
        )


def _shards(file: PlainFile) -> Iterator[str]:
    if file.size > _MAX_INDEX_BYTES:
        return
    try:
        index = json.loads(_beginning(file, file.size))
    except (ValueError, RecursionError):
        return
    named = index.get("weight_map") if isinstance(index, dict) else None
    if isinstance(named, dict):
        yield from (name for name in named.values() if isinstance(name, str))


def _check_length(file: PlainFile) -> None:
    """Check a safetensors file's size: it begins with its header's length, and the header has the last tensor's end."""
    length = int.from_bytes(_beginning(file, 8), "little")
    if length > _MAX_HEADER_BYTES or _beginning(file, 9)[8:] != b"{":
        return
    header = _beginning(file, 8 + length)
    expected = 8 + length
    if len(header) == expected:
        try:
            tensors = json.loads(header[8:])
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            expected += max(ends, default=0)
        except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
            return
    if file.size < expected:
        raise Permanent(
            "incomplete",
            f"{file.real}: cut short: its header says {expected} bytes, found {file.size}",
            "fetch the file again, then publish again",
        )


def _beginning(file: PlainFile, length: int) -> bytes:
    try:
        with file.real.open("rb") as opened:
            return opened.read(length)
    except OSError as error:
        raise file_error(error, file.real) from error


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name)[:200] for name in names[:_SHOWN]) + more
