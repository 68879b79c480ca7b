"""Gates against a daemon that publishes and evicts without pause."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.layout import Layout, PublicLayout
from cached.contract.snapshot import lease
from cached.store.start import recovery
from tests.support.gates import FILES, REF, REPOSITORY, Gates
from tests.support.snapshots import link_model, make_public, make_snapshot


@pytest.fixture
def public(tmp_path: Path) -> PublicLayout:
    """An empty public folder."""
    return make_public(tmp_path / "public")


@pytest.fixture
def gates(public: PublicLayout, tmp_path: Path) -> Iterator[Gates]:
    """Starts gates over `public`."""
    gates = Gates(public, tmp_path)
    yield gates
    gates.end()


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


class Race:
    """A process that publishes and evicts, and two gates one after the other, as processes on one root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = {name: (root.parent / f"{name}.log").open("wb") for name in ("daemon", "record", "full")}

    def start(self, name: str) -> None:
        """`daemon`, or the gate that verifies in this mode."""
        asked = ["daemon", str(self._root)] if name == "daemon" else ["gate", str(self._root / "public"), name]
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", "tests.support.racing", *asked],
            cwd=REPOSITORY,
            stdout=self._logs[name],
            stderr=subprocess.STDOUT,
        )

    def kill(self, name: str) -> None:
        """As `kill -9` does; it must have been alive."""
        process = self._processes[name]
        assert process.poll() is None, self.said(name)
        process.kill()
        process.wait()

    def said(self, name: str) -> str:
        return Path(self._logs[name].name).read_text()

    def rounds(self) -> int:
        """How many gates were open so far."""
        return self.said("record").count("round") + self.said("full").count("round")

    def run(self, rounds: int, disturb: Callable[[], None] = lambda: None) -> None:
        """Let them race until so many gates were open; then all end, and what is left can be evicted."""
        for name in self._logs:
            self.start(name)
        deadline = time.monotonic() + 400 + rounds / 20
        while self.rounds() < rounds:
            assert time.monotonic() < deadline, f"only {self.rounds()} rounds"
            for name, process in self._processes.items():
                assert process.poll() is None, (name, self.said(name))
            time.sleep(0.05)
            disturb()
        for name in ("record", "full", "daemon"):
            self._processes[name].send_signal(signal.SIGTERM)
            assert self._processes[name].wait(120) == 0, (name, self.said(name))

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        for log in self._logs.values():
            log.close()


@pytest.fixture
def race(tmp_path: Path) -> Iterator[Race]:
    made = Race(tmp_path / "root")
    recovery.prepare(Layout(tmp_path / "root"))
    yield made
    made.end()


def test_either_the_gate_has_it_or_the_eviction(race: Race) -> None:
    """In a thousand races of the gate's own code with the daemon's own removal, either the gate holds a snapshot of
    which every byte stays there and right, or the eviction won and the gate waits for the next one."""
    race.run(1000)
    assert race.said("daemon").count("evicted") > 50
    assert race.said("daemon").count("in use") > 50


@pytest.mark.slow
def test_many_races_with_kills(race: Race) -> None:
    """The same thirty thousand times, while gates and daemon are killed at any point: the kernel drops a killed gate's
    lease, and what a killed daemon left half done is taken up by the next."""
    killed: Counter[str] = Counter()

    def disturb() -> None:
        name = random.choice(["daemon", "record", "full", *[""] * 5])
        if name:
            race.kill(name)
            race.start(name)
            killed[name] += 1

    race.run(30_000, disturb)
    assert min(killed[name] for name in ("daemon", "record", "full")) > 10
    assert race.said("daemon").count("evicted") > 500
