"""Weights come into the page cache before a program asks for a byte of them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server import load_file
from server.weights.host import memory, readahead
from server.weights.host.page_cache import AHEAD, read_ahead
from server.weights.host.readahead import ReadAhead
from tests.support.checkpoints import random_raw, write
from tests.support.cold import cached, drop
from tests.support.folders import write_index
from tests.support.serving import eventually

# More than a kernel reads ahead at once: 8 MiB where a device takes 4 MiB a request.
SHAPE = (24, 1 << 20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's file of 24 MiB."""
    return write(tmp_path_factory.mktemp("model") / "model.safetensors", {"w": random_raw("U8", SHAPE, 1)})


def test_all_that_is_asked_for_is_read(weights: Path) -> None:
    """However much is asked for at once, the kernel reads all of it."""
    drop(weights)
    with weights.open("rb") as file:
        read_ahead(file.fileno(), 0, weights.stat().st_size)
    eventually(lambda: cached(weights) > 0.99, "the whole file in the page cache")


def test_a_load_on_the_cpu_reads_ahead(weights: Path) -> None:
    """Tensors on the CPU, of which no process has touched a byte yet, are on their way from the disk."""
    drop(weights)
    tensors = load_file(weights)
    eventually(lambda: cached(weights) > 0.99, "the whole file in the page cache")
    assert tensors["w"].shape == SHAPE


def test_a_models_files_come_one_after_the_other(weights: Path) -> None:
    """The weights of a folder are read ahead; one without weights, or that is gone, is no failure."""
    drop(weights)
    ReadAhead([weights.parent])
    eventually(lambda: cached(weights) > 0.99, "the whole file in the page cache")
    ReadAhead([weights.parent / "gone"])
    eventually(lambda: "holdfast-ahead" not in {thread.name for thread in threading.enumerate()}, "an end")


def test_only_files_that_a_load_reads_are_read_ahead(weights: Path, tmp_path: Path) -> None:
    """Reading ahead takes the files of the index, and leaves those beside them on the disk."""
    named, left_over = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    shutil.copyfile(weights, named)
    shutil.copyfile(weights, left_over)
    write_index(tmp_path / "model.safetensors.index.json", {"w": "./a.safetensors"})
    drop(named)
    drop(left_over)
    ReadAhead([tmp_path])
    eventually(lambda: cached(named) > 0.99, "the whole file in the page cache")
    eventually(lambda: "holdfast-ahead" not in {thread.name for thread in threading.enumerate()}, "an end")
    assert cached(left_over) == 0


def test_a_folder_without_weights_keeps_no_other_waiting(weights: Path, tmp_path: Path) -> None:
    """An adapter, or a folder that is gone, is passed over: what comes after it is read ahead all the same."""
    drop(weights)
    ReadAhead([tmp_path, tmp_path / "gone", weights.parent])
    eventually(lambda: "holdfast-ahead" not in {thread.name for thread in threading.enumerate()}, "an end")
    assert cached(weights) > 0


def test_what_memory_does_not_hold_stays_on_the_disk(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where half of the free memory is less than the weights, nothing of them is read ahead."""
    drop(weights)
    monkeypatch.setattr(memory, "free_bytes", lambda: weights.stat().st_size)
    ReadAhead([weights.parent])
    eventually(lambda: "holdfast-ahead" not in {thread.name for thread in threading.enumerate()}, "an end")
    assert cached(weights) == 0


def test_a_folder_that_is_being_loaded_is_left(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its load begins, nothing more of a folder is read ahead: the load goes past the cache."""
    drop(weights)
    asked: list[int] = []
    began, left = threading.Event(), threading.Event()

    def slowly(descriptor: int, begin: int, end: int, more: Callable[[], bool]) -> None:
        def go_on() -> bool:
            asked.append(len(asked))
            began.set()
            left.wait(60)
            return more()

        read_ahead(descriptor, begin, end, go_on)

    monkeypatch.setattr(readahead, "read_ahead", slowly)
    ahead = ReadAhead([weights.parent])
    assert began.wait(60)
    ahead.leave(weights.parent)
    left.set()
    eventually(lambda: "holdfast-ahead" not in {thread.name for thread in threading.enumerate()}, "an end")
    time.sleep(0.1)  # for what the kernel might have been asked for after all
    assert asked == [0] and cached(weights) * weights.stat().st_size <= AHEAD
