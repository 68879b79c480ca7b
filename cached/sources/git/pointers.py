"""Pointer files: what Git has in place of a file in Git LFS.

Law: pure. A file is in Git LFS if its bytes are a pointer, whatever `.gitattributes` says. The oid is the sha256 of the
file. Format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cached.contract.digest import is_hex
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import MAX_FILE_BYTES

MAX_POINTER_BYTES = 1024  # exclusive
_VERSIONS = re.compile(
    rb"version (?:https://git-lfs\.github\.com/spec/v1|https?://hawser\.github\.com/spec/v1|http://git-media\.io/v/2)\r?\n"
)
_DIGITS = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class Pointer:
    """`oid`: the sha256 of the file; `size` in bytes."""

    oid: str
    size: int


def is_pointer(data: bytes) -> bool:
    """Return whether the bytes of a file in Git stand for one in Git LFS."""
    return len(data) < MAX_POINTER_BYTES and _VERSIONS.match(data) is not None


def read_pointer(data: bytes, where: str) -> Pointer | HoldfastError:
    """Return what a pointer says; the error of one that names no file. `where`: the file, for messages."""
    lines = [line.rstrip("\r") for line in data.decode("utf-8", "replace").split("\n")[1:] if line.strip()]
    fields = dict(line.partition(" ")[::2] for line in lines)
    if any(name.startswith("ext-") for name in fields):
        return _bad(where, "one with extensions, which change the bytes", "store the file without LFS extensions")
    algorithm, _, oid = fields.get("oid", "").partition(":")
    if algorithm != "sha256" or not is_hex(oid):
        return _bad(where, f"the oid {fields.get('oid', '')[:80]!r}")
    size = fields.get("size", "")
    if not _DIGITS.fullmatch(size) or int(size) > MAX_FILE_BYTES:
        return _bad(where, f"the size {size[:40]!r}")
    return Pointer(oid, int(size))


def _bad(where: str, found: str, remedy: str = "add the file to Git LFS again, and commit it") -> Permanent:
    return Permanent("bad_pointer", f"{where}: expected a pointer of Git LFS, found {found}", remedy)
