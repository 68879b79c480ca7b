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
from cached.node.status_files import StatusFiles

A, OTHER = ModelRef("m", "a"), ModelRef("m", "other")


class SlowDisk:
    """A disk that answers while `answering` is set."""

    def __init__(self) -> None:
        self.answering = threading.Event()
        self.asked = threading.Event()

    def check(self) -> None:
        self.asked.set()
        assert self.answering.wait(60)


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


def _twice(board: StatusFiles) -> None:
    board.reset(A, State.QUEUED, "", None)
    board.drop(A)


def _swept(board: StatusFiles) -> None:
    _twice(board)
    board.sweep()


@pytest.mark.parametrize("before", [_twice, _swept])
async def test_a_version_that_comes_back_while_the_disk_is_slow_has_its_file(
    public: PublicLayout, before: Callable[[StatusFiles], None]
) -> None:
    """What was dropped and is said anew before the disk took any of it has its file in the end."""
    disk = SlowDisk()
    board = StatusFiles(public, "node", disk.check)
    board.reset(OTHER, State.QUEUED, "", None)
    await asyncio.to_thread(disk.asked.wait, 60)
    before(board)
    board.reset(A, State.RESOLVING, "", None)
    disk.answering.set()
    await board.flushed()
    assert _state(public, A) == "resolving"
    board.close()


async def test_a_version_that_goes_while_the_disk_is_slow_leaves_no_file(public: PublicLayout) -> None:
    """What is dropped after missing files were to be restored is not among them."""
    disk = SlowDisk()
    board = StatusFiles(public, "node", disk.check)
    board.reset(OTHER, State.QUEUED, "", None)
    await asyncio.to_thread(disk.asked.wait, 60)
    board.reset(A, State.QUEUED, "", None)
    board.restore()
    board.drop(A)
    disk.answering.set()
    await board.flushed()
    assert _state(public, A) is None
    assert _state(public, OTHER) == "queued"
    board.close()


@pytest.mark.usefixtures("quick_switches")
async def test_the_last_word_is_written(public: PublicLayout) -> None:
    """Whatever the writer does at the moment a version gets news, its file says the newest of it in the end."""
    board = StatusFiles(public, "node", lambda: None)
    for number in range(20_000):
        board.reset(A, State.QUEUED if number % 2 else State.RESOLVING, str(number), None)
        if number % 10 == 0:
            await asyncio.sleep(0)
    await board.flushed()
    assert json.loads(public.model_status(A).read_bytes())["source"] == "19999"
    board.close()


async def test_what_a_reader_waits_for_is_written_at_once(
    public: PublicLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that appears, goes, succeeds, fails or begins anew is written without the pause between two rounds."""
    monkeypatch.setattr(status_files, "_PAUSE_S", 60.0)
    board = StatusFiles(public, "node", lambda: None)
    for _ in range(20):
        board.reset(A, State.QUEUED, "", None)
        await _until(lambda: _state(public, A) == "queued")
        board.reset(A, State.RESOLVING, "", None)  # its round waits
        board.set_error(A, State.FAILED, Transient("disk", "", ""))
        await _until(lambda: _state(public, A) == "failed")
        board.set_ready(A, Digest("a" * 64), 1, pinned=False, source="")
        await _until(lambda: _state(public, A) == "ready")
        board.reset(A, State.QUEUED, "", None)
        await _until(lambda: _state(public, A) == "queued")
        board.drop(A)
        await _until(lambda: _state(public, A) is None)
    board.close()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)
