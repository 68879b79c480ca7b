"""The sums that S3 keeps: which of them a listing may promise. moto says neither in a listing nor of an object what a
sum is of; the proxy in between adds that as S3's user guide has it ("Checking object integrity in Amazon S3")."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cached.conformance.cases import digest_of
from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.conformance.pulling import puller_in
from cached.contract.errors import HoldfastError
from cached.core.listing import RemoteFile
from cached.sources.s3.source import S3Source
from cached.sources.s3.sums import find_sums
from tests.support.s3 import S3Server, isolated_environment

DATA = b"weights" * 100
SHA256 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
CRC32 = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()
FULL = {"ChecksumType": "FULL_OBJECT", "ETag": '"abc"'}


@pytest.mark.parametrize(
    ("found", "sha256", "algorithms"),
    [
        ({**FULL, "ChecksumSHA256": SHA256}, True, []),
        ({**FULL, "ChecksumCRC32": CRC32}, False, ["crc32"]),
        ({**FULL, "ChecksumCRC32C": "4waSgw=="}, False, ["crc32c"]),
        ({**FULL, "ChecksumSHA256": SHA256, "ETag": '"abc-2"'}, False, []),  # of parts, whatever it says
        ({**FULL, "ChecksumSHA256": f"{SHA256}-2"}, False, []),
        ({**FULL, "ChecksumCRC32": f"{CRC32}-2"}, False, []),
        ({**FULL, "ChecksumType": "COMPOSITE", "ChecksumSHA256": SHA256, "ChecksumCRC32": CRC32}, False, []),
        ({"ETag": '"abc"', "ChecksumSHA256": SHA256}, False, []),  # moto, and servers from before the mark
        ({**FULL, "ChecksumSHA256": "AAAA", "ChecksumCRC32": "!"}, False, []),
        (FULL, False, []),
    ],
)
def test_only_a_sum_of_the_whole_object_counts(found: dict[str, Any], sha256: bool, algorithms: list[str]) -> None:
    """A sum of parts, one without the mark FULL_OBJECT, and one that is malformed promise nothing."""
    digest, sums = find_sums(found)
    assert digest == (hashlib.sha256(DATA).hexdigest() if sha256 else None)
    assert [each.algorithm for each in sums] == algorithms


@pytest.fixture
def front(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """moto, behind a proxy that marks single uploads as S3 does."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with front_of(moto.url) as front:
        for name, value in {**isolated_environment(), **moto.environment, "AWS_ENDPOINT_URL_S3": front.url}.items():
            monkeypatch.setenv(name, value)
        front.alter = mark
        yield front


def mark(request: ProxiedRequest, headers: dict[str, str], body: bytes) -> bytes:
    """Add the type of the checksum to a listing's entries and to a head that has a checksum."""
    asked = request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
    if request.method == "HEAD" and asked and any(name.lower().startswith("x-amz-checksum-") for name in headers):
        headers["x-amz-checksum-type"] = "FULL_OBJECT"
    return body.replace(b"</ChecksumAlgorithm>", b"</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>")


def put(moto: S3Server, versioned: bool = False) -> str:
    client, bucket = moto.client(), f"models-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    if versioned:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket=bucket, Key="m/sha.bin", Body=DATA, ChecksumAlgorithm="SHA256")
    client.put_object(Bucket=bucket, Key="m/crc.bin", Body=DATA[1:], ChecksumAlgorithm="CRC32")
    client.put_object(Bucket=bucket, Key="m/none.bin", Body=DATA[2:])
    return bucket


async def listed(source: S3Source) -> dict[str, RemoteFile]:
    return {file.path: file for file in (await source.resolve()).files}


async def test_a_listing_has_the_sums_that_s3_keeps(moto: S3Server, front: Front, tmp_path: Path) -> None:
    """A sha256 of the whole object makes a file known, a crc32 checked, an ETag versioned; only marked objects cost a
    request, and the pull verifies the sums."""
    bucket = put(moto)
    source = S3Source(f"s3://{bucket}/m/", 60.0)
    files = await listed(source)
    assert {path: str(file.trust) for path, file in files.items()} == {
        "sha.bin": "known",
        "crc.bin": "checked",
        "none.bin": "versioned",
    }
    assert sum(request.method == "HEAD" for request in front.seen) == 2
    with puller_in(tmp_path / "root") as puller:
        digest = await puller.pull(source)
        assert digest == digest_of({"sha.bin": DATA, "crc.bin": DATA[1:], "none.bin": DATA[2:]})
        wrong = base64.b64encode(bytes(4)).decode()

        def lie(request: ProxiedRequest, headers: dict[str, str], body: bytes) -> bytes:
            body = mark(request, headers, body)
            for name in [name for name in headers if name.lower() == "x-amz-checksum-crc32"]:
                headers[name] = wrong
            return body

        front.alter = lie
        with puller_in(tmp_path / "other") as other, pytest.raises(HoldfastError, match="crc32: expected 00000000"):
            await other.pull(source)
    await source.aclose()


async def test_an_object_is_pinned_to_its_version(moto: S3Server, front: Front, tmp_path: Path) -> None:
    """In a bucket that keeps versions a described object is read as it was listed, also after it was overwritten; what
    names it in the store does not change with that."""
    bucket = put(moto, versioned=True)
    source = S3Source(f"s3://{bucket}/m/", 60.0)
    listing = await source.resolve()
    crc = next(file for file in listing.files if file.path == "crc.bin")
    assert crc.object_version and crc.object_version not in crc.version
    moto.client().put_object(Bucket=bucket, Key="m/crc.bin", Body=b"other")
    with puller_in(tmp_path / "root") as puller:
        digest = await puller.fetch(source, listing)
    assert digest == digest_of({"sha.bin": DATA, "crc.bin": DATA[1:], "none.bin": DATA[2:]})
    await source.aclose()


async def test_one_object_has_its_sum_too(moto: S3Server, front: Front) -> None:
    """A location of a single object is described with the same request that finds it."""
    bucket = put(moto)
    source = S3Source(f"s3://{bucket}/m/sha.bin", 60.0)
    (file,) = (await listed(source)).values()
    assert file.sha256 == hashlib.sha256(DATA).hexdigest()
    await source.aclose()


async def test_without_the_mark_nothing_is_asked(moto: S3Server, front: Front) -> None:
    """A server that does not say what its sums are of costs no request more, and is versioned."""
    front.alter = lambda _request, _headers, body: body
    bucket = put(moto)
    source = S3Source(f"s3://{bucket}/m/", 60.0)
    assert {str(file.trust) for file in (await listed(source)).values()} == {"versioned"}
    assert not [request for request in front.seen if request.method == "HEAD"]
    await source.aclose()
