"""Artifacts of Weights & Biases: what a manifest leads to, what answers mean, and where the key goes."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import FileEntry, Manifest
from cached.core.listing import Listing
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget, LocalTarget
from tests.support.fake_wandb import KEY, FakeWandb
from tests.support.hub_cases import write

NAME = "acme/models/tiny:v0"
URI = "wandb://acme/models/tiny:v0"
FILES = {"config.json": b"{}", "ñ + % # ?/w.bin": b"weights" * 1000, "empty.txt": b""}


async def resolve(uri: str, client: HttpClient) -> Listing:
    source = open_source(uri, client)
    try:
        return await source.resolve()
    finally:
        await source.aclose()


async def error_of(uri: str, client: HttpClient) -> HoldfastError:
    """The error of resolving a location."""
    with pytest.raises(HoldfastError) as caught:
        await resolve(uri, client)
    assert caught.value.remedy
    return caught.value


async def read(uri: str, client: HttpClient) -> dict[str, bytes]:
    """Every file's bytes, at the address that it is located at."""
    source = open_source(uri, client)
    found = {}
    for file in (await source.resolve()).files:
        target = await source.locate(file)
        if isinstance(target, LocalTarget):
            found[file.path] = target.path.read_bytes()
        else:
            assert isinstance(target, HttpTarget)
            found[file.path] = client.fetch(target, 100_000, Cancellation()).body
    return found


@pytest.mark.parametrize(("layout", "serves_itself"), [("V2", False), ("V1", False), ("V2", True)])
async def test_files_are_read_by_their_digest(
    layout: str, serves_itself: bool, fake: FakeWandb, client: HttpClient
) -> None:
    """Both layouts of the store, behind redirects and at a server that has the files itself, give the same files, each
    with its md5; the version is named."""
    fake.layout, fake.serves_itself = layout, serves_itself
    fake.add(NAME, FILES)
    assert await read(URI, client) == FILES
    listing = await resolve(URI, client)
    assert listing.revision == "v1" and {file.trust for file in listing.files} == {"checked"}
    assert {file.path: file.size for file in listing.files} == {path: len(data) for path, data in FILES.items()}


async def test_a_folder_of_an_artifact(fake: FakeWandb, client: HttpClient) -> None:
    """`folder` takes the files below it, by their paths there."""
    fake.add(NAME, {"a/w.bin": b"1", "a/b/c": b"2", "ab": b"3"})
    assert await read(f"{URI}?folder=a", client) == {"w.bin": b"1", "b/c": b"2"}
    assert (await error_of(f"{URI}?folder=gone", client)).code == "not_found"


async def test_a_published_folder_is_known(fake: FakeWandb, client: HttpClient) -> None:
    """A `holdfast.json` among an artifact's files vouches for each."""
    entries = [FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in FILES.items()]
    manifest = Manifest.build(entries)
    fake.add(NAME, {**FILES, "holdfast.json": manifest.canonical()})
    listing = await resolve(URI, client)
    assert listing.manifest is not None and listing.manifest.digest == manifest.digest
    assert {file.trust for file in listing.files} == {"known"}
    assert await read(URI, client) == FILES


async def test_another_digest_than_md5_is_no_promise(fake: FakeWandb, client: HttpClient) -> None:
    """A digest by another algorithm finds the file at the service, and vouches for nothing."""
    record = fake.add(NAME, {"w.bin": b"1"})
    record["entries"]["w.bin"]["extra"] = {"alg": "XXH128"}
    (file,) = (await resolve(URI, client)).files
    assert file.trust == "sized" and not file.sums


async def test_references_are_read_where_they_lead(fake: FakeWandb, client: HttpClient, tmp_path: Path) -> None:
    """References to local files, to the web and to another artifact's file are read there, under the names of this
    artifact; a local one only below the allowed folder."""
    write(tmp_path / "shared", {"m/w 1.bin": b"local"})
    other = fake.add("acme/models/base:v0", {"deep/base.bin": b"base"})
    web = fake.entry(b"web")
    digest = base64.b64decode(web["digest"]).hex()
    record = fake.add(NAME, {"config.json": b"{}"})
    link = f"wandb-artifact://{base64.b64decode(other['id']).hex()}/deep/base.bin"
    local = (tmp_path / "shared" / "m" / "w 1.bin").as_uri()
    record["entries"] |= {
        "base.bin": {"digest": "x", "ref": link, "size": 0},
        "local.bin": {"digest": local, "ref": local},
        "web.bin": {"digest": digest, "ref": f"{fake.url}/store/{digest}?sig=99", "size": 3},
    }
    found = await read(f"{URI}?file_root={tmp_path}/shared", client)
    assert found == {"config.json": b"{}", "base.bin": b"base", "local.bin": b"local", "web.bin": b"web"}
    problems = {file.path: file.problem for file in (await resolve(URI, client)).files if file.problem is not None}
    assert {path: problem.code for path, problem in problems.items()} == {"local.bin": "forbidden_file"}


