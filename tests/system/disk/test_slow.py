"""A slow disk: what a command's answer says is in the status files by then."""

from __future__ import annotations

import json
from pathlib import Path

from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process
from tests.support.faulty import FaultyFolder, mounted_faulty
from tests.system.disk.conftest import MIB, OPTIONS, Place

A = ModelRef("m", "a")


def _is_here(daemon: DaemonProcess, id_: str) -> bool:
    return daemon.control.get_pull(id_).digest is not None


def _state(disk: FaultyFolder) -> str | None:
    """The state in the status file on the disk now: a reader of the mount would wait for what the disk does."""
    path = Layout(disk.backing).public.model_status(A)
    return str(json.loads(path.read_bytes())["state"]) if path.exists() else None


def test_an_answer_comes_after_the_status_files_tell_it(tmp_path: Path, place: Place) -> None:
    """Who runs `holdfast pull`, `verify` or `gc` and reads a status file next finds in it what the command did, however
    slowly the disk takes names."""
    with mounted_faulty(tmp_path / "root") as disk, daemon_process(tmp_path, *OPTIONS) as daemon:
        daemon.write_catalog({"m": {"versions": {"a": place("a", MIB)}}})
        daemon.start()
        disk.slow.update(rename=0.1, unlink=0.1)
        pull = daemon.control.pull(A, None, refresh=False)
        assert _state(disk) is not None
        daemon.wait(lambda: _is_here(daemon, pull.id), "the end of the pull")
        assert _state(disk) == "ready"
        daemon.control.verify(A)
        assert _state(disk) == "ready"
        assert [each.ref for each in daemon.control.gc(dry_run=False).versions] == [A]
        assert _state(disk) is None
