"""What a registry, a mirror or a proxy answers that it should not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached.contract.errors import HoldfastError
from cached.sources.oci.access.hosts import VARIABLE, find_endpoints
from cached.sources.oci.manifest import HOLDFAST_FILES, MAX_DOCUMENT_BYTES
from cached.sources.oci.source import OciSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget
from tests.support.choosing import chosen
from tests.support.registry import archive
from tests.support.scripted_registry import ScriptedRegistry, scripted_registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": f"sha256:{'1' * 64}", "size": 2}


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with scripted_registry() as served:
        yield served


def document(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": EMPTY, "layers": list(layers), **more}


def raw(registry: ScriptedRegistry, path: str = "w.bin", data: bytes = b"weights") -> dict[str, Any]:
    return {**registry.put_blob("m", data), "annotations": {"org.cncf.model.filepath": path}}


async def refusal(host: str, client: HttpClient, reference: str = ":v1") -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await chosen(OciSource(f"oci://{host}/m{reference}", client))
    assert caught.value.remedy and len(caught.value.message) < 2000
    return caught.value


async def test_a_manifest_is_hashed_whatever_is_said(registry: ScriptedRegistry, client: HttpClient) -> None:
    """A digest that the bytes do not have is `digest_mismatch`: of a reference, and of the registry's own header."""
    digest = registry.put_manifest("m", "v1", document(raw(registry)))
    registry.put(f"m/manifests/{digest}", json.dumps(document(raw(registry, "other"))).encode(), Content_Type=MANIFEST)
    assert (await refusal(registry.host, client, f"@{digest}")).code == "digest_mismatch"
    body = json.dumps(document(raw(registry))).encode()
    registry.put("m/manifests/v1", body, Content_Type=MANIFEST, Docker_Content_Digest=f"sha256:{'2' * 64}")
    assert (await refusal(registry.host, client)).code == "digest_mismatch"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "bad_response"),
        (b'{"schemaVersion": 2, "layers": [', "bad_response"),
        (b"", "bad_response"),
        (b"[" * 100_000, "bad_response"),
        (b"[]", "bad_artifact"),
        (b"{}", "bad_artifact"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "bad_artifact"),
        (b'{"schemaVersion": 2, "layers": {}, "config": {}}', "bad_artifact"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "too_large"),
    ],
    ids=["page", "cut", "empty", "deep", "list", "nothing", "schema 1", "no list", "endless"],
)
async def test_what_is_no_manifest_is_refused(
    registry: ScriptedRegistry, client: HttpClient, body: bytes, code: str
) -> None:
    """A page, a cut answer, an old format and an endless one are told apart, and named."""
    registry.put("m/manifests/v1", body, Content_Type=MANIFEST)
    assert (await refusal(registry.host, client)).code == code


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha512:" + "0" * 128},
        {"digest": "sha256:" + "G" * 64},
        {"digest": None},
        {"size": -1},
        {"size": 2**63},
        {"size": "7"},
        {"size": True},
        {"mediaType": 7},
        {"mediaType": "application/vnd.cncf.model.weight.v1.rar"},
        {"annotations": {"org.cncf.model.filepath": 3}},
        {"annotations": ["x"]},
    ],
    ids=lambda change: str(change)[:50],
)
async def test_a_layer_that_is_none_is_refused(
    registry: ScriptedRegistry, client: HttpClient, change: dict[str, Any]
) -> None:
    """Every field is checked before it is used."""
    registry.put_manifest("m", "v1", document({**raw(registry), **change}))
    assert (await refusal(registry.host, client)).code == "bad_artifact"


@pytest.mark.parametrize(
    "note",
    ["{", "[{}]", "[7]", '[{"path": "a", "sha256": "%s", "size": 7, "start": 1}]' % ("0" * 64)],
)
async def test_a_note_of_ours_is_not_believed(registry: ScriptedRegistry, client: HttpClient, note: str) -> None:
    """The annotation of `holdfast publish` must name ranges within the layer."""
    registry.put_manifest("m", "v1", document({**raw(registry), "annotations": {HOLDFAST_FILES: note}}))
    assert (await refusal(registry.host, client)).code in ("bad_artifact", "invalid_manifest")


def damaged_archives() -> dict[str, bytes]:
    good = archive({"models/a.bin": b"x" * 3000, "models/b.bin": b"y" * 3000})
    second = good.index(b"models/b.bin")
    return {
        "header": good[: second + 150] + b"\xff" + good[second + 151 :],
        "cut": good[: second + 700],
        "size": good[: second + 124] + b"77777777777" + good[second + 135 :],
        "gzip": b"\x1f\x8b" + good[2:],
        "page": b"<html>" * 1000,
    }


@pytest.mark.parametrize("name", damaged_archives())
async def test_a_damaged_archive_is_never_a_shorter_one(
    registry: ScriptedRegistry, client: HttpClient, name: str
) -> None:
    """A header that is damaged, cut, or promises more than there is, fails the listing."""
    layer = {
        **registry.put_blob("m", damaged_archives()[name]),
        "mediaType": "application/vnd.cncf.model.weight.v1.tar",
    }
    registry.put_manifest("m", "v1", document(layer))
    assert (await refusal(registry.host, client)).code == "bad_tar"