async def test_a_reference_that_changed_is_told(fake: FakeWandb, client: HttpClient) -> None:
    """An object with another ETag or size than when it was logged has the problem; the others are fine."""
    web = fake.entry(b"web")
    digest = base64.b64decode(web["digest"]).hex()
    ref = f"{fake.url}/store/{digest}?sig=99"
    fake.add(NAME, {})["entries"] |= {
        "good": {"digest": digest, "ref": ref, "size": 3},
        "changed": {"digest": "other", "ref": ref, "size": 3},
        "longer": {"digest": digest, "ref": ref, "size": 4},
    }
    problems = {file.path: file.problem for file in (await resolve(URI, client)).files}
    codes = {path: problem.code for path, problem in problems.items() if problem is not None}
    assert codes == {"changed": "source_changed", "longer": "size_mismatch"}


@pytest.mark.parametrize(
    ("ref", "code"),
    [
        ("hdfs://namenode/w", "unknown_store"),
        ("s3://bucket/w?endpoint_url=https://thief.example", "bad_address"),
        ("s3://bucket", "bad_address"),
        ("https://user:secret@host/w", "bad_address"),
        ("file:///etc/passwd", "forbidden_file"),
        ("wandb-artifact://00ff/w", "not_found"),
        ("wandb-artifact://nohex/w", "unknown_store"),
        ("https://[host/w", "bad_address"),
        ("file://[host/w", "bad_address"),
        ("wandb-artifact://[00ff/w", "bad_address"),
        ("https://a\u2100b/w", "bad_address"),
    ],
)
async def test_what_an_artifact_may_not_choose(ref: str, code: str, fake: FakeWandb, client: HttpClient) -> None:
    """A reference that would read this node's files, take our credentials elsewhere or leads nowhere is the problem of
    its file, and shows no secret."""
    fake.add(NAME, {"config.json": b"{}"})["entries"]["w"] = {"digest": ref, "ref": ref}
    problems = {file.path: file.problem for file in (await resolve(URI, client)).files}
    assert problems["config.json"] is None
    problem = problems["w"]
    assert problem is not None and problem.code == code and "secret" not in str(problem)


async def test_artifacts_in_a_circle(fake: FakeWandb, client: HttpClient) -> None:
    """An artifact that refers to itself is the problem of that file."""
    record = fake.add(NAME, {})
    link = f"wandb-artifact://{base64.b64decode(record['id']).hex()}/w"
    record["entries"]["w"] = {"digest": "x", "ref": link}
    (file,) = (await resolve(URI, client)).files
    assert file.problem is not None and file.problem.code == "circular_source"


async def test_names_with_path_tricks(fake: FakeWandb, client: HttpClient) -> None:
    """A name that leads out of the version is refused if it is chosen."""
    fake.add(NAME, {"../../etc/passwd": b"1", "/etc/passwd": b"2", "a//b": b"3", "fine": b"4"})
    codes = {file.path: getattr(file.problem, "code", None) for file in (await resolve(URI, client)).files}
    assert codes == {"../../etc/passwd": "bad_name", "/etc/passwd": "bad_name", "a//b": "bad_name", "fine": None}


