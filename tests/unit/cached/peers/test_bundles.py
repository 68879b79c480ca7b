"""Many small blobs in one answer: bounds, and what is taken out of it."""

from __future__ import annotations

import hashlib
import random

import pytest

from cached.peers.bundles import (
    MAX_BUNDLE_BYTES,
    MAX_BUNDLED,
    SMALL_BYTES,
    BadBundle,
    decode_bundle,
    decode_wanted,
    encode_record,
    encode_wanted,
    fill,
)

CONTENTS = [random.Random(n).randbytes(n * 37) for n in range(8)]
BLOBS = {hashlib.sha256(content).hexdigest(): content for content in CONTENTS}


def bundle_of(*contents: bytes) -> bytes:
    return b"".join(encode_record(hashlib.sha256(each).hexdigest(), len(each)) + each for each in contents)


def test_a_bundle_gives_the_blobs_that_were_asked_for() -> None:
    """Each blob comes once, with its own bytes; one that was not asked for, or comes twice, is counted as wrong."""
    assert decode_wanted(encode_wanted(BLOBS)) == list(BLOBS)
    found = decode_bundle(bundle_of(*CONTENTS), BLOBS.keys())
    assert (found.blobs, found.wrong) == (BLOBS, 0)
    found = decode_bundle(bundle_of(CONTENTS[1], CONTENTS[1], CONTENTS[2], b"other"), set(list(BLOBS)[:2]))
    assert (list(found.blobs.values()), found.wrong) == ([CONTENTS[1]], 3)


def test_a_damaged_bundle_gives_right_blobs_only() -> None:
    """Whatever happens to a bundle on its way, what is taken out of it has the sha256 that was asked for."""
    rng, whole = random.Random(5), bundle_of(*CONTENTS)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 9))):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    del data[at : at + rng.randrange(99)]
                case _:
                    data[at:at] = rng.randbytes(rng.randrange(99))
            data = data or bytearray(1)
        try:
            found = decode_bundle(bytes(data), BLOBS.keys())
        except BadBundle:
            continue
        assert all(BLOBS[sha256] == content for sha256, content in found.blobs.items())


@pytest.mark.parametrize("body", [b"", b"x", bytes(33), bytes(32) * (MAX_BUNDLED + 1)])
def test_an_absurd_request_is_refused(body: bytes) -> None:
    """A request is whole digests, one at least, and not more than a bundle may have."""
    with pytest.raises(BadBundle, match="expected 1 to"):
        decode_wanted(body)


def test_a_record_longer_than_small_is_refused() -> None:
    """A record says no more bytes than follow it, or than a small blob has."""
    for size, follow in ((SMALL_BYTES + 1, SMALL_BYTES + 1), (9, 8)):
        with pytest.raises(BadBundle, match="expected at most"):
            decode_bundle(encode_record("a" * 64, size) + bytes(follow), {"a" * 64})


def test_a_bundle_is_bounded() -> None:
    """A bundle ends before it is too large, in bytes and in blobs; a large blob is never in it."""
    many = [(f"{n:064x}", SMALL_BYTES) for n in range(40)]
    assert len(list(fill(many))) == MAX_BUNDLE_BYTES // SMALL_BYTES
    assert len(list(fill((f"{n:064x}", 1) for n in range(MAX_BUNDLED + 9)))) == MAX_BUNDLED
    assert list(fill([("a" * 64, SMALL_BYTES + 1), ("b" * 64, 3)])) == [("b" * 64, 3)]
