"""Versions in S3: moto's server for the semantics, rclone's for the bytes."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import FileEntry, Manifest
from cached.core.listing import RemoteFile
from cached.sources.s3.source import S3Source
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from tests.support.choosing import chosen
from tests.support.http_server import Reply, serve_replies
from tests.support.s3 import (
    ACCESS_KEY,
    SECRET_KEY,
    S3Server,
    isolated_environment,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test sets itself reaches botocore."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in isolated_environment().items():
        monkeypatch.setenv(name, value)


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point botocore at `server` with its key, and make a bucket of our own there."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return make_bucket(server)


def make_bucket(server: S3Server) -> str:
    bucket = f"models-{uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=bucket)
    return bucket


def put(server: S3Server, bucket: str, **objects: bytes) -> None:
    for key, data in objects.items():
        server.client().put_object(Bucket=bucket, Key=key, Body=data)


@asynccontextmanager
async def opened(uri: str) -> AsyncIterator[S3Source]:
    source = S3Source(uri, 60.0)
    try:
        yield source
    finally:
        await source.aclose()


async def resolve(uri: str) -> dict[str, RemoteFile]:
    async with opened(uri) as source:
        return {file.path: file for file in (await source.resolve()).files}


async def refusal(uri: str) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        async with opened(uri) as source:
            await chosen(source)
    assert caught.value.remedy
    assert SECRET_KEY not in repr(caught.value) and SECRET_KEY not in str(caught.value)
    return caught.value


async def target_of(uri: str, path: str) -> HttpTarget:
    async with opened(uri) as source:
        files = {file.path: file for file in (await source.resolve()).files}
        target = await source.locate(files[path])
    assert isinstance(target, HttpTarget)
    return target


def get(url: str, **headers: str) -> tuple[int, bytes]:
    """A plain GET, as the byte path sends it: no AWS library."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=120)
    try:
        connection.request(
            "GET", f"{parts.path}?{parts.query}", headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def test_a_prefix_lists_its_objects(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects under the prefix are listed with size and ETag, those of a neighbour with the same beginning are not."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/v1/w.bin": b"abc", "m/v1/sub/ä +%.txt": b"", "m/v10/no": b"x"})
    files = await resolve(f"s3://{bucket}/m/v1")
    assert sorted(files) == ["sub/ä +%.txt", "w.bin"]
    assert files["w.bin"] == RemoteFile("w.bin", "m/v1/w.bin", 3, '"900150983cd24fb0d6963f7d28e17f72"')


async def test_an_etag_is_no_checksum(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed object has a validator and no sha256."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/w": b"abc"})
    assert [f.sha256 for f in (await resolve(f"s3://{bucket}/m/")).values()] == [None]


