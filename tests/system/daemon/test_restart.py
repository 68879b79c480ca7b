"""Ends and starts: what was under way goes on, what was there stays, what lay about goes."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import TEMPORARY_PREFIX
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, model, prefetched, publish_files, write_files
from tests.support.page_cache import drop_pages

V1 = ModelRef("tiny", "v1")
MIB = 1024 * 1024
BIG = 150 * MIB
ONE_CONNECTION = ("--connections", "1", "--max-bandwidth", "60MiB/s")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of 150 MiB and a small one."""
    folder = tmp_path_factory.mktemp("big")
    publish_files(folder, {"model.safetensors": random.Random(3).randbytes(BIG), "config.json": b"{}"})
    return folder


def _under_way(daemon: DaemonProcess, source: Path) -> float:
    """Start a pull of the big version; returns the bytes it had received when it was two thirds there."""
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start(*ONE_CONNECTION)
    daemon.pull("tiny@v1")
    daemon.wait(lambda: (daemon.status(V1) or {}).get("bytes_done", 0) > 100 * MIB, "100 MiB")
    return daemon.metric("holdfast_fetch_bytes_total")


def test_a_killed_fetch_goes_on_by_itself(daemon: DaemonProcess, big: Path) -> None:
    """After kill -9 the next start takes the version up unasked; at most two segments a connection come twice."""
    first = _under_way(daemon, big)
    daemon.kill()
    daemon.start()
    daemon.wait_ready(V1)
    second = daemon.metric("holdfast_fetch_bytes_total")
    assert second < BIG
    assert first + second <= BIG + 2 + 64 * MIB
    assert (daemon.path(V1) / "model.safetensors").read_bytes() == (big / "model.safetensors").read_bytes()
    assert (daemon.status(V1) or {})["source"] == f"file://{big}"


def test_a_stopped_fetch_is_recorded(daemon: DaemonProcess, big: Path) -> None:
    """SIGTERM in the middle of a fetch ends the daemon with 0, and nothing that had arrived comes twice."""
    _under_way(daemon, big)
    assert daemon.stop() == 0
    assert daemon.state(V1) in ("fetching", "verifying")
    assert not daemon.layout.socket.exists()
    data = next(daemon.layout.ingest.glob("*/data"))
    daemon.start()
    daemon.wait_ready(V1)
    assert not data.exists()
    assert daemon.metric("holdfast_fetch_bytes_total") < 60 * MIB


def test_what_is_ready_stays_ready(daemon: DaemonProcess, source: Path) -> None:
    """A restart with everything there fetches nothing, reads no blob, and tells the same of it as before."""
    manifest = publish_files(source, {"a.bin": bytes(8 * MIB)})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}", digest=manifest.digest)})
    daemon.start()
    daemon.wait_ready(V1)
    before = daemon.status(V1) or {}
    used = daemon.document()["models"][0]["last_used"]
    inode = os.stat(daemon.path(V1) / "a.bin").st_ino
    assert daemon.stop() == 0
    drop_pages(daemon.path(V1) / "a.bin")
    daemon.start()
    after = daemon.wait_state(V1, "ready")
    changing = ("since", "updated")
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }
    assert daemon.document()["models"][0]["last_used"] == used
    assert daemon.metric("holdfast_fetch_bytes_total") == 0
    assert _read_from_disk(daemon) < 4 * MIB
    assert os.stat(daemon.path(V1) / "a.bin").st_ino == inode
    assert daemon.metric("holdfast_model_pinned") == 1


def test_a_restart_writes_no_status_that_is_right(daemon: DaemonProcess, source: Path) -> None:
    """A start leaves a status file as it is where it says what is so, and makes anew one that does not or is gone."""
    names = ("right", "edited", "gone", "opened")
    for name in names:
        publish_files(source / name, {"config.json": name.encode()})
    daemon.write_catalog({name: prefetched(f"file://{source / name}") for name in names})
    daemon.start()
    paths = {}
    for name in names:
        daemon.wait_ready(ModelRef(name, "v1"))
        paths[name] = daemon.layout.public.model_status(ModelRef(name, "v1"))
    daemon.stop()
    said = {name: path.read_bytes() for name, path in paths.items()}
    before = {name: path.stat() for name, path in paths.items()}
    paths["edited"].write_bytes(said["edited"].replace(b"ready", b"ready "))
    paths["gone"].unlink()
    paths["opened"].chmod(0o666)
    daemon.start()
    daemon.wait(lambda: paths["gone"].exists(), "the status that was deleted")
    daemon.stop()
    for name, path in paths.items():
        found, after = json.loads(path.read_bytes()), path.stat()
        assert {**found, "since": "", "updated": ""} == {**json.loads(said[name]), "since": "", "updated": ""}
        assert (after.st_ino == before[name].st_ino) == (name == "right")
        assert after.st_mode & 0o777 == 0o644
    assert paths["right"].stat().st_mtime_ns == before["right"].st_mtime_ns


