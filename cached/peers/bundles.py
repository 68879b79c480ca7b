"""Many small blobs in one answer: what is asked for, and the form of what comes.

Law: pure. A bundle is records of a digest, a length and the bytes. It is bounded in blobs and bytes; only a blob that
was asked for, whose sha256 is right, is taken out of it. What is absent was not there, or did not fit.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

SMALL_BYTES = 1024 * 1024  # of a blob that may be in a bundle
MAX_BUNDLED = 4096  # blobs
MAX_BUNDLE_BYTES = 32 * 1024 * 1024  # of their contents
RECORD_BYTES = 36
_DIGEST_BYTES = 32
_RECORD = struct.Struct("<32sI")


class BadBundle(ValueError):
    """A bundle, or a request for one, that is malformed or out of bounds."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The blobs that a bundle had, by sha256 as 64 hexadecimal digits; `wrong`: how many of its records were none of
    these."""

    blobs: Mapping[str, bytes]
    wrong: int


def encode_wanted(sha256s: Iterable[str]) -> bytes:
    """Return the body of a request for these blobs."""
    return b"".join(map(bytes.fromhex, sha256s))


def decode_wanted(body: bytes) -> list[str]:
    """Return the sha256 of the blobs that a body asks for, each once. Raises `BadBundle`."""
    count = len(body) // _DIGEST_BYTES
    if not body or len(body) % _DIGEST_BYTES or count > MAX_BUNDLED:
        raise BadBundle(f"expected 1 to {MAX_BUNDLED} digests of {_DIGEST_BYTES} bytes, found {len(body)} bytes")
    return list(dict.fromkeys(body[at : at + _DIGEST_BYTES].hex() for at in range(0, len(body), _DIGEST_BYTES)))


def fill(sizes: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Yield the first of these blobs (sha256, size) that are small and fit in one bundle together."""
    left = MAX_BUNDLE_BYTES
    for number, (sha256, size) in enumerate(sizes):
        if number >= MAX_BUNDLED or size > left:
            return
        if size <= SMALL_BYTES:
            left -= size
            yield sha256, size


def encode_record(sha256: str, size: int) -> bytes:
    """Return what precedes a blob's bytes in a bundle."""
    return _RECORD.pack(bytes.fromhex(sha256), size)


def decode_bundle(data: bytes, wanted: Collection[str]) -> Bundle:
    """Return the wanted blobs in a bundle, each compared with its sha256. Raises `BadBundle` where it is not records to
    its end."""
    view, at, wrong = memoryview(data), 0, 0
    found: dict[str, bytes] = {}
    while at < len(view):
        if len(view) - at < RECORD_BYTES:
            raise BadBundle(f"expected a record at byte {at}, found {len(view) - at} bytes")
        digest, size = _RECORD.unpack_from(view, at)
        at += RECORD_BYTES
        if size > min(SMALL_BYTES, len(view) - at):
            raise BadBundle(f"expected at most {min(SMALL_BYTES, len(view) - at)} bytes at byte {at}, found {size}")
        content, sha256 = bytes(view[at : at + size]), digest.hex()
        at += size
        if sha256 in wanted and sha256 not in found and hashlib.sha256(content).digest() == digest:
            found[sha256] = content
        else:
            wrong += 1
    return Bundle(found, wrong)
