"""What people take away under a running daemon: the root, its mount, its folders, versions, blobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process
from tests.support.mounts import mounted
from tests.system.disk.conftest import MIB, OPTIONS, Place, Start, check_public, wait_told

A, B = ModelRef("m", "a"), ModelRef("m", "b")


def _catalog(place: Place) -> dict[str, object]:
    versions = {"a": place("a", MIB, 5000), "b": place("b", MIB // 2)}
    return {"m": {"versions": versions, "prefetch": {"versions": ["a"]}}}


def _is_gone(daemon: DaemonProcess) -> bool:
    error = daemon.document()["disk"]["error"]
    return error is not None and error["code"] == "root_gone"


def _check_gone(daemon: DaemonProcess) -> None:
    """The daemon lives, says what is wrong on every listener, and takes nothing up."""
    daemon.wait(lambda: _is_gone(daemon), "root_gone")
    assert daemon.get("/healthz")[0] == 200
    daemon.wait(lambda: daemon.get("/readyz")[0] == 503, "503 from /readyz")
    assert str(daemon.layout.root) in daemon.get("/readyz")[1]
    assert daemon.get("/metrics")[0] == 200


def test_a_root_that_is_renamed(tmp_path: Path, place: Place) -> None:
    """While the root is elsewhere nothing is made in its place; back at its name, everything goes on."""
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog(_catalog(place))
        daemon.start()
        daemon.wait_ready(A)
        away = tmp_path / "away"
        daemon.layout.root.rename(away)
        _check_gone(daemon)
        daemon.write_catalog({"m": {**_catalog(place)["m"], "prefetch": {"versions": ["a", "b"]}}})  # type: ignore[dict-item]
        daemon.wait(lambda: "planning" in daemon.log(), "a plan that cannot be")
        assert not daemon.layout.root.exists()
        assert daemon.log().count("status files: ") == 1
        away.rename(daemon.layout.root)
        wait_told(daemon, B, "ready")
        daemon.wait_ready(A, B)
        daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "200 from /readyz")
        check_public(daemon)
        assert "Traceback" not in daemon.log()


def test_the_socket_of_the_daemon_that_took_its_place_stays(tmp_path: Path, place: Place) -> None:
    """A daemon whose root is elsewhere makes no socket in the root that took its place: commands there reach the daemon
    that works there."""
    with daemon_process(tmp_path, *OPTIONS) as daemon, daemon_process(tmp_path / "other", *OPTIONS) as other:
        daemon.write_catalog(_catalog(place))
        daemon.start()
        daemon.wait_ready(A)
        daemon.layout.root.rename(tmp_path / "away")
        other.write_catalog({})
        other.layout = daemon.layout
        other.start()
        socket = os.lstat(other.layout.socket)
        looked = re.compile("control socket .*another folder is there")
        daemon.wait(lambda: looked.search(daemon.log()) is not None, "a look at the socket")
        assert os.path.samestat(socket, os.lstat(other.layout.socket))
        assert daemon.control.status()["daemon"]["pid"] == other.pid


def test_a_mount_that_is_taken_away(tmp_path: Path, on_ext4: Start, place: Place) -> None:
    """Where the mount goes, nothing is written into the folder beneath, not even into an old root that is there; when
    it is back, everything goes on."""
    root = tmp_path / "root"
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog({})
        daemon.start()
        daemon.kill()
    (tmp_path / "catalog" / "catalog.yaml").unlink()
    (tmp_path / "catalog").rmdir()
    before = _tree(root)
    with on_ext4(32 * MIB) as daemon:
        daemon.write_catalog(_catalog(place))
        daemon.start()
        daemon.wait_ready(A)
        device = subprocess.run(["findmnt", "-no", "SOURCE", root], capture_output=True, text=True, check=True)
        subprocess.run(["umount", "-l", root], check=True)
        _check_gone(daemon)
        daemon.write_catalog({"m": {**_catalog(place)["m"], "prefetch": {"versions": ["a", "b"]}}})  # type: ignore[dict-item]
        daemon.wait(lambda: "planning" in daemon.log(), "a plan that cannot be")
        assert _tree(root) == before
        subprocess.run(["mount", device.stdout.strip(), root], check=True)
        wait_told(daemon, B, "ready")
        daemon.wait_ready(A, B)
        check_public(daemon)
        daemon.kill()


def _tree(folder: Path) -> dict[str, int]:
    """Every name below a folder, and when its bytes last changed."""
    return {str(path): os.lstat(path).st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("what", ["root", pytest.param("contents", marks=pytest.mark.slow)])
def test_a_root_that_is_deleted(tmp_path: Path, place: Place, what: str) -> None:
    """Where a person deletes the root, or all in it, the same process begins anew and fetches what is wanted."""
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog(_catalog(place))
        daemon.start()
        daemon.wait_ready(A)
        for _ in range(3):  # a status file may be written while it is at work
            for path in [daemon.layout.root] if what == "root" else [*daemon.layout.root.iterdir()]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        daemon.wait(lambda: "beginning anew" in daemon.log(), "a new beginning")
        daemon.wait(lambda: daemon.state(A) == "ready" and daemon.path(A).is_dir(), "a fetched again")
        check_public(daemon)
        assert daemon.get("/healthz")[0] == 200
        assert daemon.control.status()["daemon"]["pid"] == daemon.pid
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0


def _snapshot(daemon: DaemonProcess) -> None:
    shutil.rmtree(daemon.path(A).resolve())


def _name(daemon: DaemonProcess) -> None:
    daemon.path(A).unlink()


def _public(daemon: DaemonProcess) -> None:
    shutil.rmtree(daemon.layout.public.path)


def _one_file(daemon: DaemonProcess) -> None:
    (daemon.path(A) / "part-0" / "weights.bin").unlink()


def _other_bytes(daemon: DaemonProcess) -> None:
    path = daemon.path(A) / "part-0" / "weights.bin"
    path.unlink()
    path.write_bytes(bytes(MIB))


def _records(daemon: DaemonProcess) -> None:
    shutil.rmtree(daemon.path(A).resolve() / ".holdfast")


def _status(daemon: DaemonProcess) -> None:
    daemon.layout.public.model_status(A).unlink()


def _folder_of_names(daemon: DaemonProcess) -> None:
    shutil.rmtree(daemon.layout.public.model_link(A).parent)


def _blobs(daemon: DaemonProcess) -> None:
    for blob in daemon.layout.blobs.glob("*/*"):
        blob.unlink()


@pytest.mark.parametrize(
    "delete",
    [
        _snapshot,
        _name,
        _one_file,
        _status,
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (_public, _folder_of_names, _other_bytes, _records, _blobs)
        ),
    ],
)
def test_what_is_deleted_by_hand_comes_back(
    tmp_path: Path, place: Place, delete: Callable[[DaemonProcess], None]
) -> None:
    """A name, a snapshot, a file of one, public/ itself, blobs that a snapshot still has: put back within seconds,
    without asking the source for a byte."""
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog(_catalog(place))
        daemon.start()
        daemon.wait_ready(A)
        fetched = daemon.metric("holdfast_fetch_bytes_total")
        shutil.rmtree(tmp_path / "source")
        delete(daemon)
        daemon.wait(lambda: _is_whole(daemon), "all of it back")
        check_public(daemon)
        daemon.wait_state(A, "ready")
        assert daemon.metric("holdfast_fetch_bytes_total") == fetched
        daemon.wait(lambda: daemon.document()["disk"]["used"] == MIB + 5000, "an account that agrees")
        daemon.kill()
        daemon.start()
        assert _is_whole(daemon)


def _is_whole(daemon: DaemonProcess) -> bool:
    try:
        files = [daemon.path(A) / f"part-{number}" / "weights.bin" for number in range(2)]
        record = json.loads((daemon.path(A) / ".holdfast" / "verified.json").read_bytes())["files"]
        found = {path.stat().st_ino for path in files}
        return (
            found == {path.stat().st_ino for path in daemon.layout.blobs.glob("*/*")}
            and found == {entry["ino"] for entry in record.values()}
            and (daemon.path(A) / ".holdfast" / "lease").exists()
            and daemon.layout.public.model_status(A).exists()
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def test_bytes_that_are_nowhere_are_fetched_again(tmp_path: Path, place: Place) -> None:
    """A snapshot deleted with its blobs is fetched again, and the account says what the disk says."""
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog(_catalog(place))
        daemon.start()
        daemon.wait_ready(A)
        _snapshot(daemon)
        _blobs(daemon)
        daemon.wait(lambda: _is_whole(daemon), "all of it back")
        wait_told(daemon, A, "ready")
        check_public(daemon)
        daemon.wait(lambda: daemon.document()["disk"]["used"] == MIB + 5000, "an account that agrees")


def test_a_deleted_socket_is_made_anew(tmp_path: Path) -> None:
    """Where a person deletes the control socket, commands work again after a while."""
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog({})
        daemon.start()
        daemon.layout.socket.unlink()
        daemon.wait(partial(_answers, daemon), "a socket with a listener")


def _answers(daemon: DaemonProcess) -> bool:
    """Whether the daemon answers at its socket; between its name and its listener nothing does."""
    try:
        return bool(daemon.control.status()["daemon"]["pid"] == daemon.pid)
    except Permanent:
        return False


@pytest.mark.slow
def test_a_device_that_comes_back_under_another_number(tmp_path: Path, on_ext4: Start, place: Place) -> None:
    """A file system that was detached and attached again is not what is locked: it is waited for, and a restart takes
    it up as it is."""
    root, image = tmp_path / "root", tmp_path / "copy.image"
    with on_ext4(32 * MIB) as daemon:
        daemon.write_catalog(_catalog(place))
        daemon.start()
        daemon.wait_ready(A)
        os.sync()
        shutil.copyfile(tmp_path / "root.image", image)
        subprocess.run(["umount", "-l", root], check=True)
        with mounted(image, root):
            _check_gone(daemon)
            assert "another folder" in daemon.get("/readyz")[1]
            daemon.kill()
            daemon.start()
            daemon.wait_ready(A)
            check_public(daemon)
            daemon.kill()
