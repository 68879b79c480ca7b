"""Gates against a daemon that publishes and evicts without pause."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract import lease
from cached.contract.layout import PublicLayout
from tests.support.gates import FILES, REF, Gates
from tests.support.snapshots import link_model, make_snapshot


@contextmanager
def churn(public: PublicLayout, trash: Path) -> Iterator[None]:
    """Publish and evict `REF` in turns, as the daemon does, until the block ends; what is leased stays."""
    over = threading.Event()
    trash.mkdir()

    def turn(number: int) -> None:
        digest = make_snapshot(public, FILES)
        link_model(public, REF, digest)
        alone = None
        while alone is None and not over.is_set():
            alone = lease.take_exclusive(public.snapshot(digest).lease)
            time.sleep(0.001)
        if alone is None:
            return
        with alone:
            public.model_link(REF).unlink()
            moved = public.snapshot(digest).path.rename(trash / str(number))
        shutil.rmtree(moved)

    def run() -> None:
        number = 0
        while not over.is_set():
            turn(number := number + 1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("mode", ["record", "full"])
def test_a_gate_opens_on_a_whole_version_or_waits(
    public: PublicLayout, gates: Gates, tmp_path: Path, mode: str
) -> None:
    """Whenever a version goes away between symlink and lease the gate starts over: it never fails, and what it holds
    when it opens is there."""
    with churn(public, tmp_path / "trash"):
        for _ in range(6):
            gate = gates.start("--verify", mode)
            gate.wait_said("open after")
            snapshot = public.model_link(REF).resolve(strict=True)
            assert (snapshot / "model.safetensors").read_bytes() == FILES["model.safetensors"]
            gate.process.terminate()
            assert gate.wait() == 0
