"""A file system that runs out of inodes while it has bytes."""

from __future__ import annotations

import time
from pathlib import Path

from cached.contract.reference import ModelRef
from tests.support.daemon import daemon_process
from tests.support.mounts import mounted_tmpfs
from tests.system.disk.conftest import MIB, Place, Start, check_public, error_of, wait_error_told, wait_told

A, B = ModelRef("m", "a"), ModelRef("m", "b")
SAMPLE_AGE_S = 4  # the daemon plans with what the disk told up to this long ago


def _use_up(folder: Path, leave: int) -> Path:
    """Make empty files until so many inodes are left; gives their folder."""
    litter = folder / "litter"
    litter.mkdir()
    made: list[Path] = []
    try:
        while True:
            path = litter / str(len(made))
            path.touch()
            made.append(path)
    except OSError:
        for path in made[len(made) - leave :]:
            path.unlink()
    return litter


def test_a_lack_of_inodes_is_called_one(on_ext4: Start, place: Place) -> None:
    """Before anything is fetched, a version of more files than there are inodes is told so, in inodes; it goes on by
    itself when there are."""
    with on_ext4(32 * MIB, make=("-m", "0", "-N", "512")) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", *[1000 + n for n in range(60)])}}})
        daemon.start()
        litter = _use_up(daemon.layout.root, 30)
        time.sleep(SAMPLE_AGE_S)
        daemon.pull("m@a")
        error = wait_error_told(daemon, A, "no_space")
        assert "inodes" in error["message"]
        assert "full" not in error["message"]
        assert "mkfs" in error["remedy"]
        assert not any(daemon.layout.blobs.iterdir())
        for path in litter.iterdir():
            path.unlink()
        wait_told(daemon, A, "ready")
        check_public(daemon)


def test_the_disks_own_lack_of_inodes_is_called_one(on_ext4: Start) -> None:
    """Where not one inode is left, the daemon says that of its own files too, stays up, and goes on."""
    with on_ext4(16 * MIB, make=("-m", "0", "-N", "64")) as daemon:
        daemon.write_catalog({})
        daemon.start()
        litter = _use_up(daemon.layout.root, 0)
        daemon.wait(lambda: daemon.get("/readyz")[0] == 503, "503 from /readyz")
        assert "inodes" in daemon.document()["disk"]["error"]["message"]
        assert daemon.get("/healthz")[0] == 200
        for path in litter.iterdir():
            path.unlink()
        daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "200 from /readyz")


def test_inodes_are_made_by_evicting(on_ext4: Start, place: Place) -> None:
    """What nothing wants goes for a version that needs its inodes, not its bytes."""
    with on_ext4(32 * MIB, make=("-m", "0", "-N", "320")) as daemon:
        many = [1000 + n for n in range(60)]
        daemon.write_catalog({"m": {"versions": {"a": place("a", *many), "b": place("b", *many)}}})
        daemon.start()
        for name in "ab":
            daemon.pull(f"m@{name}")
            wait_told(daemon, ModelRef("m", name), "ready")
        assert not daemon.path(A).exists()
        check_public(daemon)


def test_more_files_than_the_file_system_can_have(tmp_path: Path, place: Place) -> None:
    """A version of more files than the file system has inodes in all fails for good, with both numbers."""
    with mounted_tmpfs(tmp_path / "root", "16m", inodes=64), daemon_process(tmp_path) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", *[100 + n for n in range(70)])}}})
        daemon.start()
        daemon.pull("m@a")
        wait_told(daemon, A, "failed")
        assert error_of(daemon, A)["code"] == "too_large"
        assert "inodes" in error_of(daemon, A)["message"]
