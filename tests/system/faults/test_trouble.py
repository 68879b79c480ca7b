"""Trouble around the daemon that must not end it."""

from __future__ import annotations

import os
import resource
import shutil
from functools import partial
from pathlib import Path

from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.contract.status import parse_timestamp
from tests.support.daemon import DaemonProcess, model, prefetched, publish_files, write_files
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Stall, Status

V1, V2 = ModelRef("tiny", "v1"), ModelRef("tiny", "v2")


def test_a_disk_that_refuses_is_told_and_tried_again(daemon: DaemonProcess, source: Path) -> None:
    """Where the store cannot be written, the version says so and is retried; once it can, it arrives."""
    write_files(source, {"a.bin": b"a" * 100_000})
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start()
    ingest = daemon.layout.ingest
    ingest.rmdir()
    ingest.write_bytes(b"in the way")
    daemon.pull("tiny@v1")
    assert daemon.wait_error(V1)["permanent"] is False
    ingest.unlink()
    ingest.mkdir(mode=0o700)
    daemon.pull("tiny@v1")
    daemon.wait_state(V1, "ready")


def test_a_snapshot_that_somebody_removed_is_no_end(daemon: DaemonProcess, source: Path) -> None:
    """A version that was removed behind the daemon's back is evicted like any other, and can be fetched again."""
    publish_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start()
    daemon.pull("tiny@v1")
    daemon.wait_ready(V1)
    shutil.rmtree(daemon.path(V1).resolve())
    assert [item.ref for item in daemon.control.gc(dry_run=False).versions] == [V1]
    daemon.pull("tiny@v1")
    daemon.wait_state(V1, "ready")
    assert daemon.files(V1) == {"a.bin": b"a"}


def test_a_lease_is_seen_and_kept_in_mind(daemon: DaemonProcess, source: Path) -> None:
    """A held lease shows in `leased` and moves `last_used`, also over a restart."""
    write_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    file = daemon.path(V1) / ".holdfast" / "lease"
    os.utime(file, (1, 1))
    held = lease.take_shared(file)
    assert held is not None
    with held:
        assert daemon.control.gc(dry_run=True).versions == ()
        assert daemon.document()["models"][0]["leased"] is True
        used = daemon.document()["models"][0]["last_used"]
    daemon.kill()
    daemon.start()
    assert daemon.document()["models"][0]["leased"] is False
    assert abs(parse_timestamp(daemon.document()["models"][0]["last_used"]) - parse_timestamp(used)) <= 1


def test_prefetches_that_hang_leave_room_for_a_pull(daemon: DaemonProcess, origin: HostileOrigin, source: Path) -> None:
    """A pull arrives although prefetches wait for an origin that says nothing; also one that was a prefetch itself."""
    write_files(source, {"a.bin": b"a"})
    versions = {}
    for number in range(8):
        origin.script(f"/{number}/holdfast.json", Stall(None))
        versions[f"slow{number}"] = {"source": origin.url(f"/{number}/")}
    versions["v1"] = versions["v2"] = {"source": f"file://{source}"}
    daemon.write_catalog({"tiny": {"versions": versions, "prefetch": {"versions": [*versions][:9]}}})
    daemon.start()
    daemon.wait(lambda: len(origin.requests) >= 4, "four prefetches under way")
    assert daemon.state(V1) == "queued"
    daemon.pull("tiny@v2")
    daemon.wait_ready(V2)
    assert daemon.state(V1) == "queued"
    daemon.pull("tiny@v1")
    daemon.wait_state(V1, "ready")
    assert daemon.stop() == 0


def test_a_dead_origin_keeps_no_other_waiting(daemon: DaemonProcess, origin: HostileOrigin, source: Path) -> None:
    """Prefetches whose origin broke down in their middle make room for those of another origin."""
    manifest = write_files(source, {"a.bin": b"a"})
    origin.put("/m/holdfast.json", manifest.canonical())
    origin.put("/m/a.bin", b"a")
    origin.script("/m/a.bin", *[Status(503)] * 1000)
    dead = [ModelRef("dead", f"v{number}") for number in range(4)]
    dead_entry = prefetched(origin.url("/m/"), *(ref.version for ref in dead))
    daemon.write_catalog({"dead": dead_entry, "tiny": prefetched(f"file://{source}/")})
    daemon.start()
    for ref in dead:
        daemon.wait(partial(_has_error, daemon, ref), f"an error of {ref}")
    daemon.write_catalog({"dead": dead_entry, "tiny": prefetched(f"file://{source}", "v1", "v2")})
    daemon.wait_state(V2, "ready")
    daemon.wait_state(V1, "ready")


def test_odd_requests_are_refused_as_such(daemon: DaemonProcess) -> None:
    """What is no command of ours gets 400 and an error with code, message, remedy; nothing happens."""
    daemon.write_catalog({})
    daemon.start()
    for path, body in (
        ("/v1/pull", []),
        ("/v1/pull", {}),
        ("/v1/pull", {"model": "tiny"}),
        ("/v1/pull", {"model": "../../etc", "version": "v1"}),
        ("/v1/pull", {"model": "tiny", "version": "v1", "digest": "sha256:short"}),
        ("/v1/pull", {"model": "tiny", "version": "v1", "digest": 7}),
        ("/v1/pin", {"model": 1, "version": 2}),
        ("/v1/gc", "all"),
    ):
        status, document = daemon.command(path, body)
        assert status == 400, (path, body)
        assert document["error"].keys() == {"code", "message", "remedy", "permanent"}
    assert daemon.document()["models"] == []


def test_memory_and_descriptors_do_not_grow(daemon: DaemonProcess, source: Path) -> None:
    """Fetching, evicting and refusing again and again leaves no descriptor open and no memory taken."""
    publish_files(source, {"a.bin": bytes(300_000), "b.json": b"{}"})
    daemon.write_catalog({"tiny": model(f"file://{source}")})
    daemon.start()

    def round_trip() -> None:
        daemon.pull("tiny@v1")
        daemon.wait_ready(V1)
        daemon.pull("unknown@v1")
        assert daemon.control.gc(dry_run=False).versions

    for _ in range(5):
        round_trip()
    descriptors, memory = _descriptors(daemon), _resident(daemon)
    for _ in range(25):
        round_trip()
    assert _descriptors(daemon) <= descriptors + 2
    assert _resident(daemon) < memory + 8 * 1024 * 1024


def _has_error(daemon: DaemonProcess, ref: ModelRef) -> bool:
    return bool(daemon.error(ref))


def _descriptors(daemon: DaemonProcess) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def _resident(daemon: DaemonProcess) -> int:
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * resource.getpagesize()