async def test_listings_are_read_to_their_last_page(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than fit one page are all listed."""
    bucket = use(moto, monkeypatch)
    connection = http.client.HTTPConnection(urlsplit(moto.url).netloc, timeout=120)
    for number in range(1001):
        connection.request("PUT", f"/{bucket}/m/{number:04}", body=b"")
        connection.getresponse().read()
    connection.close()
    assert sorted(await resolve(f"s3://{bucket}/m/")) == [f"{n:04}" for n in range(1001)]


async def test_folder_markers_are_skipped(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The empty `…/` keys that consoles make are no files."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/": b"", "m/sub/": b"", "m/sub/w": b"x"})
    assert list(await resolve(f"s3://{bucket}/m/")) == ["sub/w"]


@pytest.mark.parametrize("key", ["m/a//b", "m/a\\b", "m/full/"])
async def test_a_key_that_is_no_path_is_named(moto: S3Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A key that would make a bad path is refused by name, not skipped."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/w": b"x", key: b"x"})
    error = await refusal(f"s3://{bucket}/m/")
    assert error.code == "bad_name" and repr(key[2:]) in error.message


async def test_a_single_object_is_a_version_of_one_file(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location that is exactly an object's key lists that object under its last segment."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/model.gguf": b"abc"})
    files = await resolve(f"s3://{bucket}/m/model.gguf")
    assert files == {"model.gguf": RemoteFile("model.gguf", "m/model.gguf", 3, '"900150983cd24fb0d6963f7d28e17f72"')}


async def test_a_manifest_decides_what_is_listed(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a `holdfast.json` the listing is the manifest's, and the sha256 stands in for a validator."""
    bucket = use(moto, monkeypatch)
    manifest = Manifest.build([FileEntry("w", Digest.of(b"abc").hex, 3)])
    put(moto, bucket, **{"m/w": b"abc", "m/other": b"x", "m/holdfast.json": manifest.canonical()})
    async with opened(f"s3://{bucket}/m/") as source:
        listing = await source.resolve()
        target = await source.locate(listing.files[0])
    assert listing.manifest == manifest
    assert listing.files == (RemoteFile("w", "m/w", 3, "", Digest.of(b"abc").hex),)
    assert isinstance(target, HttpTarget) and target.if_match is None
    assert get(target.url) == (200, b"abc")


@pytest.mark.parametrize("coding", ["aws-chunked", "utf-8", "gzip", "aws-chunked,gzip"])
async def test_a_stored_content_encoding_says_nothing_of_the_bytes(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, coding: str
) -> None:
    """An object's Content-Encoding is metadata: the manifest is read as stored, and every file is as long as listed."""
    bucket = use(moto, monkeypatch)
    manifest = Manifest.build([FileEntry("w", Digest.of(b"abc").hex, 3)])
    for key, data in (("p/holdfast.json", manifest.canonical()), ("p/w", b"abc"), ("m/w", b"abc")):
        moto.client().put_object(Bucket=bucket, Key=key, Body=data, ContentEncoding=coding)
    client = HttpClient(HttpSettings())
    for uri in (f"s3://{bucket}/p/", f"s3://{bucket}/m/", f"s3://{bucket}/m/w"):
        target = await target_of(uri, "w")
        assert client.fetch(target, 10, Cancellation()).body == b"abc"
    client.close()


async def test_a_signed_url_gives_ranges_to_anybody(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's URL needs no other credentials, gives ranges, and shows in no repr."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/a b+ä": b"0123456789"})
    target = await target_of(f"s3://{bucket}/m/", "a b+ä")
    assert get(target.url, Range="bytes=2-5") == (206, b"2345")
    assert "X-Amz-Signature" in target.url and "Signature" not in repr(target)
    assert SECRET_KEY not in target.url


async def test_if_match_notices_a_replaced_object(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ETag of the listing, sent as If-Match, refuses an object that was replaced since."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/w": b"old"})
    target = await target_of(f"s3://{bucket}/m/", "w")
    assert target.if_match is not None
    assert get(target.url, If_Match=target.if_match)[0] == 200
    put(moto, bucket, **{"m/w": b"new"})
    assert get(target.url, If_Match=target.if_match)[0] == 412


async def test_a_versioned_object_is_read_as_it_was_listed(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bucket keeps versions, a single object is pinned to the one that was seen."""
    bucket = use(moto, monkeypatch)
    moto.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put(moto, bucket, **{"m/w": b"old"})
    uri = f"s3://{bucket}/m/w"
    async with opened(uri) as source:
        file = (await source.resolve()).files[0]
        put(moto, bucket, **{"m/w": b"new"})
        target = await source.locate(file)
    assert isinstance(target, HttpTarget)
    assert get(target.url) == (200, b"old")
    assert (await resolve(uri))["w"].validator != file.validator


async def test_anonymous_requests_are_not_signed(moto: S3Server) -> None:
    """With `anonymous=true` no credentials are looked for and nothing is signed."""
    bucket = make_bucket(moto)
    put(moto, bucket, **{"m/w": b"abc"})
    moto.client().put_bucket_acl(Bucket=bucket, ACL="public-read")
    moto.client().put_object_acl(Bucket=bucket, Key="m/w", ACL="public-read")
    target = await target_of(f"s3://{bucket}/m/?anonymous=true&endpoint_url={moto.url}&addressing_style=path", "w")
    assert "X-Amz" not in target.url and "Signature" not in target.url
    assert get(target.url, Range="bytes=1-1") == (206, b"b")


@pytest.mark.parametrize(
    ("date", "is_read"),
    [
        ("2026-11-30T15:00:00.000Z", True),
        ("2026-11-30T15:00:00+01:00", True),
        ("Mon, 30 Nov 2026 15:00:00 GMT", True),
        ("1796050800", True),
        ("20261130", True),
        ("last TUESDAY", False),
    ],
)
async def test_a_date_may_have_any_form_that_botocore_reads(date: str, is_read: bool) -> None:
    """What a date of a listing looks like decides nothing, as long as it is one."""
    entry = f"<Key>m/w</Key><Size>3</Size><LastModified>{date}</LastModified><ETag>&quot;e&quot;</ETag>"
    listing = f"<ListBucketResult><Contents>{entry}</Contents></ListBucketResult>".encode()

    def reply(_method: str, target: str, _headers: Message, _body: bytes) -> Reply:
        if "list-type=2" in target:
            return 200, {"Content-Type": "application/xml"}, listing
        return 404, {"Content-Type": "application/xml"}, b"<Error><Code>NoSuchKey</Code></Error>"

    with serve_replies(reply) as host:
        uri = f"s3://models/m/?anonymous=true&endpoint_url=http://{host}&addressing_style=path&region=us-east-1"
        if is_read:
            assert list(await resolve(uri)) == ["w"]
        else:
            assert (await refusal(uri)).code == "bad_response"


async def test_without_credentials_the_remedy_says_where_to_put_them(moto: S3Server) -> None:
    """No credentials anywhere is permanent, and names the ways to give some."""
    error = await refusal(f"s3://{make_bucket(moto)}/m/?endpoint_url={moto.url}")
    assert isinstance(error, Permanent) and error.code == "unauthorized"
    assert all(way in error.remedy for way in ("IRSA", "AWS_ACCESS_KEY_ID", "profile", "anonymous"))


async def test_a_missing_bucket_is_named(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that is not there is permanent and told apart from an empty prefix."""
    bucket = use(moto, monkeypatch)
    missing = await refusal("s3://no-such-bucket-here/m/")
    assert missing.permanent and missing.code == "not_found" and "no such bucket" in missing.message
    empty = await refusal(f"s3://{bucket}/m/")
    assert empty.permanent and empty.code == "not_found" and f"s3://{bucket}/m/holdfast.json" in empty.message


async def test_web_identity_gives_credentials(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A projected service account token and a role, as IRSA sets them, are enough: STS gives the rest."""
    bucket = make_bucket(moto)
    put(moto, bucket, **{"m/w": b"abc"})
    token = tmp_path / "token"
    token.write_text("a.service.account.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/weights-reader")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.url)
    target = await target_of(f"s3://{bucket}/m/?endpoint_url={moto.url}", "w")
    signed = parse_qs(urlsplit(target.url).query)
    assert signed["X-Amz-Credential"][0].startswith("ASIA"), "a role's key, not a user's"
    assert signed["X-Amz-Security-Token"]
    assert get(target.url) == (200, b"abc")


async def test_an_unreadable_web_identity_token_is_named(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A token file that is missing is a question of credentials, and the file is named."""
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "gone"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/weights-reader")
    error = await refusal(f"s3://bucket/m/?endpoint_url={moto.url}")
    assert error.permanent and error.code == "unauthorized" and str(tmp_path / "gone") in error.message


async def test_a_profile_is_read_from_the_shared_file(
    rclone: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`profile=` takes the key from AWS_SHARED_CREDENTIALS_FILE; the server checks the signature."""
    bucket = make_bucket(rclone)
    put(rclone, bucket, **{"m/w": b"abc"})
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[dev]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    assert list(await resolve(f"s3://{bucket}/m/?endpoint_url={rclone.url}&profile=dev")) == ["w"]
    error = await refusal(f"s3://{bucket}/m/?endpoint_url={rclone.url}&profile=prod")
    assert error.permanent and error.code == "unauthorized" and "prod" in error.message


async def test_a_wrong_key_is_unauthorized(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials the server refuses are permanent, and not shown."""
    bucket = use(rclone, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame-open-sesame")
    error = await refusal(f"s3://{bucket}/m/")
    assert error.permanent and error.code == "unauthorized"
    assert "sesame" not in json.dumps([str(error), error.message, error.remedy])


async def test_rclone_serves_what_was_listed(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another S3 server than AWS: a listing of many files, signed URLs, ETags with their quotes."""
    bucket = use(rclone, monkeypatch)
    put(rclone, bucket, **{"m/sub/w": b"0123456789", "m/x": b"y"})
    async with opened(f"s3://{bucket}/m/") as source:
        files = (await source.resolve()).files
        target = await source.locate(files[0])
    assert [f.path for f in files] == ["sub/w", "x"]
    assert isinstance(target, HttpTarget) and target.if_match == '"781e5e245d69b566979b86e28d23f2c7"'
    assert get(target.url) == (200, b"0123456789")
    assert get(target.url, Range="bytes=2-5")[1] == b"2345"


async def test_closing_twice_is_closing_once(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aclose` may be called again, and before anything was opened."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/w": b"abc"})
    source: Any = S3Source(f"s3://{bucket}/m/", 60.0)
    await source.aclose()
    await source.resolve()
    await source.aclose()
    await source.aclose()


async def test_display_names_the_place_without_credentials() -> None:
    """What is shown of a source is where it is."""
    async with opened("s3://models/m/v1/?profile=dev&region=eu-west-1") as source:
        assert (source.display, source.kind) == ("s3://models/m/v1/", "s3")


async def identity_at(uri: str) -> str:
    """What tells the listing's objects from all others."""
    async with opened(uri) as source:
        return (await source.resolve()).identity


async def test_one_location_in_two_environments_is_two_places(
    moto: S3Server, rclone: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bucket's name means another bucket at another server, wherever the server's address comes from, and for
    another user or profile; for the same of all it is the same one."""
    bucket = use(moto, monkeypatch)
    rclone.client().create_bucket(Bucket=bucket)
    for server in (moto, rclone):
        put(server, bucket, **{"m/w": b"abc"})
    uri = f"s3://{bucket}/m/"
    first = await identity_at(uri)
    assert await identity_at(uri) == first
    found = {first, await identity_at(f"s3://{bucket}/m/?region=eu-west-1")}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", rclone.url)
    found.add(await identity_at(uri))
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    found.add(await identity_at(f"s3://{bucket}/m/?endpoint_url={moto.url}/"))  # written differently: at worst apart
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url)
    assert await identity_at(uri) == first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAANOTHERUSER")
    found.add(await identity_at(uri))
    configuration = tmp_path / "config"
    keys = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    configuration.write_text(f"[profile one]\n{keys}[profile two]\n{keys}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(configuration))
    found.add(await identity_at(f"{uri}?profile=one"))
    monkeypatch.setenv("AWS_PROFILE", "two")
    found.add(await identity_at(uri))
    assert len(found) == 7


async def test_a_session_that_is_renewed_is_the_same_user(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that come with a session token change every hour: a fetch goes on with the new ones."""
    bucket = use(moto, monkeypatch)
    put(moto, bucket, **{"m/w": b"abc"})
    found = set()
    for number in (1, 2):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"ASIASESSION{number}")
        monkeypatch.setenv("AWS_SESSION_TOKEN", f"token{number}")
        found.add(await identity_at(f"s3://{bucket}/m/"))
    assert len(found) == 1
