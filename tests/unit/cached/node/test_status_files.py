"""Status files end up saying what holds, however the news and the disk's pace fall together."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from cached.contract.status import State
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
