"""A root whose modes, owners or flags are not what the daemon needs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import (
    DaemonProcess,
    bare_environment,
    daemon_command,
    daemon_process,
    prefetched,
    publish_files,
)
from tests.support.others import NOBODY, let_others_in, needs_root
from tests.system.disk.conftest import MIB, OPTIONS, Place, Start, check_public, wait_error_told, wait_told

A = ModelRef("m", "a")

# Another user may not even be able to read this checkout: what is needed is loaded before.
_AS_NOBODY = f"""
import os, sys
import cached.daemon.main
from cached.cli import main
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(main())
"""


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


CLOSED: dict[str, Callable[[Path, Path], object]] = {
    "all": lambda root, _: subprocess.run(["chmod", "-R", "go=", root], check=True),
    "a file": lambda _, snapshot: (snapshot / "b" / "c.bin").chmod(0o400),
    "a folder": lambda _, snapshot: (snapshot / "b").chmod(0o700),
    "a snapshot": lambda _, snapshot: snapshot.chmod(0o700),
    "a record": lambda _, snapshot: (snapshot / ".holdfast" / "lease").chmod(0o400),
    "the records": lambda _, snapshot: (snapshot / ".holdfast").chmod(0o700),
    "a name's folder": lambda root, _: (root / "public" / "models" / "m").chmod(0o700),
}


def _list_closed(public: Path) -> list[Path]:
    """What some user may not read of what pods mount; status files are replaced with each change."""
    found = [Path(at, name) for at, folders, files in os.walk(public) for name in ("", *folders, *files)]
    needed = {True: 0o555, False: 0o444}
    closed = [path for path in found if not path.is_symlink() and ~_mode(path) & needed[path.is_dir()]]
    return [path for path in closed if path.is_dir() or not path.is_relative_to(public / "status")]


@pytest.mark.parametrize("close", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_what_was_closed_to_pods_is_opened_again(
    daemon: DaemonProcess, source: Path, close: Callable[[Path, Path], object], down: bool
) -> None:
    """Where the modes of what is published were changed by hand (`chmod -R`, a copy under another umask), every user
    may read it again, and the snapshot stays the same."""
    publish_files(source, {"a.bin": b"a" * 5000, "b/c.bin": b"c" * 5000})
    daemon.write_catalog({"m": prefetched(f"file://{source}", "a")})
    daemon.start()
    daemon.wait_ready(A)
    inode = os.stat(daemon.path(A)).st_ino
    if down:
        daemon.stop()
    close(daemon.layout.root, daemon.path(A).resolve())
    assert _list_closed(daemon.layout.public.path)
    if down:
        daemon.start()
    daemon.wait(lambda: not _list_closed(daemon.layout.public.path), "modes that let pods read")
    daemon.control.verify(A)
    assert daemon.state(A) == "ready"
    assert os.stat(daemon.path(A)).st_ino == inode
    assert not list(daemon.layout.quarantine.iterdir())


def test_a_check_opens_what_was_closed(daemon: DaemonProcess, source: Path) -> None:
    """A look that a gate or a person asks for opens what is closed."""
    publish_files(source, {"b/c.bin": b"c" * 5000})
    daemon.write_catalog({"m": prefetched(f"file://{source}", "a")})
    daemon.start()
    daemon.wait_ready(A)
    (daemon.path(A) / "b").chmod(0o700)
    result = daemon.control.verify(A)
    assert not _list_closed(daemon.layout.public.path), result


@needs_root
@pytest.mark.parametrize("theirs", ["", "private", "public/status"])
def test_a_root_of_another_user_is_refused(tmp_path: Path, theirs: str) -> None:
    """A daemon without the right to write where it must ends with 1, naming the folder and what to do."""
    root = tmp_path / "root"
    (root / theirs).mkdir(parents=True)
    if theirs:
        for folder in [root, *root.rglob("*")]:
            os.chown(folder, NOBODY, NOBODY)
        os.chown(root / theirs, 0, 0)
        (root / theirs).chmod(0o700)
    let_others_in(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, *daemon_command(root, tmp_path / "catalog.yaml")[3:]],
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert str(root / theirs) in result.stderr
    assert "writable folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_modes_are_mended_at_the_start(tmp_path: Path, place: Place) -> None:
    """private/ is for its owner, public/ for all, whatever a person made of them."""
    with daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog({})
        daemon.start()
        assert daemon.stop() == 0
        layout = daemon.layout
        for folder in (layout.private, layout.blobs):
            folder.chmod(0o777)
        for folder in (layout.public.path, layout.public.models):
            folder.chmod(0o700)
        daemon.start()
        assert {_mode(folder) for folder in (layout.private, layout.blobs)} == {0o700}
        assert {_mode(folder) for folder in (layout.public.path, layout.public.models)} == {0o755}


def _immutable(path: Path, flag: str) -> None:
    result = subprocess.run(["chattr", flag, path], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no immutable files here: {result.stderr.strip()}")


def test_an_immutable_blob_keeps_no_version_and_no_daemon(on_ext4: Start, place: Place) -> None:
    """A version with a file that may not be deleted is evicted all the same; what cannot be deleted is said, stops
    neither the daemon nor its next start, and goes when it may."""
    with on_ext4(32 * MIB) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", MIB, 5000)}}})
        daemon.start()
        daemon.pull("m@a")
        daemon.wait_ready(A)
        blob = max(daemon.layout.blobs.glob("*/*"), key=lambda path: path.stat().st_size)
        _immutable(blob, "+i")
        try:
            assert [item.ref for item in daemon.control.gc(dry_run=False).versions] == [A]
            assert not daemon.path(A).exists()
            assert daemon.state(A) is None
            assert "cannot delete" in daemon.log()
            assert daemon.stop() == 0
            daemon.start()
            assert "cannot delete" in daemon.log()
        finally:
            subprocess.run(["chattr", "-i", blob], check=True)
        daemon.control.gc(dry_run=False)
        assert not list(daemon.layout.trash.iterdir())
        assert not list(daemon.layout.blobs.glob("*/*"))
        assert daemon.document()["disk"]["used"] == 0


def test_an_immutable_folder_is_told_and_waited_for(on_ext4: Start, place: Place) -> None:
    """Where a folder of the store takes no new files, the version says so with a remedy, and arrives when it does."""
    with on_ext4(32 * MIB) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", MIB)}}})
        daemon.start()
        _immutable(daemon.layout.public.snapshots, "+i")
        try:
            daemon.pull("m@a")
            assert "lsattr" in wait_error_told(daemon, A, "not_writable")["remedy"]
            assert daemon.get("/healthz")[0] == 200
        finally:
            subprocess.run(["chattr", "-i", daemon.layout.public.snapshots], check=True)
        wait_told(daemon, A, "ready")
        check_public(daemon)
