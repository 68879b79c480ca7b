"""A disk that fills up, by others' files or by our own, at every stage of a fetch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, model
from tests.support.mounts import Filler, mounted_tmpfs
from tests.system.disk.conftest import MIB, OPTIONS, Place, Start, check_public, error_of, told, wait_told

A, B = ModelRef("m", "a"), ModelRef("m", "b")


def _has_outcome(daemon: DaemonProcess) -> bool:
    return error_of(daemon, A).get("code") == "no_space" or told(daemon, A).get("state") == "ready"


def _fetch_into(daemon: DaemonProcess, free_bytes: int) -> None:
    """Let a fetch meet a disk with so much left: it says so, shows nothing half, and ends well once there is more."""
    filler = Filler(daemon.layout.root)
    filler.leave(free_bytes)
    daemon.pull("m@a")
    daemon.wait(lambda: _has_outcome(daemon), "an outcome")
    assert daemon.get("/healthz")[0] == 200
    if told(daemon, A)["state"] != "ready":
        error = error_of(daemon, A)
        assert error["permanent"] is False
        assert error["remedy"]
        assert not daemon.path(A).exists()
    check_public(daemon)
    filler.vanish()
    wait_told(daemon, A, "ready")
    check_public(daemon)
    daemon.wait(lambda: daemon.document()["disk"]["error"] is None, "a disk without trouble")
    daemon.control.gc(dry_run=False)


@pytest.mark.parametrize("free_kib", [0, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (200, 2100, 3300))])
def test_a_disk_with_little_left(on_ext4: Start, place: Place, free_kib: int) -> None:
    """However little is free when a fetch begins: the daemon stays up, says `no_space`, shows nothing half, goes on."""
    with on_ext4(24 * MIB) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", 2 * MIB, MIB, 1000)}}})
        daemon.start()
        _fetch_into(daemon, free_kib * 1024)


@pytest.mark.slow
def test_a_disk_with_any_amount_left(on_ext4: Start, place: Place) -> None:
    """The same for every amount from nothing to enough, in steps of a few blocks."""
    with on_ext4(24 * MIB) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", MIB, MIB, 1000)}}})
        daemon.start()
        for free_kib in [*range(0, 64, 8), *range(64, 2560, 256), *range(2560, 3200, 64)]:
            _fetch_into(daemon, free_kib * 1024)


@pytest.mark.parametrize("left_kib", [0, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (8, 24))])
def test_a_disk_that_fills_up_under_a_fetch(on_ext4: Start, place: Place, left_kib: int) -> None:
    """Where a person takes the rest while bytes are on their way, the version arrives or says `no_space`, nothing half
    is visible, and all goes on by itself when space returns."""
    with on_ext4(24 * MIB, "--max-bandwidth", "2MiB/s") as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", 4 * MIB, *[5000] * 4)}}})
        daemon.start()
        daemon.pull("m@a")
        daemon.wait(lambda: told(daemon, A).get("state") == "fetching", "bytes on their way")
        filler = Filler(daemon.layout.root)
        filler.leave(left_kib * 1024)
        daemon.wait(lambda: _has_outcome(daemon), "an outcome")
        assert daemon.get("/healthz")[0] == 200
        check_public(daemon)
        filler.vanish()
        wait_told(daemon, A, "ready")
        check_public(daemon)
        daemon.wait_state(A, "ready")


def test_a_heartbeat_without_a_block(on_ext4: Start) -> None:
    """Where not even the heartbeat can be written, the port and /readyz say so, and the log once; until it can."""
    with on_ext4(16 * MIB) as daemon:
        daemon.write_catalog({})
        daemon.start()
        filler = Filler(daemon.layout.root)
        filler.leave(0)
        daemon.wait(lambda: daemon.get("/readyz")[0] == 503, "503 from /readyz")
        assert "full" in daemon.get("/readyz")[1]
        assert daemon.document()["disk"]["error"]["code"] == "no_space"
        assert daemon.get("/healthz")[0] == 200
        filler.vanish()
        daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "200 from /readyz")
        assert daemon.log().count("status files: they cannot") == 1


def test_a_full_disk_is_no_reason_not_to_start(on_ext4: Start, place: Place) -> None:
    """A daemon that is started on a full disk makes room by evicting what nothing wants, and fetches what is wanted."""
    with on_ext4(24 * MIB) as daemon:
        entry = {"versions": {"a": place("a", 8 * MIB), "b": place("b", 7 * MIB)}}
        daemon.write_catalog({"m": entry})
        daemon.start()
        daemon.pull("m@a")
        daemon.wait_ready(A)
        daemon.kill()
        Filler(daemon.layout.root).leave(0)
        daemon.write_catalog({"m": {**entry, "prefetch": {"versions": ["b"]}}})
        daemon.start()
        wait_told(daemon, B, "ready")
        assert not daemon.path(A).exists()
        check_public(daemon)


def test_the_disks_own_refusal_evicts_too(on_ext4: Start, place: Place) -> None:
    """Where the disk refuses what the account allowed, something that nothing wants goes, as for any lack of space."""
    with on_ext4(32 * MIB, "--max-bandwidth", "1500kB/s") as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", 4 * MIB), "b": place("b", 4 * MIB, *[5000] * 4)}}})
        daemon.start()
        daemon.pull("m@a")
        daemon.wait_ready(A)
        daemon.pull("m@b")
        daemon.wait(lambda: told(daemon, B).get("state") == "fetching", "bytes on their way")
        Filler(daemon.layout.root).leave(0)
        wait_told(daemon, B, "ready")
        assert not daemon.path(A).exists()
        assert daemon.metric("holdfast_evictions_total", reason="space") == 1
        check_public(daemon)


def test_the_commands_of_a_full_disk_say_so(on_ext4: Start) -> None:
    """A pin that cannot be kept is refused with the reason; it can be repeated when there is space."""
    with on_ext4(16 * MIB) as daemon:
        daemon.write_catalog({"m": model("file:///nowhere", "a")})
        daemon.start()
        filler = Filler(daemon.layout.root)
        filler.leave(0)
        status, answer = daemon.command("/v1/pin", {"model": "m", "version": "a"})
        assert (status, answer["error"]["code"]) == (503, "no_space")
        filler.vanish()
        assert daemon.command("/v1/pin", {"model": "m", "version": "a"})[0] == 200


@pytest.mark.slow
def test_an_own_file_system_of_any_kind_fills(tmp_path: Path, place: Place) -> None:
    """The same on a tmpfs, which keeps no reserve at all for records."""
    with mounted_tmpfs(tmp_path / "root", "8m"), daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", 2 * MIB, MIB, 1000)}}})
        daemon.start()
        for free in (0, 3 * MIB + 3 * os.sysconf("SC_PAGESIZE")):
            _fetch_into(daemon, free)
