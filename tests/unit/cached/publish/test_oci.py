"""Publishing to a registry: a real one, behind a proxy that answers badly where a test says so."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.conformance.pulling import puller_in
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.snapshot.verify import hash_file
from cached.publish.content import FolderContent
from cached.publish.destination import PART_BYTES, Upload
from cached.publish.oci import uploads
from cached.publish.oci.destination import OciDestination
from cached.publish.oci.layers import ARTIFACT_TYPE, MOST_LAYERS
from cached.publish.plan import CHECKED, FORCED, PLAIN, carry_out_plan, make_plan
from cached.sources.oci.manifest import OCI_IMAGE_CONFIG, OCI_INDEX, OCI_TAR
from cached.sources.oci.source import OciSource
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from tests.support.certificates import make_certificates
from tests.support.daemon import PATIENCE_S
from tests.support.publishing import command, environment, publish, tree
from tests.support.registry import RunningRegistry, docker_registry
from tests.support.registry_tokens import PASSWORD, USER, registry_tokens

FILES = {
    "config.json": b'{"model_type": "x"}',
    "sub dir/späß ñ+%#?.bin": b"x" * 70_000,
    "empty.txt": b"",
    "w.bin": b"w",
}
MANIFEST = {"Accept": "application/vnd.oci.image.manifest.v1+json"}


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of Docker's configuration, empty at first."""
    for name in ("REGISTRY_AUTH_FILE", "NETRC", "HTTP_PROXY", "http_proxy", "HOLDFAST_REGISTRY_HOSTS_DIR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


@pytest.fixture
def front(registry: RunningRegistry) -> Iterator[Front]:
    with front_of(f"http://{registry.host}") as served:
        yield served


def host_of(front: Front) -> str:
    return front.url.removeprefix("http://")


def folder_of(base: Path, files: dict[str, bytes]) -> FolderContent:
    """Write files; return them as content to publish."""
    uploads = []
    for path, data in files.items():
        real = base / path
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_bytes(data)
        uploads.append(Upload(FileEntry(path, hash_file(real), len(data)), real))
    return FolderContent(Manifest.build(upload.entry for upload in uploads), tuple(uploads))


async def publish_to(uri: str, content: FolderContent, comparisons: Any = PLAIN) -> Any:
    destination = OciDestination(uri, 3)
    try:
        plan = await make_plan(content, destination, 3, comparisons)
        return await carry_out_plan(
            plan, lambda: make_plan(content, destination, 3, comparisons), destination, 3, lambda _: None, print
        )
    finally:
        await destination.aclose()


async def pulled(uri: str, tmp_path: Path) -> Digest:
    """The manifest digest of what a source has there, by its bytes."""
    client = HttpClient(HttpSettings())
    try:
        with puller_in(tmp_path / "root") as puller:
            return await puller.pull(OciSource(uri, client))
    finally:
        client.close()


def stored(registry: RunningRegistry, repository: str, tag: str) -> dict[str, Any]:
    found = requests.get(f"http://{registry.host}/v2/{repository}/manifests/{tag}", headers=MANIFEST, timeout=120)
    found.raise_for_status()
    return dict(found.json())


def blob(registry: RunningRegistry, repository: str, digest: str) -> bytes:
    return requests.get(f"http://{registry.host}/v2/{repository}/blobs/{digest}", timeout=120).content


def unpacked(registry: RunningRegistry, repository: str, manifest: dict[str, Any]) -> dict[str, bytes]:
    """The files of the layers, laid over one another as a container runtime does, after it compared the diff ids."""
    config = json.loads(blob(registry, repository, manifest["config"]["digest"]))
    files = {}
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        data = blob(registry, repository, layer["digest"])
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == diff_id and len(data) == layer["size"]
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar.getmembers():
                assert member.isfile() and (member.mode, member.uid, member.mtime) == (0o644, 0, 0)
                content = tar.extractfile(member)
                assert content is not None
                files[member.name] = content.read()
    return files


async def test_a_folder_has_one_digest_in_a_registry_too(registry: RunningRegistry, tmp_path: Path) -> None:
    """The command publishes to a registry what it publishes to a folder, and a source reads it back by its sha256."""
    folder_of(tmp_path / "m", FILES)
    uri = f"oci://{registry.host}/team/same:v1"
    there = publish(tmp_path / "m", uri, "--keep-all").stdout.strip()
    assert there == publish(tmp_path / "m", str(tmp_path / "out"), "--keep-all").stdout.strip()
    assert str(await pulled(uri, tmp_path)) == there
    again = publish(tmp_path / "m", uri, "--keep-all", "--json")
    assert json.loads(again.stdout.splitlines()[0])["uploaded_files"] == 0
    assert publish(tmp_path / "m", uri, "--keep-all", "--check").returncode == 0


async def test_it_is_an_image_and_a_model(registry: RunningRegistry, tmp_path: Path) -> None:
    """Its layers are tars that containerd unpacks, with diff ids in an image's config; ModelPack's type, paths and
    config members are there as well, and a title for ORAS."""
    content = folder_of(tmp_path / "m", FILES)
    await publish_to(f"oci://{registry.host}/team/form:v1?platform=linux/arm64", content)
    manifest = stored(registry, "team/form", "v1")
    assert manifest["artifactType"] == ARTIFACT_TYPE and manifest["config"]["mediaType"] == OCI_IMAGE_CONFIG
    assert {layer["mediaType"] for layer in manifest["layers"]} == {OCI_TAR}
    named = {layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]}
    assert named == {*FILES, "holdfast.json"}
    assert all(layer["annotations"]["org.opencontainers.image.title"].endswith(".tar") for layer in manifest["layers"])
    assert unpacked(registry, "team/form", manifest) == {**FILES, "holdfast.json": content.manifest.canonical()}
    config = json.loads(blob(registry, "team/form", manifest["config"]["digest"]))
    assert (config["os"], config["architecture"]) == ("linux", "arm64")
    assert config["modelfs"]["diffIds"] == config["rootfs"]["diff_ids"] and config["descriptor"]["version"] == "v1"


