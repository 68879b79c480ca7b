"""Power cuts on a real file system: what the block device holds when the daemon dies is all there is afterwards.

The root is an ext4 image whose journal is committed by nothing but syncs. At the cut the image is copied as it stands
(the page cache of the file system is not in it), the copy is mounted, which replays its journal, and the next daemon
runs on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crashing.points import Kill, Plan, Point
from tests.support.crashing.stage import Scenario, bare_stage, copy_root, play, survive
from tests.support.crashing.trying import BY_NAME, Trials
from tests.support.mounts import mounted_file

_OPTIONS = "commit=300"
_LAZY = "commit=300,data=writeback,nobarrier"
_BYTES = 48 * 1024 * 1024
_SYNCS = ("fsync", "fdatasync")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty ext4."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here")
    folder = tmp_path_factory.mktemp("ext4")
    with (folder / "image").open("wb") as file:
        file.truncate(_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", folder / "image"], check=True)
    with mounted_file(folder / "image", folder / "mount", _OPTIONS) as mount:
        (mount / "lost+found").rmdir()
    yield folder / "image"


@pytest.mark.parametrize("options", [_OPTIONS, _LAZY])
def test_unsynced_writes_are_lost_here(image: Path, tmp_path: Path, options: str) -> None:
    """In this setup a file that was written and not synced does not outlive the power cut, and one that was does."""
    work = _copied(image, tmp_path / "image")
    with mounted_file(work, tmp_path / "mount", options) as mount:
        (mount / "lost").write_bytes(b"written")
        cut = _copied(work, tmp_path / "cut")
        (mount / "kept").write_bytes(b"written")
        with (mount / "kept").open("rb") as file:
            os.fsync(file.fileno())
        (mount / "lost too").write_bytes(b"written")
        later = _copied(work, tmp_path / "later")
    with mounted_file(cut, tmp_path / "mount", options) as mount:
        assert os.listdir(mount) == []
    with mounted_file(later, tmp_path / "mount", options) as mount:
        assert (mount / "kept").read_bytes() == b"written"
        assert not (mount / "lost too").exists()


@pytest.mark.parametrize("name", ["first", "evicted"])
def test_recovery_from_a_power_cut(trials: Trials, image: Path, name: str) -> None:
    """After a power cut at syncs all along a fetch or an eviction, what comes back is whole, and the work is done."""
    scenario = BY_NAME[name]
    syncs = _syncs(trials, scenario)
    for point in syncs[:: max(1, len(syncs) // 8)]:
        _cut(trials, image, scenario, point, _OPTIONS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("options", [_OPTIONS, _LAZY])
@pytest.mark.parametrize("name", BY_NAME)
def test_recovery_from_every_power_cut(trials: Trials, image: Path, name: str, options: str) -> None:
    """The same at every sync of every scenario, also where the file system writes names before bytes."""
    for point in _syncs(trials, BY_NAME[name]):
        _cut(trials, image, BY_NAME[name], point, options)


def _syncs(trials: Trials, scenario: Scenario) -> list[Point]:
    return [point for point in trials.points(scenario) if point.name.split()[0] in _SYNCS]


def _cut(trials: Trials, image: Path, scenario: Scenario, point: Point, options: str) -> None:
    folder, template = trials.fresh(), trials.template(scenario)
    work = _copied(image, folder / "image")
    with bare_stage(scenario, folder / "stage", trials.parent) as on:
        root = on.daemon.layout.root
        with mounted_file(work, root, options):
            if template is not None:
                copy_root(template, root)
            if scenario.spoil is not None:
                scenario.spoil(on)
            os.sync()
            play(scenario, on, Plan(root, folder / "points", Kill(point, "after")))
            cut = _copied(work, folder / "cut")
        with mounted_file(cut, root, options):
            try:
                survive(scenario, on)
            except AssertionError as broken:
                raise AssertionError(f"{scenario.name}, power cut after {point}, {options}: {broken}") from broken
            finally:
                on.daemon.end()
    shutil.rmtree(folder)


def _copied(image: Path, target: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", image, target], check=True)
    return target
