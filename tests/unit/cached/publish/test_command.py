"""`holdfast publish`, as the program people run: into folders, and into real S3 servers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Transient
from cached.contract.golden import GOLDEN_NAME, Case, Environment, Golden, Tolerance
from cached.contract.manifest import CHAINS_NAME, FileEntry, Manifest
from cached.peers import chaining
from cached.peers.chain_file import decode_chains
from cached.peers.chaining import ChainHasher
from cached.peers.pieces import PIECE_BYTES
from cached.publish.command import main
from cached.publish.mark import Mark
from cached.sources.local.source import LocalSource
from tests.support.publishing import command, new_bucket, objects, publish, published, tensors, tree
from tests.support.s3 import SECRET_KEY, S3Server

LARGE = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"end"
FILES = {"config.json": b"{}", "weights/a.safetensors": tensors(1000), "weights/empty": b"", "näme.txt": b"n"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_a_folder_becomes_a_version(model: Path, tmp_path: Path) -> None:
    """The files arrive unchanged, with a manifest whose digest is the last line on standard output, and no litter."""
    out = tmp_path / "out" / "v1"
    done = publish(model, out)
    assert done.returncode == 0, done.stderr
    data = (out / "holdfast.json").read_bytes()
    assert done.stdout.splitlines()[-1] == str(Digest.of(data))
    assert {f.path for f in Manifest.parse(data).files} == set(FILES)
    assert tree(out) == {**FILES, "holdfast.json": data}


def test_what_was_published_is_a_source(model: Path, tmp_path: Path) -> None:
    """A local source resolves the published folder to the same manifest digest."""
    facts = published(model, (tmp_path / "out").as_uri())
    manifest = asyncio.run(LocalSource(facts["uri"]).resolve()).manifest
    assert manifest is not None and str(manifest.digest) == facts["digest"]


def test_publishing_again_uploads_nothing(model: Path, tmp_path: Path) -> None:
    """The same content is published once: the second time no file is touched."""
    first = published(model, tmp_path / "out")
    before = {p: p.stat().st_ino for p in (tmp_path / "out").rglob("*")}
    second = published(model, tmp_path / "out")
    assert (first["uploaded_files"], second["uploaded_files"], second["uploaded_bytes"]) == (4, 0, 0)
    assert second["digest"] == first["digest"]
    assert {p: p.stat().st_ino for p in (tmp_path / "out").rglob("*")} == before


def test_large_files_come_with_their_chaining_values(tmp_path: Path) -> None:
    """A file of several pieces is published with its states of sha256 in a record beside the manifest, which has the
    digest that it has without them. They are no content, are added where they are missing, and are else left alone."""
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "config.json").write_bytes(b"{}")
    for name in ("a.bin", "same.bin"):
        (model / name).write_bytes(LARGE)
    assert published(model, out)["uploaded_files"] == 3
    hasher = ChainHasher()
    hasher.update(LARGE)
    chains = (out / CHAINS_NAME).read_bytes()
    assert decode_chains(chains) == {hashlib.sha256(LARGE).hexdigest(): hasher.states()}
    entries = [FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in tree(model).items()]
    assert (out / "holdfast.json").read_bytes() == Manifest.build(entries).canonical()
    listing = asyncio.run(LocalSource(str(out)).resolve())
    assert {file.path for file in listing.files} == set(tree(model))
    (out / CHAINS_NAME).unlink()
    assert publish("--check", model, out).returncode == 0
    again = publish(model, out)
    assert (again.returncode, "already published" in again.stderr, "added" in again.stderr) == (0, True, True)
    assert (out / CHAINS_NAME).read_bytes() == chains
    before = {p: p.stat().st_ino for p in out.rglob("*")}
    assert "added" not in publish(model, out).stderr
    assert {p: p.stat().st_ino for p in out.rglob("*")} == before


def test_a_platform_without_chaining_publishes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where libcrypto does not give the states, standard error says so once, and the version has the same digest."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("a.bin", "b.bin"):
        (model / name).write_bytes(LARGE)
    digest = published(model, tmp_path / "with")["digest"]
    monkeypatch.setattr(chaining, "is_available", lambda: False)
    assert main([str(model), str(tmp_path / "without")]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [digest]
    assert said.err.count("no chaining values") == 1
    assert set(tree(tmp_path / "without")) == {"a.bin", "b.bin", "holdfast.json"}


def test_another_version_is_refused_without_force(model: Path, tmp_path: Path) -> None:
    """Different content under an existing version changes nothing, and both digests are named."""
    old = published(model, tmp_path / "out")["digest"]
    before = tree(tmp_path / "out")
    (model / "config.json").write_bytes(b"{ }")
    refused = publish(model, tmp_path / "out")
    new = published(model, tmp_path / "elsewhere")["digest"]
    assert refused.returncode == 1 and refused.stdout == ""
    assert old in refused.stderr and new in refused.stderr and "--force" in refused.stderr
    assert tree(tmp_path / "out") == before


def test_force_replaces_a_version_whole(model: Path, tmp_path: Path) -> None:
    """With --force the new content is there, what only the old one had is gone, what both have stays."""
    published(model, tmp_path / "out")
    kept = (tmp_path / "out" / "config.json").stat().st_ino
    (model / "weights" / "a.safetensors").unlink()
    (model / "weights" / "empty").unlink()
    (model / "new.bin").write_bytes(b"new")
    facts = published(model, tmp_path / "out", "--force")
    assert facts["uploaded_files"] == 1
    assert set(tree(tmp_path / "out")) == {"config.json", "näme.txt", "new.bin", "holdfast.json"}
    assert not (tmp_path / "out" / "weights").exists()
    assert (tmp_path / "out" / "config.json").stat().st_ino == kept


def test_folders_come_and_go_while_others_work_in_them(tmp_path: Path) -> None:
    """Uploads that share a new folder and deletions that empty one do not fail each other."""
    model = tmp_path / "model"
    for folder in range(100):
        for name in "abcd":
            path = model / "old" / str(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
    published(model, tmp_path / "out")
    (model / "old").rename(model / "new")
    assert published(model, tmp_path / "out", "--force")["uploaded_files"] == 400
    assert {path.parts[0] for path in map(Path, tree(tmp_path / "out"))} == {"new", "holdfast.json"}
    assert not (tmp_path / "out" / "old").exists()


def test_a_lost_file_is_put_back(model: Path, tmp_path: Path) -> None:
    """Publishing again under the same manifest uploads exactly what is missing there."""
    published(model, tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    assert published(model, tmp_path / "out")["uploaded_files"] == 1
    assert set(tree(tmp_path / "out")) == {*FILES, "holdfast.json"}


def test_a_wrong_file_without_manifest_is_replaced(model: Path, tmp_path: Path) -> None:
    """Without a manifest there, a file of the right size and the wrong bytes is not taken for published."""
    published(model, tmp_path / "out")
    (tmp_path / "out" / "holdfast.json").unlink()
    (tmp_path / "out" / "näme.txt").write_bytes(b"m")
    assert published(model, tmp_path / "out")["uploaded_files"] == 1
    assert tree(tmp_path / "out")["näme.txt"] == b"n"


def test_a_folder_can_be_published_where_it_lies(model: Path) -> None:
    """Publishing a folder onto itself writes its manifest and copies nothing."""
    assert published(model, model)["uploaded_files"] == 0
    assert set(tree(model)) == {*FILES, "holdfast.json"}


def test_a_killed_publish_is_no_version_and_goes_on(tmp_path: Path) -> None:
    """After SIGKILL no half file has its final name, a source sees no version, and publishing again finishes."""
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "big.bin").touch()
    os.truncate(model / "big.bin", 256 * 1024 * 1024)
    process = subprocess.Popen(command(model, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marked, deadline = out / ".holdfast" / "publishing", time.monotonic() + 100
    while not (marked.exists() and list(out.glob(".holdfast/.tmp-*"))) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert [p.name for p in out.iterdir()] == [".holdfast"]
    with pytest.raises(Transient, match="publish"):
        asyncio.run(LocalSource(str(out)).resolve())
    assert published(model, out)["uploaded_files"] == 1
    assert set(tree(out)) == {"big.bin", "holdfast.json", ".holdfast/chains"}


def test_an_interrupted_publish_says_so(tmp_path: Path) -> None:
    """SIGTERM ends with exit code 1, a reason, and no manifest."""
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    for name in "abcd":
        (model / name).touch()
        os.truncate(model / name, 128 * 1024 * 1024)
    process = subprocess.Popen(
        command(model, out, "--threads", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not (out / ".holdfast" / "publishing").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.terminate()
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (1, "")
    assert "interrupted" in errors
    assert not (out / "holdfast.json").exists()


GOLDEN = Golden(
    (Case("hello", "/v1/embeddings", {"input": "hello"}, {"data": []}, Tolerance(0, 0)),),
    Environment(packages={"torch": "2.13.0"}),
    "m",
    "2026-11-20T18:00:00Z",
)


def test_golden_predictions_are_a_file_of_the_version(model: Path, tmp_path: Path) -> None:
    """`--golden FILE` is published as `holdfast-golden.json`, under the digest, in place of one in the folder."""
    (tmp_path / "recorded.json").write_bytes(GOLDEN.encode())
    (model / GOLDEN_NAME).write_bytes(b"an older one")
    facts = published(model, tmp_path / "out", "--golden", tmp_path / "recorded.json")
    assert (tmp_path / "out" / GOLDEN_NAME).read_bytes() == GOLDEN.encode()
    assert facts["files"] == len(FILES) + 1
    manifest = Manifest.parse((tmp_path / "out" / "holdfast.json").read_bytes())
    assert GOLDEN_NAME in [file.path for file in manifest.files]


def test_golden_predictions_may_be_named_by_a_link(model: Path, tmp_path: Path) -> None:
    """`--golden LINK` publishes the file that the link leads to."""
    (tmp_path / "recorded.json").write_bytes(GOLDEN.encode())
    (tmp_path / "latest.json").symlink_to("recorded.json")
    published(model, tmp_path / "out", "--golden", tmp_path / "latest.json")
    assert (tmp_path / "out" / GOLDEN_NAME).read_bytes() == GOLDEN.encode()


@pytest.mark.parametrize("where", ["named", "in the folder", "missing", "a pipe", "a folder"])
def test_golden_predictions_that_are_none_are_refused(model: Path, tmp_path: Path, where: str) -> None:
    """A version is not published with golden predictions that no server can read; the file is named."""
    file = tmp_path / "recorded.json" if where != "in the folder" else model / GOLDEN_NAME
    if where == "a pipe":
        os.mkfifo(file)
    elif where == "a folder":
        file.mkdir()
    elif where != "missing":
        file.write_bytes(b"{}")
    refused = publish(model, tmp_path / "out", *([] if where == "in the folder" else ["--golden", file]))
    assert refused.returncode == 1 and str(file) in refused.stderr
    assert not (tmp_path / "out").exists()


def test_holdfasts_own_records_are_left_out_and_named(model: Path, tmp_path: Path) -> None:
    """A `holdfast.json` and a `.holdfast/` in the folder are not content, and standard error says so."""
    (model / "holdfast.json").write_bytes(b"{}")
    (model / ".holdfast").mkdir()
    (model / ".holdfast" / "lease").touch()
    done = publish(model, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 2
    assert set(tree(tmp_path / "out")) == {*FILES, "holdfast.json"}


@pytest.mark.parametrize("name", ["bad\nname", "back\\slash", "de\u0301compose\u0301"])
def test_a_name_no_manifest_may_carry_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    """A file with an illegal name is named and nothing is published."""
    (model / name).touch()
    done = publish(model, tmp_path / "out")
    assert done.returncode == 1 and repr(name) in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_none_are_refused(tmp_path: Path) -> None:
    """There must be something to publish."""
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "gone"):
        done = publish(tmp_path / folder, tmp_path / "out")
        assert done.returncode == 1 and str(tmp_path / folder) in done.stderr


def test_a_destination_inside_the_folder_is_refused(model: Path) -> None:
    """Publishing into a subfolder would make every next publish another version."""
    assert publish(model, model / "out").returncode == 1
    assert set(tree(model)) == set(FILES)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("models:/m/1", "models: can only be read from"),
        ("runs:/id/m", "runs: can only be read from"),
        ("sagemaker:m", "sagemaker: can only be read from"),
        ("wandb://a/b/c", "wandb: can only be read from"),
        ("s3:/bucket/m", "s3: without `//`"),
        ("FILE:/m", "file: without `//`"),
    ],
)
def test_a_sources_scheme_is_no_folder(
    uri: str,
    said: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What begins as a source's location is refused where it is none to publish to, and never becomes a folder beside
    the user; a colon in another name is part of it."""
    monkeypatch.chdir(tmp_path)
    assert main([str(model), uri]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("uri", ["https://u:sesame@host/m/", "hf://acme/m", "ftp://b/m", "s3://k:sesame@b/m"])
def test_where_nothing_can_be_published_is_a_usage_error(model: Path, uri: str) -> None:
    """A read-only or unknown destination exits 2, says what to use, and quotes no credentials."""
    done = publish(model, uri)
    assert done.returncode == 2 and done.stdout == ""
    assert "s3://" in done.stderr and "sesame" not in done.stderr


def test_bad_options_are_usage_errors(model: Path, tmp_path: Path) -> None:
    """Missing arguments and impossible numbers exit 2."""
    assert publish(model).returncode == 2
    assert publish(model, tmp_path / "out", "--threads", "0").returncode == 2
    assert publish("--help").returncode == 0


def test_publishing_to_a_folder_imports_no_aws_library() -> None:
    """The command pays for aiobotocore only where it publishes to S3."""
    program = "import sys, cached.publish.command; sys.exit('botocore' in sys.modules or 'aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_s3_publish_again_and_replace(rclone: S3Server, model: Path) -> None:
    """On S3 as in a folder: whole, once, refused without --force, replaced whole with it."""
    bucket = new_bucket(rclone)
    uri, env = f"s3://{bucket}/acme/m/v1", rclone.environment
    first = published(model, uri, env=env)
    assert first["uri"] == uri
    stored = objects(rclone, bucket)
    manifest = stored.pop("acme/m/v1/holdfast.json")
    assert stored == {f"acme/m/v1/{path}": data for path, data in FILES.items()}
    assert str(Digest.of(manifest)) == first["digest"]
    assert published(model, f"{uri}/", env=env)["uploaded_files"] == 0

    (model / "config.json").unlink()
    (model / "new.bin").write_bytes(b"new")
    refused = publish(model, uri, env=env)
    assert refused.returncode == 1 and first["digest"] in refused.stderr
    assert published(model, uri, "--force", env=env)["uploaded_files"] == 1
    names = {"weights/a.safetensors", "weights/empty", "näme.txt", "new.bin", "holdfast.json"}
    assert set(objects(rclone, bucket)) == {f"acme/m/v1/{name}" for name in names}


def test_s3_large_files_go_in_parts(rclone: S3Server, tmp_path: Path) -> None:
    """A file of several parts arrives whole, and no unfinished upload stays."""
    model = tmp_path / "model"
    model.mkdir()
    data = os.urandom(40 * 1024 * 1024 + 17)
    (model / "big.bin").write_bytes(data)
    bucket = new_bucket(rclone)
    published(model, f"s3://{bucket}/m", "--threads", "3", env=rclone.environment)
    assert objects(rclone, bucket)["m/big.bin"] == data
    assert not rclone.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_s3_an_interrupted_publish_goes_on(moto: S3Server, model: Path) -> None:
    """Where a publish stopped before the manifest, the next uploads what is missing or not vouched for, and no more."""
    bucket = new_bucket(moto)
    env = {**moto.environment, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    uri = f"s3://{bucket}/m/?endpoint_url={moto.url}&addressing_style=path"
    digest = published(model, uri, env=env)["digest"]
    client = moto.client()
    for key in ("m/holdfast.json", "m/config.json"):
        client.delete_object(Bucket=bucket, Key=key)
    client.put_object(Bucket=bucket, Key="m/näme.txt", Body=b"?")  # as long as the right one, vouched for by no source
    ended = replace(Mark.new(Digest.of(b"")), ended=True)
    client.put_object(Bucket=bucket, Key="m/.holdfast/publishing", Body=ended.encode())
    facts = published(model, uri, env=env)
    assert (facts["digest"], facts["uploaded_files"]) == (digest, 2)
    stored = objects(moto, bucket)
    assert stored["m/näme.txt"] == b"n"
    assert set(stored) == {f"m/{path}" for path in (*FILES, "holdfast.json")}


def test_s3_lost_objects_are_put_back(moto: S3Server, model: Path) -> None:
    """Under the same manifest, objects that are gone or of another size are uploaded again."""
    bucket = new_bucket(moto)
    published(model, f"s3://{bucket}/m", env=moto.environment)
    moto.client().delete_object(Bucket=bucket, Key="m/config.json")
    moto.client().put_object(Bucket=bucket, Key="m/näme.txt", Body=b"longer")
    assert published(model, f"s3://{bucket}/m", env=moto.environment)["uploaded_files"] == 2
    assert objects(moto, bucket)["m/näme.txt"] == b"n"


def test_s3_refusals_name_the_reason_and_no_secret(rclone: S3Server, model: Path) -> None:
    """A missing bucket and a wrong key exit 1 with reason and remedy, and show no credentials."""
    missing = publish(model, "s3://no-such-bucket-here/m", env=rclone.environment)
    assert missing.returncode == 1 and "no such bucket" in missing.stderr
    env = {**rclone.environment, "AWS_SECRET_ACCESS_KEY": "sesame-open-sesame"}
    wrong = publish(model, f"s3://{new_bucket(rclone)}/m", env=env)
    assert wrong.returncode == 1 and "credentials" in wrong.stderr
    assert not re.search(f"sesame|{SECRET_KEY}|Traceback", missing.stderr + wrong.stderr)
