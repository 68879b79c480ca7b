"""The bytes that a version alone has on the disk."""

from __future__ import annotations

from cached.contract.digest import Digest
from cached.contract.held_bytes import HeldBytes, split_held
from cached.contract.reference import ModelRef


def test_bytes_are_of_one_version_or_shared() -> None:
    """What only one version has is what its eviction frees; a digest with two names is shared by both, and a file that
    a version has twice is on the disk once."""
    one, two, both = (Digest.of(text) for text in (b"1", b"2", b"3"))
    a, b, c, d = (ModelRef("m", version) for version in "abcd")
    blobs = {one: {"own": 5, "common": 3}, two: {"common": 3}, both: {"twin": 7}}
    assert split_held({one: [a], two: [b], both: [c, d]}, blobs, {"common"}) == {
        a: HeldBytes(5, 3),
        b: HeldBytes(0, 3),
        c: HeldBytes(0, 7),
        d: HeldBytes(0, 7),
    }
