"""Artifacts and images of a real registry."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from cached.conformance.pulling import puller_in
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.trust import Trust
from cached.core.listing import Listing
from cached.sources.oci.address import OciPlatform
from cached.sources.oci.manifest import OCI_IMAGE_CONFIG, OCI_INDEX, OCI_MANIFEST
from cached.sources.oci.source import OciSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget
from tests.support.choosing import chosen
from tests.support.registry import MODEL_CONFIG, ORAS_LAYER, WEIGHT, RunningRegistry, archive, docker_registry
from tests.support.s3 import ACCESS_KEY, REGION, SECRET_KEY, S3Server

FILES = {
    "config.json": b"{}",
    "deep er/späß #1%+?.txt": b"x" * 1000,
    "empty.bin": b"",
    "w.bin": bytes(range(256)) * 999,
}


async def listed(uri: str, client: HttpClient) -> Listing:
    return await OciSource(uri, client).resolve()


async def contents(uri: str, client: HttpClient) -> dict[str, bytes]:
    """The files that a version there has, with their bytes."""
    source = OciSource(uri, client)
    found = {}
    for path, file in (await chosen(source)).items():
        target = await source.locate(file)
        assert file.size is not None
        found[path] = client.fetch(target, 1 << 20, Cancellation()).body if isinstance(target, HttpTarget) else b""
        assert len(found[path]) == file.size
        assert file.sha256 in (None, hashlib.sha256(found[path]).hexdigest())
    return found


async def refusal(uri: str, client: HttpClient) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await chosen(OciSource(uri, client))
    assert caught.value.remedy
    return caught.value


async def test_raw_layers_are_known_before_a_byte(registry: RunningRegistry, client: HttpClient) -> None:
    """ModelPack's raw layers are files whose sha256 the manifest has: one request lists all of them."""
    top = registry.put_raw("team/raw", "v1", FILES)
    listing = await listed(f"oci://{registry.host}/team/raw:v1", client)
    assert {file.trust for file in listing.files} == {Trust.KNOWN} and listing.revision == listing.tag == top
    assert await contents(f"oci://{registry.host}/team/raw@{top}", client) == FILES


async def test_titles_are_files_also_where_the_type_says_tar(registry: RunningRegistry, client: HttpClient) -> None:
    """ORAS titles each file; oras-py calls it a tar, which it is not."""
    layers = [registry.layer("team/oras", data, ORAS_LAYER, title=path) for path, data in FILES.items()]
    registry.put_artifact("team/oras", "v1", layers, "application/vnd.unknown.config.v1+json")
    assert await contents(f"oci://{registry.host}/team/oras:v1", client) == FILES


async def test_other_tools_types_are_told_by_names_and_endings(registry: RunningRegistry, client: HttpClient) -> None:
    """A layer of another type with ModelPack's path is a file (Docker's models), one whose type ends in `.tar` an
    archive (KitOps); without a name it is refused, and told."""
    named = registry.layer("team/more", b"GGUF", "application/vnd.docker.ai.gguf.v3", filepath="model.gguf")
    packed = registry.layer("team/more", archive({"a.bin": b"a"}), "application/vnd.kitops.modelkit.model.v1.tar")
    registry.put_artifact("team/more", "v1", [named, packed], "application/vnd.docker.ai.model.config.v0.1+json")
    assert await contents(f"oci://{registry.host}/team/more:v1", client) == {"model.gguf": b"GGUF", "a.bin": b"a"}
    nameless = registry.layer("team/more", b"GGUF", "application/vnd.ollama.image.model")
    registry.put_artifact("team/more", "v2", [nameless], "application/vnd.docker.container.image.v2+json")
    error = await refusal(f"oci://{registry.host}/team/more:v2", client)
    assert error.code == "bad_artifact" and "vnd.ollama.image.model" in error.message


