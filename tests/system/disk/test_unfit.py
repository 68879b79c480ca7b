"""File systems that lack what the store needs, or do it badly: refused at the start, or told once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, bare_environment, daemon_command, daemon_process
from tests.support.faulty import mounted_faulty
from tests.support.mounts import bound, mounted_image, mounted_ramfs, mounted_tmpfs, remount
from tests.system.disk.conftest import MIB, OPTIONS, Place, check_public

A = ModelRef("m", "a")


def _refused(folder: Path) -> str:
    """Start a daemon that is to end by itself with 1; returns what it said."""
    result = subprocess.run(
        daemon_command(folder / "root", folder / "catalog.yaml"),
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("operation", "named"), [("link", "hard-link"), ("symlink", "symlinks"), ("flock", "flock"), ("rename", "rename")]
)
def test_what_is_missing_is_named(tmp_path: Path, operation: str, named: str) -> None:
    """Without hard links, symlinks, flock or rename a root is refused: exit 1, the mount, the ability, the remedy."""
    (tmp_path / "root").mkdir()
    with mounted_faulty(tmp_path / "root", operation):
        said = _refused(tmp_path)
    assert named in said
    assert f"mounted at {tmp_path}/root" in said
    assert "ext4 or xfs" in said


def test_fat_is_refused(tmp_path: Path) -> None:
    """A FAT file system has no hard links: refused, naming it."""
    with mounted_image(tmp_path / "root", "vfat", 8 * MIB):
        assert "hard-link" in _refused(tmp_path)


@pytest.mark.parametrize(
    "inside",
    [
        "private/blobs",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("private", "private/ingest", "public")),
    ],
)
def test_a_mount_inside_the_root_is_refused(tmp_path: Path, inside: str) -> None:
    """A root in two mounts is refused, naming both."""
    (tmp_path / "root" / inside).mkdir(parents=True)
    with mounted_tmpfs(tmp_path / "root" / inside):
        said = _refused(tmp_path)
    assert f"mounted at {tmp_path}/root/{inside}" in said
    assert "one local file system" in said


def test_a_bind_mount_inside_the_root_is_refused(tmp_path: Path) -> None:
    """Links do not cross mounts of the very same file system either."""
    (tmp_path / "elsewhere").mkdir()
    with bound(tmp_path / "elsewhere", tmp_path / "root" / "private" / "blobs"):
        assert "another mount" in _refused(tmp_path)


def test_a_root_that_is_a_bind_mount_is_fine(tmp_path: Path, place: Place) -> None:
    """The root itself may be any mount: that is what a hostPath volume is."""
    (tmp_path / "elsewhere").mkdir()
    with bound(tmp_path / "elsewhere", tmp_path / "root"), daemon_process(tmp_path, *OPTIONS) as daemon:
        _fetches(daemon, place)


def test_a_read_only_root_is_refused_at_the_start(tmp_path: Path) -> None:
    """A daemon cannot begin on a file system that it cannot write to, and says what to do."""
    with mounted_tmpfs(tmp_path / "root"):
        remount(tmp_path / "root", "ro")
        said = _refused(tmp_path)
    assert "Read-only" in said
    assert "mount it writable" in said


def test_without_o_direct_it_is_slower_and_says_so_once(tmp_path: Path, place: Place) -> None:
    """A file system without O_DIRECT and fallocate does; the log says once what that costs."""
    with mounted_ramfs(tmp_path / "root"), daemon_process(tmp_path, *OPTIONS) as daemon:
        _fetches(daemon, place)
        assert daemon.log().count("O_DIRECT") == 1


def test_a_network_file_system_is_warned_of(tmp_path: Path, place: Place) -> None:
    """A file system that may be another machine's is used where it can do everything, and warned of once."""
    (tmp_path / "root").mkdir()
    with mounted_faulty(tmp_path / "root"), daemon_process(tmp_path, *OPTIONS) as daemon:
        _fetches(daemon, place)
        assert daemon.log().count("a network file system (fuse") == 1


@contextmanager
def _xfs(folder: Path) -> Iterator[Path]:
    with mounted_image(folder, "xfs", 320 * MIB):
        yield folder


def test_xfs_does(tmp_path: Path, place: Place) -> None:
    """xfs has all that is needed, and nothing is remarked of it."""
    with _xfs(tmp_path / "root"), daemon_process(tmp_path, *OPTIONS) as daemon:
        _fetches(daemon, place)
        assert "O_DIRECT" not in daemon.log()
        assert "network" not in daemon.log()


def _fetches(daemon: DaemonProcess, place: Place) -> None:
    daemon.write_catalog({"m": {"versions": {"a": place("a", MIB, 5000)}}})
    daemon.start()
    daemon.pull("m@a")
    daemon.wait_ready(A)
    check_public(daemon)
    assert daemon.stop() == 0
