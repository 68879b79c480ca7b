"""The trust that a source gives in the bytes of a version, in four words.

Law: values. The trust of a version is the least of its files'. A word says what the source vouches for, and not what a
pin adds: a pinned version is compared with its digest whatever its source is.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Trust(StrEnum):
    """`known`: the sha256 of a file is there before its first byte (a manifest, a Git LFS oid, an OCI layer).
    `checked`: a weaker sum is (crc32c, md5, sha1, a git id): damage is found, a forger is not. `versioned`: a strong
    validator (a generation, an ETag, a commit) binds all answers to one and the same object. `sized`: at most the size
    is there."""

    KNOWN = "known"
    CHECKED = "checked"
    VERSIONED = "versioned"
    SIZED = "sized"

    def meets(self, least: Trust) -> bool:
        """Return whether this is at least as much as `least`."""
        return _ORDER.index(self) <= _ORDER.index(least)


_ORDER = tuple(Trust)


def least_of(trusts: Iterable[Trust]) -> Trust:
    """Return the least of `trusts`; `known` of none."""
    return max(trusts, key=_ORDER.index, default=Trust.KNOWN)