async def test_modelpack_tars_are_ranges_of_their_layers(registry: RunningRegistry, client: HttpClient) -> None:
    """A plain tar is listed by its headers, and each file is read as a part of the layer: versioned, not known."""
    layers = [
        registry.layer("team/tar", archive({path: data}), f"{WEIGHT}.tar", filepath=path)
        for path, data in FILES.items()
    ]
    registry.put_artifact("team/tar", "v1", layers, MODEL_CONFIG)
    uri = f"oci://{registry.host}/team/tar:v1"
    assert await contents(uri, client) == FILES
    assert {file.trust for file in (await listed(uri, client)).files} == {Trust.VERSIONED}


async def test_a_modelcar_is_its_models_folder(registry: RunningRegistry, client: HttpClient) -> None:
    """Of an image with `models/` only that folder counts; later layers replace, whiteouts remove."""
    layers = [
        archive(
            {
                "bin": None,
                "bin/sh": b"elf",
                "models": None,
                "models/old/a": b"1",
                "models/old/b": b"2",
                "models/f": b"x",
            }
        ),
        archive({"models/.wh.f": b"", "models/old/.wh..wh..opq": b"", "models/old/c": b"3"}),
        archive({f"./models/{path}": data for path, data in FILES.items()}),
        archive({"models/config.json": b'{"new": 1}'}),
    ]
    registry.put_image("team/car", "v1", layers)
    expected = {**FILES, "config.json": b'{"new": 1}', "old/c": b"3"}
    assert await contents(f"oci://{registry.host}/team/car:v1", client) == expected


async def test_an_image_without_models_is_its_root(registry: RunningRegistry, client: HttpClient) -> None:
    """An image from scratch with the files at its root is the version; a hard link is the file that it leads to."""
    link = tarfile.TarInfo("again.bin")
    link.type, link.linkname = tarfile.LNKTYPE, "./w.bin"
    registry.put_image("team/root", "v1", [archive({f"./{path}": data for path, data in FILES.items()}, link)])
    found = await contents(f"oci://{registry.host}/team/root:v1", client)
    assert found == {**FILES, "again.bin": FILES["w.bin"]}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
async def test_only_regular_files_are_content(registry: RunningRegistry, client: HttpClient, kind: bytes) -> None:
    """A link or a device among the model's files is refused by name, and harms nothing outside of them."""
    odd = tarfile.TarInfo("models/odd.bin")
    odd.type, odd.linkname = kind, "/etc/passwd"
    outside = tarfile.TarInfo("bin/sh")
    outside.type, outside.linkname = kind, "busybox"
    registry.put_image("team/odd", "outside", [archive({"models/w.bin": b"x"}, outside)])
    assert await contents(f"oci://{registry.host}/team/odd:outside", client) == {"w.bin": b"x"}
    registry.put_image("team/odd", "inside", [archive({"models/w.bin": b"x"}, odd)])
    error = await refusal(f"oci://{registry.host}/team/odd:inside", client)
    assert (error.code, "odd.bin" in error.message) == ("not_a_file", True)


@pytest.mark.parametrize("layers", [1, 2])
async def test_a_file_below_a_link_is_refused(registry: RunningRegistry, client: HttpClient, layers: int) -> None:
    """Where an unpacker would write through a link, the file is refused; a folder that replaces the link is none."""
    link, folder = tarfile.TarInfo("models"), tarfile.TarInfo("models")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "data", tarfile.DIRTYPE
    both = (
        [archive({}, link), archive({"models/w.bin": b"x"})] if layers == 2 else [archive({"models/w.bin": b"x"}, link)]
    )
    registry.put_image("team/below", "v1", both)
    error = await refusal(f"oci://{registry.host}/team/below:v1", client)
    assert error.code == "not_a_file" and "found a link" in error.message
    registry.put_image("team/below", "v2", [archive({}, link), archive({"models": None, "models/w.bin": b"x"})])
    assert await contents(f"oci://{registry.host}/team/below:v2", client) == {"w.bin": b"x"}


