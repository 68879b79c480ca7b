"""Buckets that not every account may read or write at any time: archives, requester pays, demanded encryption."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.core import filters
from cached.core.listing import RemoteFile
from cached.publish.destination import PART_BYTES
from cached.sources.s3.archive import archived
from cached.sources.s3.source import S3Source
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from tests.support.publishing import new_bucket, publish, published
from tests.support.s3 import S3Server
from tests.support.s3_policy import Policy, encrypted_with, guarded, requester_pays


@pytest.fixture
def bucket(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    return new_bucket(moto)


async def chosen(uri: str, *exclude: str) -> tuple[RemoteFile, ...]:
    source = S3Source(uri, 60.0)
    try:
        listing = await source.resolve()
        return filters.choose_files(listing, source.display, (), exclude)
    finally:
        await source.aclose()


async def read(uri: str) -> dict[str, bytes]:
    """Every file, through the client that carries a model's bytes."""
    source, client = S3Source(uri, 60.0), HttpClient(HttpSettings())
    try:
        found = {}
        for file in (await source.resolve()).files:
            target = await source.locate(file)
            assert isinstance(target, HttpTarget)
            found[file.path] = client.fetch(target, 1_000_000, Cancellation()).body
        return found
    finally:
        client.close()
        await source.aclose()


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
@pytest.mark.parametrize("place", ["prefix", "object"])
async def test_an_archived_object_is_refused_when_it_is_chosen(
    moto: S3Server, bucket: str, storage_class: str, place: str
) -> None:
    """The refusal names the object, its class and what to do; a file that is left out troubles no version."""
    client = moto.client()
    client.put_object(Bucket=bucket, Key="m/w", Body=b"x", StorageClass=storage_class)
    client.put_object(Bucket=bucket, Key="m/config.json", Body=b"{}")
    with pytest.raises(Permanent) as caught:
        await chosen(f"s3://{bucket}/m/" + ("w" if place == "object" else ""))
    assert caught.value.code == "archived" and "restore" in caught.value.remedy
    assert f"s3://{bucket}/m/w" in caught.value.message and storage_class in caught.value.message
    assert [file.path for file in await chosen(f"s3://{bucket}/m/", "w")] == ["config.json"]


async def test_a_restored_copy_is_read(moto: S3Server, bucket: str) -> None:
    """An archived object of which a copy was restored is an object like any other."""
    client = moto.client()
    client.put_object(Bucket=bucket, Key="m/w", Body=b"abc", StorageClass="GLACIER")
    client.put_object(Bucket=bucket, Key="m/instant", Body=b"abc", StorageClass="GLACIER_IR")
    client.restore_object(Bucket=bucket, Key="m/w", RestoreRequest={"Days": 1})
    assert [file.path for file in await chosen(f"s3://{bucket}/m/")] == ["instant", "w"]
    assert await read(f"s3://{bucket}/m/") == {"w": b"abc", "instant": b"abc"}


def test_what_headobject_tells_of_an_archive() -> None:
    """A restore under way is waited for; Intelligent-Tiering's archive tiers are told by HeadObject alone."""
    under_way = archived("s3://b/k", {"StorageClass": "GLACIER", "Restore": 'ongoing-request="true"'})
    assert isinstance(under_way, Transient) and under_way.code == "restoring"
    tiered = archived("s3://b/k", {"StorageClass": "INTELLIGENT_TIERING", "ArchiveStatus": "DEEP_ARCHIVE_ACCESS"})
    assert isinstance(tiered, Permanent) and "DEEP_ARCHIVE_ACCESS" in tiered.message
    for readable in ({}, {"StorageClass": "INTELLIGENT_TIERING"}, {"StorageClass": "STANDARD_IA"}):
        assert archived("s3://b/k", readable) is None


@pytest.mark.parametrize("key", ["m/w", "m/holdfast.json"])
async def test_an_archive_that_only_a_read_finds_is_named(moto: S3Server, bucket: str, key: str) -> None:
    """Under a manifest nothing is listed: the refusal of the object itself, or of the manifest, says the same."""
    moto.client().put_object(Bucket=bucket, Key=key, Body=b"x", StorageClass="GLACIER")
    source, client = S3Source(f"s3://{bucket}/m/", 60.0), HttpClient(HttpSettings())
    with pytest.raises(HoldfastError) as caught:
        await source.resolve()
        target = await source.locate(RemoteFile("w", "m/w", 1))
        assert isinstance(target, HttpTarget)
        client.fetch(target, 10, Cancellation())
    await source.aclose()
    client.close()
    assert caught.value.code == "archived" and "restore" in caught.value.remedy


async def test_a_requester_pays_bucket_is_read_with_the_parameter(moto: S3Server, bucket: str) -> None:
    """With `request_payer` listing, manifest and bytes come as such buckets demand; else the remedy names it."""
    moto.client().put_object(Bucket=bucket, Key="m/w", Body=b"abc")
    with guarded(moto.url, requester_pays) as url:
        uri = f"s3://{bucket}/m/?endpoint_url={url}&addressing_style=path"
        assert await read(f"{uri}&request_payer=requester") == {"w": b"abc"}
        assert await read(f"s3://{bucket}/m/w?{uri.partition('?')[2]}&request_payer=requester") == {"w": b"abc"}
        with pytest.raises(Permanent) as caught:
            await read(uri)
    assert caught.value.code == "forbidden" and "request_payer=requester" in caught.value.remedy


def folder(base: Path) -> Path:
    """A small file, and one that goes in parts."""
    (base / "model").mkdir()
    (base / "model" / "config.json").write_bytes(b"{}")
    (base / "model" / "w").write_bytes(b"w" * (PART_BYTES + 1))
    return base / "model"


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [
        (requester_pays, "request_payer=requester"),
        (encrypted_with("AES256"), "sse=AES256"),
        (encrypted_with("aws:kms"), "sse=aws:kms"),
        (
            encrypted_with("aws:kms", "arn:aws:kms:us-east-1:1:key/k"),
            "sse=aws:kms&kms_key_id=arn:aws:kms:us-east-1:1:key/k",
        ),
    ],
)
def test_a_policys_headers_are_sent_where_the_location_asks(
    moto: S3Server, bucket: str, tmp_path: Path, policy: Policy, parameters: str
) -> None:
    """Publishing, checking, mending and replacing under a policy: refused with what may be missing, else done."""
    model = folder(tmp_path)
    with guarded(moto.url, policy) as url:
        uri = f"s3://{bucket}/m/?endpoint_url={url}&addressing_style=path"
        refused = publish(model, uri, env=moto.environment)
        assert refused.returncode == 1 and "sse=" in refused.stderr and "request_payer=" in refused.stderr
        done = published(model, f"{uri}&{parameters}", env=moto.environment)
        assert done["uploaded_files"] == 2
        assert publish(model, f"{uri}&{parameters}", "--check", env=moto.environment).returncode == 0
        (model / "config.json").write_bytes(b"[]")
        assert published(model, f"{uri}&{parameters}", "--force", env=moto.environment)["uploaded_files"] == 1
    kept = moto.client().head_object(Bucket=bucket, Key="m/w").get("ServerSideEncryption")
    assert kept == (parameters.partition("&")[0].removeprefix("sse=") if "sse" in parameters else kept)