def test_a_restart_keeps_a_pulls_pin(daemon: DaemonProcess, source: Path) -> None:
    """A version that was pulled with a pin, and was under way, is still held to it after a restart; that it was wrong
    fails no other: the version has no status then."""
    write_files(source, {"a.bin": bytes(6 * MIB)})
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start("--max-bandwidth", "1MiB/s")
    wrong = Digest("0" * 64)
    daemon.pull("tiny@v1", wrong)
    daemon.wait_state(V1, "fetching")
    daemon.kill()
    daemon.start()
    daemon.wait(lambda: f"expected {wrong} (the pin)" in daemon.log(), "the verdict on the pin in the log")
    daemon.wait_state(V1, None)
    assert not daemon.path(V1).exists()


def test_leftovers_of_a_crash_are_swept(daemon: DaemonProcess, source: Path) -> None:
    """A start removes temporary names, trash, names that point at nothing, and statuses of what is not here."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.kill()
    layout, public = daemon.layout, daemon.layout.public
    left = [
        layout.private / f"{TEMPORARY_PREFIX}1",
        public.snapshots / f"{TEMPORARY_PREFIX}2",
        public.models / "tiny" / f"{TEMPORARY_PREFIX}3",
        public.status / "tiny" / f"{TEMPORARY_PREFIX}4",
        layout.trash / "5",
        public.models / "tiny" / "v9",
        public.status / "gone" / "v1.json",
        public.status / "half" / "v1.json",
    ]
    for folder in (left[1], left[4], left[6].parent, left[7].parent):
        folder.mkdir()
    for file in (left[0], left[1] / "x", left[3], left[4] / "x"):
        file.write_bytes(b"left")
    left[2].symlink_to("nowhere")
    left[5].symlink_to("../../snapshots/" + "0" * 64)
    left[6].write_bytes(public.model_status(V1).read_bytes())
    left[7].write_bytes(b"")
    daemon.start()
    daemon.wait_ready(V1)
    daemon.wait(lambda: not any(os.path.lexists(path) for path in left), "an end of what was left")
    assert daemon.files(V1) == {"a.bin": b"a"}


def test_a_snapshot_with_a_damaged_manifest_is_made_anew(daemon: DaemonProcess, source: Path) -> None:
    """A snapshot whose manifest is not what its name says is not published again as it is, and fetches nothing."""
    manifest = publish_files(source, {"a.bin": bytes(MIB)})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    daemon.stop()
    damaged = daemon.layout.public.snapshot(manifest.digest).manifest
    damaged.chmod(0o644)
    damaged.write_bytes(manifest.canonical().replace(b"a.bin", b"b.bin"))
    daemon.start()
    daemon.wait_ready(V1)
    assert damaged.read_bytes() == manifest.canonical()
    assert daemon.metric("holdfast_fetch_bytes_total") == 0


def test_an_end_is_prompt_while_an_origin_keeps_silent(daemon: DaemonProcess, source: Path) -> None:
    """SIGTERM ends the daemon with 0 although a version waits out a long pause."""
    daemon.write_catalog({"tiny": prefetched("http://127.0.0.1:9/")})
    daemon.start()
    daemon.wait(lambda: bool(daemon.error(V1)), "an error")
    assert daemon.stop() == 0


def test_a_start_is_undone_by_a_signal(daemon: DaemonProcess) -> None:
    """A SIGTERM at any moment of the start ends the daemon; from the moment it listens, with 0."""
    daemon.write_catalog({})
    daemon.listen()
    assert daemon.stop() == 0


def test_pins_outlive_the_daemon(daemon: DaemonProcess, source: Path) -> None:
    """What was pinned is pinned after a restart, though several were pinned at once."""
    write_files(source, {"a.bin": b"a"})
    names = [f"v{number}" for number in range(6)]
    daemon.write_catalog({"tiny": model(f"file://{source}", *names)})
    daemon.start()
    for name in names:
        daemon.pull(f"tiny@{name}")
        daemon.control.pin(ModelRef("tiny", name))
    daemon.control.unpin(ModelRef("tiny", "v5"))
    daemon.wait_ready(*(ModelRef("tiny", name) for name in names))
    daemon.kill()
    daemon.start()
    assert [item.ref.version for item in daemon.control.gc(dry_run=False).versions] == ["v5"]


def _read_from_disk(daemon: DaemonProcess) -> int:
    lines = Path(f"/proc/{daemon.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])