@pytest.mark.parametrize("path", ["models/.wh.", "models//.wh.w.bin", "models/../.wh.models", "models/.wh..."])
async def test_a_whiteout_of_no_plain_path_is_refused(registry: RunningRegistry, client: HttpClient, path: str) -> None:
    """Readers disagree about what it removes, so it removes nothing."""
    registry.put_image("team/white", "v1", [archive({"models/w.bin": b"x"}), archive({path: b""})])
    assert (await refusal(f"oci://{registry.host}/team/white:v1", client)).code == "bad_artifact"


async def test_two_archives_in_a_plain_layer_are_refused(registry: RunningRegistry, client: HttpClient) -> None:
    """What follows the archive's end is not left out in silence."""
    layer = archive({"models/w.bin": b"x"}) + archive({"models/more.bin": b"y"})
    registry.put_image("team/two", "v1", [layer])
    error = await refusal(f"oci://{registry.host}/team/two:v1", client)
    assert error.code == "bad_tar" and "after its end" in error.message


async def test_a_title_that_is_there_twice_is_refused(registry: RunningRegistry, client: HttpClient) -> None:
    """oras-py titles each file by the last part of its path: two of one title are refused by name, not one taken for
    the other."""
    layers = [registry.layer("team/same", part, ORAS_LAYER, title="config.json") for part in (b"unet", b"vae")]
    registry.put_artifact("team/same", "v1", layers)
    error = await refusal(f"oci://{registry.host}/team/same:v1", client)
    assert error.permanent and error.code == "bad_name"
    assert "'config.json': expected each path once, found two files of it" in error.message


@pytest.mark.parametrize("path", ["models/../../etc/passwd", "/models/x", "models//x", "models/a\\b", "../x"])
async def test_path_tricks_are_refused(registry: RunningRegistry, client: HttpClient, path: str) -> None:
    """Names are judged as everywhere: one that leads out of the folder is `bad_name` where it is chosen."""
    registry.put_image("team/tricks", "v1", [archive({path: b"x"})])
    assert (await refusal(f"oci://{registry.host}/team/tricks:v1", client)).code == "bad_name"
    layer = registry.layer("team/tricks", b"x", f"{WEIGHT}.raw", filepath=f"../{path}")
    registry.put_artifact("team/tricks", "v2", [layer], MODEL_CONFIG)
    assert (await refusal(f"oci://{registry.host}/team/tricks:v2", client)).code == "bad_name"


@pytest.mark.parametrize("kind", ["raw", "tar"])
async def test_a_name_that_is_there_twice_is_refused(registry: RunningRegistry, client: HttpClient, kind: str) -> None:
    """Two layers of an artifact with one path contradict each other."""
    packed = [data if kind == "raw" else archive({"w.bin": data}) for data in (b"1", b"2")]
    layers = [registry.layer("team/twice", data, f"{WEIGHT}.{kind}", filepath="w.bin") for data in packed]
    registry.put_artifact("team/twice", kind, layers, MODEL_CONFIG)
    error = await refusal(f"oci://{registry.host}/team/twice:{kind}", client)
    assert error.permanent and error.code in ("bad_name", "bad_artifact") and "w.bin" in error.message