async def test_many_small_files_share_a_layer(
    registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runtimes keep some hundred layers at most: the largest files have their own, the others one together."""
    assert MOST_LAYERS < 127  # Docker's limit
    monkeypatch.setattr("cached.publish.oci.destination.MOST_LAYERS", 5)
    files = {f"layer-{number:03}.json": b"%d" % number * (number + 1) for number in range(60)}
    content = folder_of(tmp_path / "m", files)
    uri = f"oci://{registry.host}/team/many:v1"
    await publish_to(uri, content)
    manifest = stored(registry, "team/many", "v1")
    assert len(manifest["layers"]) == 5
    assert unpacked(registry, "team/many", manifest) == {**files, "holdfast.json": content.manifest.canonical()}
    assert await pulled(uri, tmp_path) == content.manifest.digest


async def test_a_blob_that_is_there_is_not_sent(front: Front, tmp_path: Path) -> None:
    """Another version sends the bytes of its new files only."""
    place = f"oci://{host_of(front)}/team/twice"
    await publish_to(f"{place}:v1", folder_of(tmp_path / "m", FILES))
    front.seen.clear()
    await publish_to(f"{place}:v2", folder_of(tmp_path / "m", {**FILES, "new.bin": b"new"}))
    # The new file, holdfast.json and the config; nothing of the four others.
    assert len([request for request in front.seen if request.method == "POST"]) == 3
    manifests = [
        number for number, seen in enumerate(front.seen) if seen.method == "PUT" and "/manifests/" in seen.path
    ]
    others = [number for number, seen in enumerate(front.seen) if seen.method in ("POST", "PATCH")]
    assert len(manifests) == 1 and manifests[0] > max(others)


def is_patch(request: ProxiedRequest) -> bool:
    return request.method == "PATCH"


def is_send(request: ProxiedRequest) -> bool:
    return request.method in ("PATCH", "PUT") and "/blobs/uploads/" in request.path


@pytest.mark.parametrize("status", [503, 500, 429])
async def test_an_upload_goes_on_where_the_registry_says(
    front: Front, registry: RunningRegistry, tmp_path: Path, status: int
) -> None:
    """A fault in the middle costs one chunk at most: the registry is asked for its number of bytes."""
    size = PART_BYTES * 2 + 100
    content = folder_of(tmp_path / "m", {"w.bin": os.urandom(size)})
    skipped: list[ProxiedRequest] = []

    def second(request: ProxiedRequest) -> bool:
        if is_patch(request):
            skipped.append(request)
        return is_patch(request) and len(skipped) == 2

    front.answer(status, headers={"Retry-After": "0"}, choose=second)
    uri = f"oci://{host_of(front)}/team/resume{status}:v1"
    await publish_to(uri, content)
    ranges = [seen.headers["content-range"] for seen in front.seen if is_patch(seen)]
    assert len(ranges) == 3 + 1 and len(set(ranges)) == 3  # three parts, one of them twice
    assert await pulled(uri.replace(host_of(front), registry.host), tmp_path) == content.manifest.digest


async def test_an_upload_outlives_a_registry_that_is_away_for_a_moment(
    front: Front, registry: RunningRegistry, tmp_path: Path
) -> None:
    """A chunk that fails, and then the question where to go on as well, cost pauses and not the publish."""
    content = folder_of(tmp_path / "m", {"w.bin": os.urandom(PART_BYTES + 100)})
    front.answer(503, headers={"Retry-After": "0"}, choose=is_patch)
    front.answer(
        503,
        headers={"Retry-After": "0"},
        times=2,
        choose=lambda request: request.method == "GET" and "/blobs/uploads/" in request.path,
    )
    uri = f"oci://{host_of(front)}/team/away:v1"
    await publish_to(uri, content)
    assert await pulled(uri.replace(host_of(front), registry.host), tmp_path) == content.manifest.digest


@pytest.mark.parametrize("said", ["0-0", "0-4", "0-" + "9" * 5000, None])
async def test_a_registry_that_counts_wrong_ends_the_publish(
    front: Front, registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    """A registry that takes every chunk and never has more bytes is told after some tries; the publish neither goes on
    for ever nor writes a manifest. Without a number, or with one that is none, the chunk counts as arrived."""
    monkeypatch.setattr(uploads, "_WAIT_S", 0.01)

    def alter(request: ProxiedRequest, headers: dict[str, str], body: bytes) -> bytes:
        if is_patch(request) or (request.method == "GET" and "/blobs/uploads/" in request.path):
            headers.pop("Range", None)
            headers |= {} if said is None else {"Range": said}
        return body

    front.alter = alter
    content = folder_of(tmp_path / "m", {"w.bin": os.urandom(PART_BYTES + 100)})
    uri = f"oci://{host_of(front)}/team/counts:v1"
    if said is None or len(said) > 99:
        await publish_to(uri, content)
        assert await pulled(uri.replace(host_of(front), registry.host), tmp_path) == content.manifest.digest
        return
    with pytest.raises(HoldfastError) as caught:
        await asyncio.wait_for(publish_to(uri, content), PATIENCE_S)
    assert caught.value.remedy and len([seen for seen in front.seen if is_patch(seen)]) < 20
    assert not [seen for seen in front.seen if seen.method == "PUT" and "/manifests/" in seen.path]


@pytest.mark.parametrize("least", ["9" * 5000, "٣", "-1", "1e9"])
async def test_a_strange_length_of_chunks_is_none(front: Front, tmp_path: Path, least: str) -> None:
    """A registry's least length of a chunk that is no number of bytes does not matter."""

    def alter(request: ProxiedRequest, headers: dict[str, str], body: bytes) -> bytes:
        if request.method == "POST":
            headers["OCI-Chunk-Min-Length"] = least.encode().decode("latin-1")
        return body

    front.alter = alter
    await publish_to(f"oci://{host_of(front)}/team/least:v1", folder_of(tmp_path / "m", {"w.bin": b"w"}))


async def test_a_refusal_is_read_whole(front: Front, tmp_path: Path) -> None:
    """An answer that comes in pieces is read to its end: what it says there decides."""
    slow = b'{"errors": [{"message": "' + b" " * 200_000 + b'", "code": "DIGEST_INVALID"}]}'
    front.answer(400, slow, choose=lambda request: request.method == "PUT" and "digest=sha256" in request.path)
    with pytest.raises(Permanent) as caught:
        await publish_to(f"oci://{host_of(front)}/team/long:v1", folder_of(tmp_path / "m", FILES))
    assert caught.value.code == "stored_wrong"


async def test_a_mirror_is_told_to_be_read_only(registry: RunningRegistry, tmp_path: Path) -> None:
    """A registry that takes no uploads, as one that pulls through, ends a publish before any bytes, in those words."""
    upstream = f"proxy: {{remoteurl: 'http://{registry.host}'}}"
    with docker_registry(tmp_path / "mirror", more=upstream) as mirror, pytest.raises(Permanent) as caught:
        await publish_to(f"oci://{mirror.host}/team/mirrored:v1", folder_of(tmp_path / "m", FILES))
    assert caught.value.code == "read_only" and "mirrors" in (caught.value.remedy or "")


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
async def test_a_busy_registry_is_asked_again(
    front: Front, registry: RunningRegistry, tmp_path: Path, method: str
) -> None:
    """A registry that is busy for a moment costs a pause; each blob and the manifest arrive."""
    busy = {"Retry-After": "0"}
    front.answer(503, headers=busy, times=2, choose=lambda request: request.method == method)
    content = folder_of(tmp_path / "m", FILES)
    uri = f"oci://{host_of(front)}/team/busy-{method.lower()}:v1"
    await publish_to(uri, content)
    assert await pulled(uri.replace(host_of(front), registry.host), tmp_path) == content.manifest.digest


async def test_the_registry_is_asked_for_the_sha256(front: Front, tmp_path: Path) -> None:
    """A registry that got other bytes refuses them; the error is `stored_wrong`, and no manifest is there."""
    front.answer(
        400,
        b'{"errors": [{"code": "DIGEST_INVALID"}]}',
        choose=lambda request: request.method == "PUT" and "digest=sha256" in request.path,
    )
    uri = f"oci://{host_of(front)}/team/wrong:v1"
    with pytest.raises(Permanent) as caught:
        await publish_to(uri, folder_of(tmp_path / "m", FILES))
    assert caught.value.code == "stored_wrong" and caught.value.remedy
    with pytest.raises(HoldfastError) as missing:
        await pulled(uri, tmp_path)
    assert missing.value.code == "not_found"


@pytest.mark.parametrize("change", ["shorter", "longer", "other"])
async def test_a_file_that_changed_after_hashing_is_refused(
    registry: RunningRegistry, tmp_path: Path, change: str
) -> None:
    """Bytes other than those the manifest lists are never stored under it."""
    content = folder_of(tmp_path / "m", {"w.bin": bytes(1000)})
    with (tmp_path / "m/w.bin").open("r+b") as file:
        file.truncate({"shorter": 999, "longer": 1001, "other": 1000}[change])
        file.write(b"x" if change == "other" else b"")
    with pytest.raises(Permanent) as caught:
        await publish_to(f"oci://{registry.host}/team/changed:{change}", content)
    assert caught.value.code == "changed_while_publishing" and "w.bin" in caught.value.message


async def test_another_version_is_replaced_by_force_only(registry: RunningRegistry, tmp_path: Path) -> None:
    """A tag of another version, or of something else, is refused; with --force it is moved, in one step."""
    uri = f"oci://{registry.host}/team/other:v1"
    registry.put_raw("team/other", "v1", {"else.bin": b"else"})
    folder_of(tmp_path / "m", FILES)
    refused = command(tmp_path / "m", uri, "--keep-all")
    found = subprocess.run(refused, capture_output=True, text=True, env=environment({}), check=False)
    assert found.returncode == 1 and "another version" in found.stderr and "--force" in found.stderr
    publish(tmp_path / "m", uri, "--keep-all", "--force")
    assert {
        file["annotations"]["org.cncf.model.filepath"] for file in stored(registry, "team/other", "v1")["layers"]
    } == {
        *FILES,
        "holdfast.json",
    }


async def test_a_publisher_whose_tag_was_moved_says_so(registry: RunningRegistry, tmp_path: Path) -> None:
    """A tag that another publisher moved after it was looked at is not moved back in silence."""
    uri = f"oci://{registry.host}/team/race:v1"
    content = folder_of(tmp_path / "m", FILES)
    destination = OciDestination(uri, 3)
    try:
        plan = await make_plan(content, destination, 3, PLAIN)
        await publish_to(uri, folder_of(tmp_path / "n", {"w.bin": b"other"}))

        async def decide() -> Any:
            return plan

        with pytest.raises(Permanent) as caught:
            for upload in plan.uploads:
                await destination.put(upload, lambda _: None)
            await destination.seal(content.manifest.canonical())
    finally:
        await destination.aclose()
    assert caught.value.code == "another_publisher"


async def test_check_reads_the_bytes(registry: RunningRegistry, tmp_path: Path) -> None:
    """`--check` finds a blob that was damaged in the registry's storage, by the bytes that it serves."""
    uri = f"oci://{registry.host}/team/rot:v1"
    content = folder_of(tmp_path / "m", {"w.bin": b"weights" * 1000, "config.json": b"{}"})
    await publish_to(uri, content)
    layer = next(each for each in stored(registry, "team/rot", "v1")["layers"] if each["size"] > 7000)
    digest = layer["digest"].removeprefix("sha256:")
    path = registry.folder / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    destination = OciDestination(uri, 3)
    try:
        plan = await make_plan(content, destination, 3, CHECKED)
    finally:
        await destination.aclose()
    assert [upload.entry.path for upload in plan.uploads] == ["w.bin"] and plan.sealed
    with pytest.raises(Permanent) as caught:
        await publish_to(uri, content, FORCED)
    assert caught.value.code == "stored_wrong" and "w.bin" in caught.value.message


async def test_a_login_with_the_right_to_push_is_asked_for(tmp_path: Path, config: Path) -> None:
    """The token is for pull and push; a login without the right is `forbidden`, a missing one `unauthorized`."""
    with (
        registry_tokens(tmp_path / "t") as tokens,
        docker_registry(tmp_path / "r", more=tokens.settings) as registry,
    ):
        uri = f"oci://{registry.host}/team/m:v1"
        content = folder_of(tmp_path / "m", FILES)
        with pytest.raises(Permanent) as caught:
            await publish_to(uri, content)
        assert caught.value.code == "unauthorized"
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (config / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        tokens.actions = ("pull",)
        with pytest.raises(Permanent) as caught:
            await publish_to(uri, content)
        assert caught.value.code == "forbidden" and "push" in caught.value.message
        tokens.actions = ("pull", "push")
        await publish_to(uri, content)
        assert {asked["scope"] for asked in tokens.asked} == {"repository:team/m:pull", "repository:team/m:pull,push"}
        assert await pulled(uri, tmp_path) == content.manifest.digest


def test_a_digest_is_no_place_to_publish_to() -> None:
    """A digest names what is there already."""
    with pytest.raises(Permanent) as caught:
        OciDestination(f"oci://h/team/m@sha256:{'0' * 64}", 3)
    assert caught.value.code == "bad_source" and "tag" in caught.value.message


async def test_a_killed_publish_goes_on_with_the_blobs_that_are_there(
    front: Front, registry: RunningRegistry, tmp_path: Path
) -> None:
    """After kill -9 in the middle there is no version; the next publish sends the rest."""
    content = folder_of(tmp_path / "m", {f"{n}.bin": bytes([n]) * (PART_BYTES // 4) for n in range(6)})
    uri = f"oci://{host_of(front)}/team/killed:v1"
    front.before(wait_for_kill(front), choose=is_send, skip=3)
    process = subprocess.Popen(
        command(tmp_path / "m", uri, "--threads", "1", "--keep-all"),
        env=environment({}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while len([seen for seen in front.seen if is_send(seen)]) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    front.mend()
    with pytest.raises(HoldfastError) as caught:
        await pulled(uri, tmp_path)
    assert caught.value.code == "not_found"
    front.seen.clear()
    await publish_to(uri, content)
    assert len([seen for seen in front.seen if is_send(seen)]) <= 3 + 2  # three files, holdfast.json, the config
    assert await pulled(uri, tmp_path) == content.manifest.digest


def wait_for_kill(front: Front) -> Callable[[], None]:
    return lambda: time.sleep(0.5)


async def test_a_registry_with_an_authority_of_its_own_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hosts.toml` says where a registry is, SSL_CERT_FILE who signed its certificate; without that it is refused."""
    certificates = make_certificates(tmp_path)
    with docker_registry(tmp_path / "r", certificates=certificates) as registry:
        hosts = tmp_path / "hosts" / "registry.acme.test"
        hosts.mkdir(parents=True)
        port = registry.host.rpartition(":")[2]
        (hosts / "hosts.toml").write_text(f'server = "https://localhost:{port}"\n')
        monkeypatch.setenv("HOLDFAST_REGISTRY_HOSTS_DIR", str(hosts.parent))
        content = folder_of(tmp_path / "m", {"w.bin": os.urandom(PART_BYTES + 1), "config.json": b"{}"})
        uri = "oci://registry.acme.test/team/m:v1"
        with pytest.raises(Permanent) as caught:
            await publish_to(uri, content)
        assert caught.value.code == "tls_verification"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        await publish_to(uri, content)
        assert await pulled(uri, tmp_path) == content.manifest.digest


async def test_several_platforms_are_an_index_of_the_same_layers(registry: RunningRegistry, tmp_path: Path) -> None:
    """Nodes of either processor mount one tag; the layers are stored once, and the version has one digest."""
    uri = f"oci://{registry.host}/team/index:v1"
    content = folder_of(tmp_path / "m", FILES)
    await publish_to(f"{uri}?platform=linux/amd64,linux/arm64", content)
    url = f"http://{registry.host}/v2/team/index/manifests/v1"
    index = requests.get(url, headers={"Accept": OCI_INDEX}, timeout=120).json()
    images = [stored(registry, "team/index", each["digest"]) for each in index["manifests"]]
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["amd64", "arm64"]
    assert images[0]["layers"] == images[1]["layers"] and images[0]["config"] != images[1]["config"]
    for platform in ("linux/amd64", "linux/arm64"):
        with puller_in(tmp_path / platform.replace("/", "-")) as puller:
            source = OciSource(f"{uri}?platform={platform}", puller.client)
            assert await puller.pull(source) == content.manifest.digest
    again = await publish_to(f"{uri}?platform=linux/amd64,linux/arm64", content)
    assert again.is_done
    with pytest.raises(Permanent) as caught:
        OciSource(f"{uri}?platform=linux/amd64,linux/arm64", HttpClient(HttpSettings()))
    assert caught.value.code == "bad_source"


CONTAINERD = """version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
address = "{folder}/c.sock"
[ttrpc]
address = "{folder}/t.sock"
"""


@contextlib.contextmanager
def containerd(folder: Path) -> Iterator[list[str]]:
    """A containerd of the test's own; gives the beginning of a command of its client."""
    server, client = shutil.which("containerd"), shutil.which("ctr")
    if server is None or client is None or os.geteuid() != 0:
        pytest.skip("containerd and ctr are not on PATH, or this is not root, which mounts")
    folder.mkdir()
    (folder / "config.toml").write_text(CONTAINERD.format(folder=folder))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([server, "-c", str(folder / "config.toml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 100
        while not (folder / "c.sock").exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.01)
        yield [client, "-a", str(folder / "c.sock")]
    finally:
        process.terminate()
        process.wait(120)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([each for each in mounts if each.startswith(f"{folder.parent}/")]):
            subprocess.run(["umount", mount], check=True)  # its own ones too: they outlive it


async def test_containerd_mounts_what_was_published(registry: RunningRegistry, tmp_path: Path) -> None:
    """The runtime of Kubernetes' image volumes pulls, unpacks and mounts a version: its files, and the manifest."""
    with containerd(tmp_path / "c") as ctr:
        content = folder_of(tmp_path / "m", FILES)
        await publish_to(f"oci://{registry.host}/team/mounted:v1", content)
        name, mounted = f"{registry.host}/team/mounted:v1", tmp_path / "mounted"
        mounted.mkdir()
        usage = subprocess.run([*ctr, "images", "pull", "--help"], capture_output=True, text=True, check=True).stdout
        local = ["--local"] if "--local" in usage else []  # containerd 1 has no other way to pull
        for command in (
            ["pull", *local, "--plain-http", "--snapshotter", "native", name],
            ["mount", "--snapshotter", "native", name, str(mounted)],
        ):
            done = subprocess.run([*ctr, "images", *command], capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
        assert tree(mounted) == {**FILES, "holdfast.json": content.manifest.canonical()}
