"""Origins whose bytes are not what their manifest says: found by `publish --check`, mended by `publish --force`."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cached.publish.destination import PART_BYTES
from tests.support.publishing import new_bucket, publish, published, tree
from tests.support.s3 import S3Server

FILES = {"a.bin": b"a" * 1000, "config.json": b"{}", "sub/big.bin": b"b" * (PART_BYTES + 1)}


@dataclass
class Origin:
    """A published version: its address, and how to read and to write behind Holdfast's back."""

    uri: str
    env: Mapping[str, str]
    write: Callable[[str, bytes], None]
    files: Callable[[], dict[str, bytes]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for path, data in FILES.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    return tmp_path / "model"


@pytest.fixture(params=["folder", "moto", "rclone"])
def origin(request: pytest.FixtureRequest, tmp_path: Path, model: Path) -> Origin:
    """The model, published."""
    if request.param == "folder":
        out = tmp_path / "out"
        made = Origin(str(out), {}, lambda path, data: overwrite(out / path, data), lambda: tree(out))
    else:
        made = in_bucket(request.getfixturevalue(request.param))
    published(model, made.uri, env=made.env)
    return made


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def in_bucket(server: S3Server) -> Origin:
    client, bucket = server.client(), new_bucket(server)

    def write(path: str, data: bytes) -> None:
        """With every claim that Holdfast or another client would make of the right bytes."""
        sha256 = hashlib.sha256(FILES[path])
        client.put_object(
            Bucket=bucket,
            Key=f"m/{path}",
            Body=data,
            Metadata={"holdfast-sha256": sha256.hexdigest()},
            ChecksumSHA256=base64.b64encode(sha256.digest()).decode(),
        )

    def files() -> dict[str, bytes]:
        keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]]
        return {key[2:]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    return Origin(f"s3://{bucket}/m/", server.environment, write, files)


def damage(origin: Origin, *paths: str) -> None:
    """Other bytes of the same length."""
    for path in paths:
        origin.write(path, bytes(len(FILES[path])))


def test_a_check_of_what_is_right_passes_and_changes_nothing(origin: Origin, model: Path) -> None:
    """`--check` exits 0 where every byte is as it should be, says that contents were compared, and writes nothing."""
    before = origin.files()
    done = publish(model, origin.uri, "--check", env=origin.env)
    assert done.returncode == 0 and "contents compared" in done.stderr
    assert origin.files() == before


def test_a_check_names_what_is_damaged_and_changes_nothing(origin: Origin, model: Path) -> None:
    """Bytes that were changed behind Holdfast's back are named, whatever their size and metadata claim."""
    damage(origin, "a.bin", "sub/big.bin")
    before = origin.files()
    done = publish(model, origin.uri, "--check", "--json", env=origin.env)
    assert done.returncode == 1 and "--force" in done.stderr
    facts = json.loads(done.stdout.splitlines()[0])
    assert [each["path"] for each in facts["differing"]] == ["a.bin", "sub/big.bin"] and not facts["right"]
    assert all(each["path"] in done.stderr and "sha256" in each["difference"] for each in facts["differing"])
    assert origin.files() == before


def test_a_damaged_origin_is_mended_with_force(origin: Origin, model: Path) -> None:
    """`--force` uploads exactly what is damaged, and afterwards every byte is right."""
    damage(origin, "a.bin", "sub/big.bin")
    assert published(model, origin.uri, "--force", env=origin.env)["uploaded_files"] == 2
    stored = origin.files()
    stored.pop("holdfast.json")
    assert stored == FILES
    assert published(model, origin.uri, "--force", env=origin.env)["uploaded_files"] == 0


def test_without_force_only_sizes_are_compared_and_that_is_said(origin: Origin, model: Path) -> None:
    """A plain publish of what is published says what it compared, and how to compare more."""
    damage(origin, "a.bin")
    done = publish(model, origin.uri, env=origin.env)
    assert done.returncode == 0 and "only names and sizes" in done.stderr and "--check" in done.stderr


def test_an_interrupted_publish_trusts_no_claim(origin: Origin, model: Path) -> None:
    """Without the manifest, a file of the right size and metadata and of other bytes is uploaded again."""
    damage(origin, "config.json")
    published_files = origin.files()
    manifest = published_files["holdfast.json"]
    (model / "new").write_bytes(b"makes it another version")
    assert published(model, origin.uri, "--force", env=origin.env)["uploaded_files"] == 2
    stored = origin.files()
    assert stored.pop("holdfast.json") != manifest
    assert stored == {**FILES, "new": b"makes it another version"}


@pytest.mark.parametrize("there", ["nothing", "another version", "half"])
def test_a_check_tells_what_is_there_instead(tmp_path: Path, model: Path, there: str) -> None:
    """Where the version is not published, a check exits 1, says what is there, and makes nothing."""
    out = tmp_path / "out"
    if there != "nothing":
        published(model, out)
    if there == "another version":
        (model / "config.json").write_bytes(b"[]")
    if there == "half":
        (out / "holdfast.json").unlink()
        (out / "a.bin").unlink()
    before = tree(out)
    done = publish(model, out, "--check")
    assert done.returncode == 1
    expected = {"nothing": "no holdfast.json", "another version": "config.json", "half": "a.bin: missing"}
    assert expected[there] in done.stderr
    assert tree(out) == before and out.exists() == (there != "nothing")


def test_a_check_may_not_force(model: Path, tmp_path: Path) -> None:
    """`--check` and `--force` together are a usage error."""
    assert publish(model, tmp_path / "out", "--check", "--force").returncode == 2