async def test_an_index_leads_to_this_machines_image(registry: RunningRegistry, client: HttpClient) -> None:
    """Linux on this processor is chosen, attestations are not; `platform` and a digest choose another one."""
    here = OciPlatform.of_this_machine()
    other = OciPlatform("linux", "s390x" if here.architecture != "s390x" else "amd64")
    manifests = []
    for platform, data in ((here, b"here"), (other, b"other"), (OciPlatform("unknown", "unknown"), b"attestation")):
        digest = registry.put_image("team/index", f"x-{platform.architecture}", [archive({"models/w": data})])
        size = len((registry.folder / f"docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data").read_bytes())
        entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": size}
        manifests.append({**entry, "platform": {"os": platform.os, "architecture": platform.architecture}})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*manifests, manifests[0]]}
    registry.put_manifest("team/index", "v1", document)
    uri = f"oci://{registry.host}/team/index"
    assert await contents(f"{uri}:v1", client) == {"w": b"here"}
    assert await contents(f"{uri}:v1?platform={other}", client) == {"w": b"other"}
    assert await contents(f"{uri}@{manifests[1]['digest']}", client) == {"w": b"other"}
    registry.put_manifest("team/index", "v2", {**document, "manifests": manifests[1:]})
    error = await refusal(f"{uri}:v2", client)
    assert (error.code, str(here) in error.message, str(other) in error.message) == ("no_platform", True, True)
    top = registry.put_manifest("team/index", "v1", document)
    nested = {"mediaType": OCI_INDEX, "digest": top, "size": 1, "platform": manifests[0]["platform"]}
    registry.put_manifest("team/index", "v3", {**document, "manifests": [nested]})
    assert (await refusal(f"{uri}:v3", client)).code == "bad_artifact"


async def test_a_registry_that_redirects_to_its_store_gives_signed_addresses(
    moto: S3Server, tmp_path_factory: pytest.TempPathFactory, client: HttpClient
) -> None:
    """The store's address is asked for by GET, so it is signed for GET; it ends when its signature does, and gets none
    of the registry's credentials."""
    moto.client().create_bucket(Bucket="registry")
    storage = f"""  s3:
    {{accesskey: {ACCESS_KEY}, secretkey: {SECRET_KEY}, region: {REGION}, regionendpoint: "{moto.url}",
     bucket: registry, secure: false, v4auth: true, rootdirectory: /}}"""
    with docker_registry(tmp_path_factory.mktemp("s3"), storage=storage) as redirecting:
        files = {path: data for path, data in FILES.items() if data}  # its driver for S3 cannot store an empty blob
        redirecting.put_raw("team/m", "v1", files)
        redirecting.put_image("team/m", "v2", [archive({f"models/{path}": data for path, data in files.items()})])
        for tag in ("v1", "v2"):
            assert await contents(f"oci://{redirecting.host}/team/m:{tag}", client) == files
        source = OciSource(f"oci://{redirecting.host}/team/m:v1", client)
        file = next(file for file in (await source.resolve()).files if file.size)
        target = await source.locate(file)
        assert isinstance(target, HttpTarget) and target.url.startswith(moto.url) and target.headers == ()
        assert target.lifetime_s is not None and 600 < target.lifetime_s <= 1200


async def test_what_the_registry_does_not_have_is_named(registry: RunningRegistry, client: HttpClient) -> None:
    """A missing tag, digest or repository is permanent and says which."""
    registry.put_raw("team/there", "v1", FILES)
    gone = f"sha256:{'0' * 64}"
    for rest in ("team/there:v2", f"team/there@{gone}", "team/nowhere:v1"):
        error = await refusal(f"oci://{registry.host}/{rest}", client)
        assert isinstance(error, Permanent) and error.code == "not_found"
        assert rest in error.message


@pytest.mark.parametrize(
    "uri",
    [
        *("oci://", "oci:///m:v1", "oci://h", "oci://h/", "oci://h/UPPER:v1", "oci://h/m:", "oci://h/m@sha256:12"),
        *("oci://user:s3cret@h/m:v1", "oci://h/m:v1?platform=arm", "oci://h/m:v1?token=s3cret", "oci://h/m@sha512:00"),
        f"oci://h/m@sha256:{'A' * 64}",
    ],
)
def test_a_location_that_is_none_is_refused_without_its_secrets(uri: str, client: HttpClient) -> None:
    """The error says what belongs there and where credentials belong."""
    with pytest.raises(Permanent) as caught:
        OciSource(uri, client)
    assert caught.value.code == "bad_source" and "oci://registry/repository:tag" in caught.value.remedy
    assert "s3cret" not in f"{caught.value!r} {caught.value}"


