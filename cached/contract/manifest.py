"""Manifests: the files of one version in canonical JSON, whose sha256 names the version's content.

Law: pure. Format: `holdfast.dev/manifest/v1`, section 2 of the design; strict, so that one content has one digest.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import sys
import unicodedata
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import InvalidManifest
from cached.contract.unique_keys import DuplicateKey, unique_keys

SCHEMA = "holdfast.dev/manifest/v1"
MANIFEST_NAME = "holdfast.json"  # at a source
RESERVED = ".holdfast"
PUBLISHING_NAME = f"{RESERVED}/publishing"  # at a source, while `publish` uploads files and no manifest is valid yet
REPLACED_NAME = f"{RESERVED}/replaced"  # at a source: the manifest of the version that a publish replaces
CHAINS_NAME = f"{RESERVED}/chains"  # at a source: sha256's chaining values of large files, for nodes that share pieces
MAX_SEGMENT_BYTES = 255  # NAME_MAX on Linux
MAX_PATH_BYTES = 1024  # S3's limit on a key
MAX_FILE_BYTES = 2**53 - 1  # the largest integer that every JSON reader keeps exact
MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # more than 100,000 files
# JSON with a few bytes an item takes a hundred times its size in memory, so long input is parsed only if it matches
# `_CANONICAL`. Short input is always parsed, which gives a more precise message.
_ALWAYS_PARSED_BYTES = 64 * 1024
_CANONICAL = re.compile(
    rb'\{"files":\[(?:\{"path":"(?:[^"\\]|\\.)*+","sha256":"[0-9a-f]{64}","size":\d{1,16}\},?)*+\],"schema":"[^"]{1,99}"\}'
)
_REPR = reprlib.Repr()
_REPR.maxstring = 100
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: `path` (POSIX, relative, NFC), `sha256` (64 hex digits), `size` in bytes."""

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        check_path(self.path)
        if not isinstance(self.sha256, str) or not is_hex(self.sha256):
            raise _refuse(f"{self.path!r}: expected sha256 as 64 lower-case hex digits, found {_shown(self.sha256)}")
        check_size(self.path, self.size)


@dataclass(frozen=True, slots=True)
class PackedFiles:
    """The files of a manifest in their order, at 40 bytes each beside the path, which versions share: a node that holds
    50,000 files would need 20 MiB for a `FileEntry` each. `hashes`: the sha256, 32 bytes each."""

    paths: tuple[str, ...]
    sizes: array[int]
    hashes: bytes

    def blobs(self) -> list[str]:
        """Return the sha256 of each file, as 64 hex digits."""
        digits = self.hashes.hex()
        return [digits[at : at + 64] for at in range(0, len(digits), 64)]


class Manifest:
    """The files of one version, sorted by path. The constructor validates all of them."""

    __slots__ = ("packed",)

    packed: PackedFiles

    def __init__(self, files: Iterable[FileEntry]) -> None:
        files = tuple(files)
        if not files:
            raise _refuse("expected at least one file, found an empty list")
        paths = tuple(sys.intern(f.path) for f in files)
        if any(path > following for path, following in pairwise(paths)):
            raise _refuse("files are not sorted by path")
        check_tree(paths)
        if sum(f.size for f in files) > MAX_FILE_BYTES:
            raise _refuse(f"the sizes add up to more than {MAX_FILE_BYTES} bytes")
        hashes = bytes.fromhex("".join(f.sha256 for f in files))
        self.packed = PackedFiles(paths, array("Q", (f.size for f in files)), hashes)

    @classmethod
    def unpack(cls, packed: PackedFiles) -> Manifest:
        """Return the manifest of files that were validated before they were packed."""
        manifest = cls.__new__(cls)
        manifest.packed = packed
        return manifest

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files; made anew by each call."""
        packed = self.packed
        return tuple(map(_make_entry, packed.paths, packed.blobs(), packed.sizes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash((self.packed.paths, self.packed.hashes))

    def __repr__(self) -> str:
        return f"Manifest(files={self.files!r})"

    @classmethod
    def build(cls, files: Iterable[FileEntry]) -> Manifest:
        """Return a manifest of `files` in any order. Raises `InvalidManifest`."""
        return cls(sorted(files, key=lambda f: f.path))

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Parse canonical bytes. Raises `InvalidManifest`, also for JSON that is not canonical."""
        document = _load(data)
        if not isinstance(document, dict):
            raise _refuse(f"expected a JSON object, found {type(document).__name__}")
        schema = document.get("schema")
        if schema != SCHEMA:
            raise _refuse(f"expected schema {SCHEMA!r}, found {_shown(schema)}")
        _check_keys("manifest", document, {"files", "schema"})
        listed = document["files"]
        if not isinstance(listed, list):
            raise _refuse(f"expected `files` to be a list, found {type(listed).__name__}")
        manifest = cls(_entry(item) for item in listed)
        if manifest.canonical() != data:
            raise _refuse("the bytes are not canonical JSON (keys sorted, no white space, UTF-8)")
        return manifest

    def canonical(self) -> bytes:
        """Return the canonical bytes, whose sha256 is the manifest digest."""
        packed = self.packed
        rows = zip(packed.paths, packed.blobs(), packed.sizes, strict=True)
        document = {
            "files": [{"path": path, "sha256": sha256, "size": size} for path, sha256, size in rows],
            "schema": SCHEMA,
        }
        return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")

    @property
    def digest(self) -> Digest:
        """The manifest digest."""
        return Digest.of(self.canonical())

    @property
    def total_bytes(self) -> int:
        """The sum of the files' sizes, in bytes."""
        return sum(self.packed.sizes)

    def list_folders(self) -> list[str]:
        """Return the folders of the files, each after its parent."""
        found = set()
        for path in self.packed.paths:
            folder = os.path.dirname(path)
            while folder and folder not in found:
                found.add(folder)
                folder = os.path.dirname(folder)
        return sorted(found)

    def blob_sizes(self) -> dict[str, int]:
        """Return the size in bytes of each distinct blob, by sha256."""
        return dict(zip(self.packed.blobs(), self.packed.sizes, strict=True))


