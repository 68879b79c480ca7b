"""Thousands of small files, and hundreds of versions: each costs the same, and no other waits for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import REPOSITORY, DaemonProcess, daemon_process, model, prefetched, write_files

_FILES = 10_000
_VERSIONS = 400
_LONGEST_S = 0.3  # of the processor, which is slower while others use its caches
_REF = ModelRef("tiny", "v1")

pytestmark = [pytest.mark.long, pytest.mark.in_memory]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon whose event loop is watched."""
    path = os.pathsep.join((str(REPOSITORY / "tests" / "support" / "loop_watch"), str(REPOSITORY)))
    environment = {"PYTHONPATH": path, "LOOP_WATCH": str(tmp_path / "longest")}
    with daemon_process(tmp_path, "--scrub-rate", "0", environment=environment) as process:
        yield process


def _longest(folder: Path) -> tuple[float, str]:
    """The processor time of the loop's longest step, in seconds, and what it was."""
    seconds, _, callback = (folder / "longest").read_text().partition(" ")
    return float(seconds), callback


def test_ten_thousand_files_keep_nobody_waiting(watched: DaemonProcess, tmp_path: Path, source: Path) -> None:
    """While a version of 10,000 files is fetched, and called off and begun again, no step of the event loop takes the
    processor for more than 300 ms; in the end every file is right."""
    files = {f"part-{number:05d}.bin": b"%d" % number for number in range(_FILES)}
    write_files(source, files)
    watched.write_catalog({"tiny": prefetched(f"file://{source}")})
    watched.start()
    watched.wait(lambda: watched.metric("holdfast_store_bytes", state="committed") > 1000, "the first blobs")
    watched.write_catalog({"other": model("file:///nowhere")})  # called off in the middle
    watched.wait(lambda: watched.document()["disk"]["reserved"] == 0, "nothing reserved")
    watched.write_catalog({"tiny": prefetched(f"file://{source}")})
    watched.wait_ready(_REF)
    assert watched.files(_REF) == files
    seconds, callback = _longest(tmp_path)
    assert seconds < _LONGEST_S, callback


def test_hundreds_of_versions_keep_nobody_waiting(watched: DaemonProcess, tmp_path: Path, source: Path) -> None:
    """While hundreds of versions are wanted at once, and then wanted no more, no step of the event loop takes the
    processor for more than 300 ms; in the end each is there."""
    versions = [f"v{number}" for number in range(_VERSIONS)]
    write_files(source, {f"{version}/model.bin": version.encode() for version in versions})
    watched.write_catalog({"many": prefetched(f"file://{source}/{{version}}", *versions)})
    watched.start()
    for version in versions:
        watched.wait_ready(ModelRef("many", version))
    assert watched.files(ModelRef("many", "v7")) == {"model.bin": b"v7"}
    watched.write_catalog({"other": model("file:///nowhere")})
    watched.wait(lambda: len(watched.control.gc(dry_run=True).versions) == _VERSIONS, "versions that nothing wants")
    seconds, callback = _longest(tmp_path)
    assert seconds < _LONGEST_S, callback