def packed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data[:500_000], 1) + gzip.compress(data[500_000:], 1)  # two members
    return bytes(zstandard.ZstdCompressor().compress(data))


@pytest.mark.parametrize("how", ["gzip", "zstd"])
async def test_compressed_layers_are_unpacked_and_known(
    registry: RunningRegistry, client: HttpClient, tmp_path: Path, how: str
) -> None:
    """A layer that has to be read in order is compared with its digest and its diff id before anything is listed; large
    files, small and empty ones, whiteouts and folders are as in a plain one, also for another source."""
    files = {**FILES, "big.bin": os.urandom(1_500_000), "second/big.bin": os.urandom(700_000)}
    layers = [
        archive({"bin/sh": b"elf", "models/gone": b"x", **{f"models/{path}": data for path, data in files.items()}}),
        archive({"models/.wh.gone": b"", "models/config.json": b'{"new": 1}'}),
    ]
    kind = f"application/vnd.oci.image.layer.v1.tar+{how}"
    described = [registry.layer("team/car", packed(data, how), kind) for data in layers]
    ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}).encode()
    registry.put_artifact("team/car", how, described, OCI_IMAGE_CONFIG, config)
    uri = f"oci://{registry.host}/team/car:{how}"
    expected = {**files, "config.json": b'{"new": 1}'}
    source = OciSource(uri, client)
    listing = await source.resolve()
    assert {file.path: file.sha256 for file in listing.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in expected.items()
    }
    entries = [FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in expected.items()]
    with puller_in(tmp_path / "first") as puller:
        assert await puller.fetch(source, listing) == Manifest.build(entries).digest
    with puller_in(tmp_path / "second") as puller:  # a source that has not listed it, after a restart say
        assert await puller.fetch(OciSource(uri, client), listing) == Manifest.build(entries).digest


PLAIN = archive({"models/w.bin": b"x" * 1000})
BOMBS: dict[str, Callable[[], bytes]] = {
    "after its end": lambda: gzip.compress(PLAIN + bytes(8_000_000)),
    "data after its end": lambda: gzip.compress(PLAIN + b"\1" * 1000),
    "large promise": lambda: gzip.compress(archive({"models/w.bin": bytes(100)})[:600]),
    "growth": lambda: gzip.compress(archive({"models/w.bin": bytes(100_000_000)}), 9),
    "no gzip": lambda: PLAIN,
    "cut": lambda: gzip.compress(PLAIN)[:-20],
    "trailing": lambda: gzip.compress(PLAIN) + b"\1" * 100,
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_layer_that_is_not_what_it_promises_is_refused(
    registry: RunningRegistry, client: HttpClient, name: str
) -> None:
    """A bomb, a cut layer, and one of another format end the listing, in bounded memory."""
    layer = registry.layer("team/bomb", BOMBS[name](), "application/vnd.cncf.model.weight.v1.tar+gzip")
    registry.put_artifact("team/bomb", "v1", [layer], MODEL_CONFIG)
    error = await refusal(f"oci://{registry.host}/team/bomb:v1", client)
    assert error.permanent and error.code in ("bad_tar", "bad_layer", "too_large")


@pytest.mark.parametrize("ids", [[f"sha256:{'0' * 64}"], [], None, ["sha256:12"]])
async def test_a_diff_id_that_is_another_is_refused(
    registry: RunningRegistry, client: HttpClient, ids: list[str] | None
) -> None:
    """An image whose config has other diff ids than its layers, or none, is no image."""
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": ids}}).encode()
    data = gzip.compress(archive({"models/w.bin": b"x"}))
    layer = registry.layer("team/diff", data, "application/vnd.oci.image.layer.v1.tar+gzip")
    registry.put_artifact("team/diff", "v1", [layer], OCI_IMAGE_CONFIG, config)
    error = await refusal(f"oci://{registry.host}/team/diff:v1", client)
    assert error.permanent and error.code in ("digest_mismatch", "bad_artifact")