def _make_entry(path: str, sha256: str, size: int) -> FileEntry:
    """Return an entry whose fields were validated before."""
    entry = FileEntry.__new__(FileEntry)
    _set(entry, "path", path)
    _set(entry, "sha256", sha256)
    _set(entry, "size", size)
    return entry


_set = object.__setattr__  # the class is frozen


def check_path(path: object) -> None:
    """Raise `InvalidManifest` unless `path` is a valid path of a file in a version."""
    if not isinstance(path, str):
        raise _refuse(f"expected a path as text, found {_shown(path)}")
    shown = repr(path[:200])
    if not path or path.startswith("/"):
        raise _refuse(f"expected a relative path, found {shown}")
    if "\\" in path:
        raise _refuse(f"{shown} has a backslash; paths are written with `/`")
    if not (path.isascii() and path.isprintable()):  # the fast path: a start checks tens of thousands
        for character in path:
            if "\ud800" <= character <= "\udfff":  # bytes that Python cannot decode (PEP 383)
                raise _refuse(f"{shown} has bytes that are not UTF-8 (U+{ord(character):04X})")
            if unicodedata.category(character) in _HIDDEN_CATEGORIES:
                raise _refuse(f"{shown} has a control or hidden character (U+{ord(character):04X})")
    if not unicodedata.is_normalized("NFC", path):
        raise _refuse(f"{shown} is not in Unicode normal form C")
    segments = path.split("/")
    for segment in segments:
        if segment in ("", ".", ".."):
            raise _refuse(f"{shown} has the segment {segment!r}")
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise _refuse(f"{shown} has a segment of more than {MAX_SEGMENT_BYTES} bytes")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise _refuse(f"{shown}… has {len(path.encode())} bytes, at most {MAX_PATH_BYTES} are allowed")
    if segments[0].casefold() == RESERVED:
        raise _refuse(f"{shown} is under `{RESERVED}/`, which is reserved")


def is_size(size: object) -> TypeGuard[int]:
    """Return whether `size` is an integer number of bytes from 0 to 2^53 - 1; a bool is none."""
    return type(size) is int and 0 <= size <= MAX_FILE_BYTES


def check_size(path: str, size: object) -> None:
    """Raise `InvalidManifest` unless `is_size`."""
    if not is_size(size):
        raise _refuse(f"{path!r}: expected a size from 0 to {MAX_FILE_BYTES} bytes, found {_shown(size)}")


def check_tree(paths: Iterable[str]) -> None:
    """Raise `InvalidManifest` if two paths are equal, or one is a file and a folder, after case folding."""
    folded: dict[str, str] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        if folded.get(key) == path:
            raise _refuse(f"{path!r}: expected each path once, found two files of it")
        if key in folded:
            raise _refuse(f"{path!r} and {folded[key]!r} are the same path on a file system that folds case")
        folded[key] = path
    for key, path in folded.items():
        parent = key
        while (cut := parent.rfind("/")) > 0:
            parent = parent[:cut]
            if parent in folded:
                raise _refuse(f"{folded[parent]!r} is a file and also the folder of {path!r}")


def _refuse(message: str) -> InvalidManifest:
    return InvalidManifest(message, "publish the version again with `holdfast publish`, or mend the file names")


def _load(data: bytes) -> Any:
    if len(data) > MAX_MANIFEST_BYTES:
        raise _refuse(f"a manifest of {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are read")
    if len(data) > _ALWAYS_PARSED_BYTES and _CANONICAL.fullmatch(data) is None:
        raise _refuse("the bytes are not the canonical JSON of a list of files")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
    except DuplicateKey as error:
        raise _refuse(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _refuse(f"not JSON in UTF-8: {error}") from error


def _entry(item: object) -> FileEntry:
    if not isinstance(item, dict):
        raise _refuse(f"expected each file to be an object, found {type(item).__name__}")
    _check_keys("file", item, {"path", "sha256", "size"})
    return FileEntry(path=item["path"], sha256=item["sha256"], size=item["size"])


def _check_keys(what: str, found: dict[str, Any], expected: set[str]) -> None:
    if set(found) != expected:
        missing, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
        raise _refuse(f"{what}: missing keys {missing}, unknown keys {_shown(unknown)}")


def _shown(value: object) -> str:
    """Shorten a value of any type for a message."""
    if isinstance(value, int) and value.bit_length() > 256:  # may exceed Python's limit of digits for `str()`
        return f"a number of {value.bit_length()} bits"
    return _REPR.repr(value)[:400]