async def test_an_archive_needs_ranges(registry: ScriptedRegistry, client: HttpClient) -> None:
    """A server that sends the whole layer for each part of it is refused, not read again and again."""
    data = archive({"models/a.bin": b"x" * 200_000})
    layer = {**registry.put_blob("m", data), "mediaType": "application/vnd.cncf.model.weight.v1.tar"}
    path = f"m/blobs/{layer['digest']}"
    registry.put_manifest("m", "v1", document(layer))
    registry.put(path, data, status=203)
    assert (await refusal(registry.host, client)).permanent is False


async def test_the_redirect_of_a_blob_gets_no_credentials(
    registry: ScriptedRegistry, client: HttpClient, config: Path
) -> None:
    """The token is for the registry: the address that it redirects to is given without it, and asked for by GET."""
    (config / "config.json").write_text(json.dumps({"auths": {registry.host: {"registrytoken": "t0ken"}}}))
    layer = raw(registry)
    path = f"m/blobs/{layer['digest']}"
    realm = f'Bearer realm="http://{registry.host}/token",service="x"'
    registry.put_manifest("m", "v1", document(layer))
    whole = registry.answers["m/manifests/v1"]
    registry.put("m/manifests/v1", b"{}", status=401, WWW_Authenticate=realm)
    source = OciSource(f"oci://{registry.host}/m:v1", client)
    with pytest.raises(HoldfastError):
        await source.resolve()
    registry.answers["m/manifests/v1"] = whole
    (file,) = (await source.resolve()).files
    registry.put(path, b"", status=307, Location=f"http://store.example:1/{path}?X-Amz-Signature=abc")
    target = await source.locate(file)
    assert isinstance(target, HttpTarget) and target.headers == () and target.url.startswith("http://store.example:1/")
    assert target.chosen_by is not None and registry.host in target.chosen_by
    asked = [headers for where, headers in registry.asked if where == path]
    assert [headers.get("authorization") for headers in asked] == ["Bearer t0ken"]


def mirrors(folder: Path, host: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / host).mkdir(parents=True)
    (folder / host / "hosts.toml").write_text(text)
    monkeypatch.setenv(VARIABLE, str(folder))


async def test_a_mirror_is_asked_first_and_the_registry_last(
    registry: ScriptedRegistry, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror without `resolve` gives blobs only; one that fails, or lies, is passed over; `ns` names the registry."""
    digest = registry.put_manifest("m", "v1", document(raw(registry)))
    with scripted_registry() as mirror:
        dead = "127.0.0.1:9"
        tables = f'[host."http://{dead}"]\n[host."http://{mirror.host}"]\ncapabilities = ["pull"]\n'
        mirrors(tmp_path / "hosts", registry.host, tables, monkeypatch)
        mirror.put(f"m/manifests/{digest}", b"{}", Content_Type=MANIFEST)
        layer = raw(mirror)
        source = OciSource(f"oci://{registry.host}/m:v1", client)
        (file,) = (await source.resolve()).files
        target = await source.locate(file)
        assert isinstance(target, HttpTarget) and mirror.host in target.url
        assert client.fetch(target, 100, Cancellation()).body == b"weights"
        assert mirror.paths()[0] == f"m/blobs/{layer['digest']}?ns={registry.host}"
        assert registry.paths() == ["m/manifests/v1"]
        del mirror.answers[f"m/blobs/{layer['digest']}"]
        again = await source.locate(file)
        assert isinstance(again, HttpTarget) and registry.host in again.url.partition("?")[0]
        by_digest = OciSource(f"oci://{registry.host}/m@{digest}", client)
        assert len((await by_digest.resolve()).files) == 1


@pytest.mark.parametrize(
    "text",
    [
        "server = 7",
        "server = 'ftp://x'",
        "server = 'https://u:s3cret@x'",
        "[host.'https://m']\nskip_verify = true",
        "[host.'https://m']\ncapabilities = ['fly']",
        "[host.'https://m']\noverride_path = 1",
        "host = 1",
        "= x",
    ],
)
def test_a_setting_that_is_not_supported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Nothing in hosts.toml is passed over: the file and the key are in the error, and no secret."""
    mirrors(tmp_path / "hosts", "registry.example", text, monkeypatch)
    with pytest.raises(HoldfastError) as caught:
        find_endpoints("registry.example")
    assert caught.value.code == "bad_hosts" and "hosts.toml" in caught.value.message
    assert "s3cret" not in str(caught.value)


def test_where_requests_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's registries speak plain HTTP, others TLS; `server`, `_default` and a port's folder are found."""
    assert [each.base for each in find_endpoints("localhost:5000")] == ["http://localhost:5000/v2"]
    assert [each.base for each in find_endpoints("[::1]:5000")] == ["http://[::1]:5000/v2"]
    assert [each.base for each in find_endpoints("docker.io")] == ["https://registry-1.docker.io/v2"]
    mirrors(tmp_path / "hosts", "reg.example_5000_", "server = 'http://reg.example:5000'", monkeypatch)
    assert [each.base for each in find_endpoints("reg.example:5000")] == ["http://reg.example:5000/v2"]
    text = "[host.'https://cache.example/proxy/v2']\noverride_path = true\n"
    mirrors(tmp_path / "hosts", "_default", text, monkeypatch)
    assert [each.base for each in find_endpoints("ghcr.io")] == ["https://cache.example/proxy/v2", "https://ghcr.io/v2"]