async def test_states(fake: FakeWandb, client: HttpClient) -> None:
    """An artifact that is not committed is asked for again; a deleted, an unknown one and an unknown project are
    permanent."""
    record = fake.add(NAME, {"w": b"1"}, state="PENDING")
    assert (await error_of(URI, client)).code == "not_ready"
    record["state"] = "DELETED"
    for uri in (URI, "wandb://acme/models/tiny:gone", "wandb://acme/gone/tiny:v0"):
        error = await error_of(uri, client)
        assert (error.code, error.permanent) == ("not_found", True)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, {"Content-Type": "text/html"}, b"<!doctype html><title>Sign in</title>"), "bad_response"),
        ((200, {}, b'{"data": {"proj'), "bad_response"),
        ((200, {}, b"[]"), "bad_response"),
        ((200, {}, b'{"data": null}'), "bad_response"),
        ((200, {}, b'{"data": {"project": {"artifact": 7}}}'), "bad_response"),
        ((200, {}, b'{"data": {"project": {"artifact": {"versionIndex": 1}}}}'), "bad_response"),
        ((200, {}, b'{"errors": [{"message": "permission denied"}]}'), "forbidden"),
        ((200, {}, b'{"errors": [{"message": "Project not found"}]}'), "not_found"),
        ((200, {}, b'{"errors": [{"message": "internal"}]}'), "bad_response"),
        ((401, {}, b"{}"), "unauthorized"),
        ((403, {}, b"{}"), "forbidden"),
        ((429, {}, b""), "http_429"),
    ],
)
async def test_bad_answers(
    answer: tuple[int, dict[str, str], bytes], code: str, fake: FakeWandb, client: HttpClient
) -> None:
    """A page, cut or foreign JSON, an error inside a 200 and a refusal are told for what they are."""
    fake.fault = lambda _method, _path: answer
    assert (await error_of(URI, client)).code == code


@pytest.mark.parametrize(
    "manifest",
    [
        b"<!doctype html>",
        b'{"version": 1, "contents": {"a',
        b"[]",
        {"version": 2, "contents": {}},
        {"version": 1, "contents": []},
        {"version": 1, "contents": {"a": 7}},
        {"version": 1, "contents": {"a": {"digest": 7}}},
        {"version": 1, "contents": {"a": {"digest": "no base64!"}}},
        {"version": 1, "contents": {"a": {"digest": "AAAA"}}},
        {"version": 1, "contents": {"a": {"digest": "x", "ref": 7}}},
        {"version": 1, "contents": {"a": {"digest": "x", "ref": "s3://b/k", "size": -1}}},
        {"version": 1, "contents": {"a": {"digest": "x", "ref": "s3://b/k", "size": 2**60}}},
        {"version": 1, "contents": {}, "storagePolicyConfig": {"storageLayout": "V9"}},
        b'{"version": 1, "contents": {"a": {"digest": "x", "ref": "s3://b/k"}, "a": {"digest": "x", "ref": "s3://b/k"}}}',
    ],
    ids=lambda manifest: str(manifest)[:40],
)
async def test_bad_manifests(manifest: Any, fake: FakeWandb, client: HttpClient) -> None:
    """A manifest that is cut, has another form, absurd sizes or a name twice is none."""
    fake.add(NAME, {"w": b"1"})
    body = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    fake.fault = lambda _method, path: (200, {}, body) if path.startswith("/store/") else None
    assert (await error_of(URI, client)).code == "bad_response"


async def test_the_key_goes_to_its_server_only(
    fake: FakeWandb, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's key is for the environment's server; another one that a location names gets a netrc file's key
    for it, or none. The store never gets one."""
    fake.add(NAME, {"w": b"1"})
    assert await read(f"{URI}?base_url={fake.url}", client) == {"w": b"1"}
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert (await error_of(f"{URI}?base_url={fake.url}", client)).code == "unauthorized"
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with_netrc = HttpClient(client.settings)
    try:
        listing = await resolve(f"{URI}?base_url={fake.url}", with_netrc)
        assert [file.path for file in listing.files] == ["w"]
    finally:
        with_netrc.close()


@pytest.mark.parametrize(
    "uri",
    [
        "wandb://acme/tiny:v0",
        "wandb://acme/models/tiny/deep:v0",
        "wandb:/acme/models/tiny",
        "wandb://acme//tiny",
        "wandb://acme/models/tiny:",
        f"{URI}?key=sesame",
        f"{URI}?base_url=sesame",
        f"{URI}?base_url=https://me:sesame@host",
        f"{URI}?folder=../sesame",
        f"{URI}?file_root=sesame",
    ],
)
def test_locations_that_are_none(uri: str, fake: FakeWandb, client: HttpClient) -> None:
    """A location that is no artifact's is refused with the right form, and without quoting what may be secret."""
    with pytest.raises(Permanent) as caught:
        open_source(uri, client)
    assert caught.value.code == "bad_source" and "wandb://" in caught.value.remedy and "sesame" not in str(caught.value)
