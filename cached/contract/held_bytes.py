"""The bytes on disk that a version alone has, and those that it shares with others.

Law: pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Bytes on disk: `exclusive`, which go with their holder, and `shared` with others."""

    exclusive: int
    shared: int


def split_held(
    names: Mapping[Digest, Collection[ModelRef]], blobs: Mapping[Digest, Mapping[str, int]], shared: Set[str]
) -> dict[ModelRef, HeldBytes]:
    """Return the bytes of each version. `names`: the versions of each digest; `blobs`: bytes by sha256; `shared`:
    the blobs of more than one digest."""
    split: dict[ModelRef, HeldBytes] = {}
    for digest, refs in names.items():
        held = split_blobs(blobs[digest], shared)
        if len(refs) > 1:  # its last name frees them
            held = HeldBytes(0, held.exclusive + held.shared)
        split |= dict.fromkeys(refs, held)
    return split


def split_blobs(blobs: Mapping[str, int], shared: Set[str]) -> HeldBytes:
    """Return the bytes of one digest. `blobs`: bytes by sha256; `shared`: the blobs of more than one digest."""
    exclusive = sum(size for sha, size in blobs.items() if sha not in shared)
    return HeldBytes(exclusive, sum(blobs.values()) - exclusive)
