"""Versions that come as archives, on nodes whose sources cannot be reached."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached.archive import export, importing
from cached.contract.archive.import_stream import LineReader, send_line
from cached.contract.errors import HoldfastError
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, prefetched, publish_files

V1, PINNED, FREE = ModelRef("tiny", "v1"), ModelRef("pinned", "v1"), ModelRef("free", "v1")
FAILED = ModelRef("failed", "v1")
FILES = {"config.json": b"{}", "w.bin": bytes(range(256)) * 9000, "small.txt": b"s" * 100, "empty": b""}
OTHERS = ("filler", "small")
FILLER, SMALL = (ModelRef(name, "v1") for name in OTHERS)
UNREACHABLE = "http://127.0.0.1:9/nothing/"


@pytest.fixture
def archive(daemon: DaemonProcess, source: Path, tmp_path: Path) -> Iterator[tuple[Path, Manifest]]:
    """An archive of FILES, exported from a daemon which then has them no more, and whose sources are unreachable."""
    manifest = publish_files(source, FILES)
    daemon.write_catalog({"tiny": {"versions": {"v1": {"source": f"file://{source}"}}}})
    daemon.start()
    daemon.pull(str(V1))
    daemon.wait_ready(V1)
    path = tmp_path / "tiny.tar"
    assert export.main([str(V1), str(path), "--root", str(daemon.layout.root)]) == 0
    daemon.write_catalog({})
    daemon.wait(lambda: "catalog: 0 models" in daemon.log(), "the empty catalog")
    daemon.control.gc(dry_run=False)
    daemon.wait(lambda: not daemon.path(V1).exists(), "the eviction")
    yield path, manifest


def run(daemon: DaemonProcess, *arguments: object) -> int:
    return importing.main([*map(str, arguments), "--root", str(daemon.layout.root)])


def nothing_is_visible(daemon: DaemonProcess) -> bool:
    public = daemon.layout.public
    return not [*public.models.iterdir(), *public.snapshots.iterdir()]


def test_archives_meet_what_waits_for_an_unreachable_source(
    daemon: DaemonProcess, archive: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    """Imported, a version is ready under the same digest, pinned, unpinned or not in the catalog at all; what waited
    for its source waits no more, also after a restart. Another archive than the pinned one, and other content under a
    held name, are refused. A damaged archive, one that is cut, and a client that is killed leave nothing to be seen."""
    path, manifest = archive
    unreachable = {"source": UNREACHABLE}
    daemon.write_catalog(
        {
            "pinned": prefetched(UNREACHABLE, digest=manifest.digest),
            "free": prefetched(UNREACHABLE),
            "failed": prefetched("file:///nowhere/at/all", digest=manifest.digest),
            "other": {"versions": {"v1": {**unreachable, "digest": f"sha256:{'0' * 64}"}}},
        }
    )
    daemon.wait(lambda: daemon.error(PINNED) != {} and daemon.error(FREE) != {}, "trouble with both sources")
    daemon.wait_state(FAILED, "failed")
    data = path.read_bytes()
    cut = path.with_name("cut.tar")
    cut.write_bytes(data[: len(data) // 2])
    assert run(daemon, cut, "free@v1") == 1
    damaged = path.with_name("damaged.tar")
    damaged.write_bytes(data.replace(FILES["small.txt"], b"t" * 100))
    assert run(daemon, damaged, "free@v1") == 1
    assert "small.txt" in capsys.readouterr().err
    killed = subprocess.Popen(
        [sys.executable, "-m", "cached.cli", "import", "-", "--root", str(daemon.layout.root)], stdin=subprocess.PIPE
    )
    assert killed.stdin is not None
    killed.stdin.write(data[: len(data) - 2048])
    killed.stdin.flush()
    killed.kill()
    killed.wait()
    killed.stdin.close()
    daemon.wait(lambda: daemon.log().count("an import failed") == 3, "the end of three imports")
    assert nothing_is_visible(daemon)
    daemon.wait(lambda: daemon.document()["disk"]["reserved"] == 0, "their space is given back")

    for ref in (PINNED, FREE, FAILED):
        assert run(daemon, path, ref) == 0
        daemon.wait_ready(ref)
        assert (daemon.digest(ref), daemon.files(ref)) == (manifest.digest, FILES)
        assert daemon.error(ref) == {}
    assert run(daemon, path) == 0
    assert daemon.digest(V1) == manifest.digest
    assert run(daemon, path, "other@v1") == 1
    assert "(the catalog's digest)" in capsys.readouterr().err
    assert daemon.metric("holdfast_fetch_bytes_total", source="import") >= len(FILES["w.bin"])

    changed = dict(FILES, **{"config.json": b'{"a": 1}'})
    other = path.with_name("other.tar")
    other.write_bytes(_archive_of(path.parent / "other", changed))
    assert run(daemon, other, "free@v1") == 1
    assert "--replace" in capsys.readouterr().err
    assert daemon.digest(FREE) == manifest.digest
    assert run(daemon, other, "free@v1", "--replace") == 0
    assert daemon.files(FREE) == changed

    daemon.stop()
    daemon.start()
    for ref in (PINNED, FREE, FAILED, V1):
        daemon.wait_ready(ref)


def test_a_daemon_that_dies_in_the_middle_leaves_nothing_visible(
    daemon: DaemonProcess, archive: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """Killed while it receives, it has published nothing after its next start, and takes the same archive then,
    evicting for it what nothing wants; nor does it publish before all that it needs was sent. What it did not ask for
    is refused."""
    path, manifest = archive
    data = manifest.canonical()
    status, answer = daemon.command("/v1/import", {"model": "tiny", "version": "v1"})
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    with _begun(daemon, data) as (stream, answers):
        assert set(answers.read_document()["need"]) == {file.sha256 for file in manifest.files}
        send_line(stream, "0" * 64)
        with pytest.raises(HoldfastError, match="expected a needed blob"):
            answers.read_document()
    with _begun(daemon, data) as (_, answers), _begun(daemon, data) as (stream, others):
        assert answers.read_document() == others.read_document()  # two clients at once do not meet
    with _begun(daemon, data) as (stream, answers):
        answers.read_document()
        send_line(stream, "done")
        with pytest.raises(HoldfastError, match="4 blobs were not sent"):
            answers.read_document()
    with _begun(daemon, data) as (stream, answers):
        answers.read_document()
        large = next(file for file in manifest.files if file.path == "w.bin")
        send_line(stream, large.sha256)
        stream.sendall(FILES["w.bin"][:1_000_000])
        daemon.wait(lambda: any(daemon.layout.ingest.iterdir()), "its first bytes")
        daemon.kill()
    publish_files(tmp_path / "filler", {"w.bin": b"f" * 2_000_000})
    publish_files(tmp_path / "small", {"w.bin": b"s" * 1000})
    daemon.write_catalog({name: {"versions": {"v1": {"source": f"file://{tmp_path / name}"}}} for name in OTHERS})
    daemon.start("--quota", "4MB")
    assert nothing_is_visible(daemon)
    daemon.pull(str(FILLER))
    daemon.wait_ready(FILLER)
    assert run(daemon, path) == 0
    assert daemon.digest(V1) == manifest.digest
    assert not daemon.path(FILLER).exists()
    daemon.pull(str(SMALL))
    daemon.wait_ready(SMALL)
    daemon.control.pin(V1)
    big = path.with_name("big.tar")
    big.write_bytes(_archive_of(tmp_path / "big", {"w.bin": b"l" * 3_900_000}))
    assert run(daemon, big, "big@v1") == 1  # nothing goes in vain
    assert daemon.path(SMALL).exists()
    assert daemon.metric("holdfast_evictions_total", reason="import") == 1


@contextlib.contextmanager
def _begun(daemon: DaemonProcess, manifest: bytes) -> Iterator[tuple[Any, LineReader]]:
    with daemon.control.begin_import(V1, replace=False) as stream:
        send_line(stream, str(len(manifest)))
        stream.sendall(manifest)
        yield stream, LineReader(stream)


def _archive_of(folder: Path, files: dict[str, bytes]) -> bytes:
    publish_files(folder, files)
    names = ["holdfast.json", *files]
    return subprocess.run(["tar", "-C", folder, "-c", *names], capture_output=True, check=True).stdout
