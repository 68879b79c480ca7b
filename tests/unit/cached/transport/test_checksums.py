"""The sums beside sha256: as their definitions have them, however the bytes come."""

from __future__ import annotations

import hashlib
import random
import sys
import zlib

import pytest

from cached.contract.errors import Permanent
from cached.core.listing import Algorithm, Checksum, RemoteFile
from cached.transport.checksums import new_hasher

CHECK = b"123456789"  # the catalogue of CRCs gives each sum of these bytes


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (Algorithm.CRC32C, "e3069283"),
        (Algorithm.CRC32, "cbf43926"),
        (Algorithm.SHA1, hashlib.sha1(CHECK).hexdigest()),
        (Algorithm.MD5, hashlib.md5(CHECK).hexdigest()),
    ],
)
def test_the_published_check_values(algorithm: Algorithm, expected: str) -> None:
    """Each sum of `123456789` is the one that its catalogue or standard gives."""
    hasher = new_hasher(algorithm)
    hasher.update(memoryview(CHECK))
    assert hasher.hexdigest() == expected
    assert Checksum(algorithm, expected).hex == expected


def test_crc64nvme_needs_its_library_only() -> None:
    """CRC64NVME is AWS's check value where awscrt is installed, else an error that names the package."""
    try:
        hasher = new_hasher(Algorithm.CRC64NVME)
    except Permanent as error:
        assert "awscrt" in str(error) and "awscrt" not in sys.modules
        return
    hasher.update(memoryview(CHECK))
    assert hasher.hexdigest() == "ae8b14860a799888"


@pytest.mark.parametrize("algorithm", [Algorithm.CRC32C, Algorithm.CRC32, Algorithm.MD5])
def test_pieces_make_no_difference(algorithm: Algorithm) -> None:
    """A sum does not depend on how the bytes are cut, also in memory that may be written, as a download's buffers."""
    data = random.Random(1).randbytes(3_000_001)
    whole, pieces, view = new_hasher(algorithm), new_hasher(algorithm), memoryview(bytearray(data))
    whole.update(view)
    for start, end in ((0, 1), (1, 300_000), (300_000, len(data))):
        pieces.update(view[start:end])
    assert whole.hexdigest() == pieces.hexdigest()
    if algorithm is Algorithm.CRC32:
        assert whole.hexdigest() == f"{zlib.crc32(data):08x}"


@pytest.mark.parametrize("text", ["", "E3069283", "e306928", "e30692833", "zzzzzzzz"])
def test_other_text_is_no_sum(text: str) -> None:
    """A sum has exactly the digits of its algorithm, in lower case: a service that sends others is heard at once."""
    with pytest.raises(ValueError, match="8 hex digits of a crc32c"):
        Checksum(Algorithm.CRC32C, text)


def test_sums_of_object_stores_are_base64() -> None:
    """Google's crc32c and Content-MD5 are read from their base64, and nothing else is."""
    assert Checksum.from_base64(Algorithm.CRC32C, "4waSgw==").hex == "e3069283"
    for text in ("4waSgw", "4waS gw==", "!!!!", "4waSg4waSgw=="):
        with pytest.raises(ValueError):
            Checksum.from_base64(Algorithm.CRC32C, text)


def test_the_cheapest_sum_is_verified() -> None:
    """Of several sums the cheapest is verified, md5 only alone, and none beside a sha256 or a git id."""
    crc, md5 = Checksum(Algorithm.CRC32C, "e3069283"), Checksum(Algorithm.MD5, "0" * 32)
    assert RemoteFile("f", "f", 9, sums=(md5, crc)).checksum == crc
    assert RemoteFile("f", "f", 9, sums=(md5,)).checksum == md5
    assert RemoteFile("f", "f", 9, sha256="0" * 64, sums=(md5,)).checksum is None
    assert RemoteFile("f", "f", 9, git_oid="0" * 40, sums=(md5,)).checksum is None
    assert RemoteFile("f", "f", 9).checksum is None


def test_the_trust_of_a_file_is_what_its_source_vouches_for() -> None:
    """A sha256 is `known`, a weaker sum `checked`, a strong validator `versioned`, anything else `sized`."""
    md5 = Checksum(Algorithm.MD5, "0" * 32)
    files = (
        RemoteFile("f", "f", 9, sha256="0" * 64, sums=(md5,)),
        RemoteFile("f", "f", 9, "v1", git_oid="0" * 40),
        RemoteFile("f", "f", 9, "v1", sums=(md5,)),
        RemoteFile("f", "f", 9, "v1"),
        RemoteFile("f", "f", 9),
        RemoteFile("f", "f", None),
    )
    assert [file.trust for file in files] == ["known", "checked", "checked", "versioned", "sized", "sized"]
