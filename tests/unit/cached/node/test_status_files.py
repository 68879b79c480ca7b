"""Status files end up saying what holds, however the news and the disk's pace fall together."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Transient
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.node import status_files
from cached.node.status_files import FetchProgress, StatusFiles

A, OTHER = ModelRef("m", "a"), ModelRef("m", "other")


class SlowDisk:
    """A disk that answers while `answering` is set; `at_each` is called before each step."""

    def __init__(self) -> None:
        self.answering = threading.Event()
        self.asked = threading.Event()
        self.at_each: Callable[[], None] = lambda: None

    def check(self) -> None:
        self.asked.set()
        assert self.answering.wait(60)
        self.at_each()


@pytest.fixture
def public(tmp_path: Path) -> PublicLayout:
    layout = PublicLayout(tmp_path)
    layout.status.mkdir(parents=True)
    return layout


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _state(public: PublicLayout, ref: ModelRef) -> str | None:
    try:
        return str(json.loads(public.model_status(ref).read_bytes())["state"])
    except FileNotFoundError:
        return None


def _twice(status_files: StatusFiles) -> None:
    status_files.reset(A, State.QUEUED, "", None)
    status_files.drop(A)


def _swept(status_files: StatusFiles) -> None:
    _twice(status_files)
    status_files.sweep()


@pytest.mark.parametrize("before", [_twice, _swept])
async def test_a_version_that_comes_back_while_the_disk_is_slow_has_its_file(
    public: PublicLayout, before: Callable[[StatusFiles], None]
) -> None:
    """What was dropped and is said anew before the disk took any of it has its file in the end."""
    disk = SlowDisk()
    status_files = StatusFiles(public, "node", disk.check)
    status_files.reset(OTHER, State.QUEUED, "", None)
    await asyncio.to_thread(disk.asked.wait, 60)
    before(status_files)
    status_files.reset(A, State.RESOLVING, "", None)
    disk.answering.set()
    await status_files.flushed()
    assert _state(public, A) == "resolving"
    status_files.close()


async def test_a_version_that_goes_while_the_disk_is_slow_leaves_no_file(public: PublicLayout) -> None:
    """What is dropped after missing files were to be restored is not among them."""
    disk = SlowDisk()
    status_files = StatusFiles(public, "node", disk.check)
    status_files.reset(OTHER, State.QUEUED, "", None)
    await asyncio.to_thread(disk.asked.wait, 60)
    status_files.reset(A, State.QUEUED, "", None)
    status_files.restore()
    status_files.drop(A)
    disk.answering.set()
    await status_files.flushed()
    assert _state(public, A) is None
    assert _state(public, OTHER) == "queued"
    status_files.close()


async def test_empty_folders_go(public: PublicLayout) -> None:
    """What a crash leaves between the deletion of a model's last file and that of its folder is swept."""
    status_files = StatusFiles(public, "node", lambda: None)
    status_files.reset(A, State.QUEUED, "", None)
    emptied = public.model_status(ModelRef("acme/emptied", "v1")).parent
    emptied.mkdir()
    status_files.sweep()
    await status_files.flushed()
    assert not emptied.exists()
    assert _state(public, A) == "queued"
    status_files.close()


@pytest.mark.usefixtures("quick_switches")
async def test_the_last_word_is_written(public: PublicLayout) -> None:
    """Whatever the writer does at the moment a version gets news, its file says the newest of it in the end."""
    status_files = StatusFiles(public, "node", lambda: None)
    for number in range(20_000):
        status_files.reset(A, State.QUEUED if number % 2 else State.RESOLVING, str(number), None)
        if number % 10 == 0:
            await asyncio.sleep(0)
    await status_files.flushed()
    assert json.loads(public.model_status(A).read_bytes())["source"] == "19999"
    status_files.close()


async def test_what_a_reader_waits_for_is_written_at_once(
    public: PublicLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that appears, goes, succeeds, fails or begins anew is written without the pause between two rounds."""
    monkeypatch.setattr(status_files, "_PAUSE_S", 60.0)
    files = StatusFiles(public, "node", lambda: None)
    for _ in range(20):
        files.reset(A, State.QUEUED, "", None)
        await _until(lambda: _state(public, A) == "queued")
        files.reset(A, State.RESOLVING, "", None)  # its round waits
        files.set_error(A, State.FAILED, Transient("disk", "", ""))
        await _until(lambda: _state(public, A) == "failed")
        files.set_ready(A, Digest("a" * 64), 1, pinned=False, source="")
        await _until(lambda: _state(public, A) == "ready")
        files.reset(A, State.QUEUED, "", None)
        await _until(lambda: _state(public, A) == "queued")
        files.drop(A)
        await _until(lambda: _state(public, A) is None)
    files.close()


async def test_files_change_in_the_order_of_the_changes(public: PublicLayout) -> None:
    """Who sees a version's file sees the earlier changes of others in theirs, also where the disk was slow and these
    were written together."""
    refs = [ModelRef("m", f"v{number}") for number in range(8)]
    disk = SlowDisk()
    files = StatusFiles(public, "node", disk.check)
    disk.answering.set()
    files.reset(A, State.QUEUED, "", None)
    for ref in refs:
        files.reset(ref, State.QUEUED, "", None)
    await files.flushed()
    disk.answering.clear()
    disk.asked.clear()
    files.reset(OTHER, State.QUEUED, "", None)
    await asyncio.to_thread(disk.asked.wait, 60)
    seen: list[int] = []
    disk.at_each = lambda: seen.append(sum(_state(public, ref) is not None for ref in refs) if _is_ready(public) else 0)
    files.set_progress(A, State.FETCHING, FetchProgress(1, 0))
    for ref in refs:
        files.drop(ref)
    files.set_ready(A, Digest("a" * 64), 1, pinned=False, source="")
    disk.answering.set()
    await files.flushed()
    files.write_heartbeat()  # one more step after the last change
    await files.flushed()
    assert _is_ready(public)
    assert set(seen) == {0}
    files.close()


def _is_ready(public: PublicLayout) -> bool:
    return _state(public, A) == "ready"


async def test_the_last_errors_are_remembered(public: PublicLayout) -> None:
    """An error counts when it appears, not while it stays; the newest comes first; each version and code is there once,
    and their number is bounded."""
    files = StatusFiles(public, "node", lambda: None)
    files.reset(A, State.QUEUED, "", None)
    away, progress = Transient("disk", "away", ""), FetchProgress(2, 1)
    for trouble in (away, away, None, Transient("http_503", "busy", ""), away):
        files.set_progress(A, State.FETCHING, progress, trouble)
    found = [(each.error.code, each.count) for each in files.recent_errors]
    assert found == [("disk", 2), ("http_503", 1)]
    files.drop(A)
    assert len(files.recent_errors) == 2
    for number in range(100):
        files.reset(OTHER, State.QUEUED, "", None)
        files.set_error(OTHER, State.FAILED, Transient(f"code_{number}", "", ""))
    assert [each.error.code for each in files.recent_errors] == [f"code_{number}" for number in range(99, 67, -1)]
    files.close()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not holds():
            await asyncio.sleep(0.001)
