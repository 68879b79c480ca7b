"""Signals at any moment, and logs that nothing reads."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.contract.layout import TEMPORARY_PREFIX
from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from tests.support.daemon import DaemonProcess, model, prefetched, publish_files
from tests.support.gates import REPOSITORY, Gates, wait_for
from tests.support.injectors import Injectors
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Stall
from tests.support.processes import wait_until_kept
from tests.support.snapshots import link_model, make_public, make_snapshot
from tests.support.stores import fill_root

GRACE_S = 60.0  # twice the kubelet's: the machine is busy
VERSIONS = [f"v{number}" for number in range(6)]
REFS = [ModelRef("m", version) for version in VERSIONS]
ENDINGS = (signal.SIGTERM, signal.SIGINT)


# --- the daemon, in all it does --------------------------------------------------------------------------------------


def test_a_signal_ends_a_busy_daemon_at_any_moment(daemon: DaemonProcess, source: Path) -> None:
    """Whatever the daemon is doing, a signal ends it with 0 within its grace, and the next start goes on."""
    _signal_again_and_again(daemon, source, times=4)


@pytest.mark.slow
def test_a_signal_ends_a_busy_daemon_a_hundred_times(daemon: DaemonProcess, source: Path) -> None:
    """Whatever the daemon is doing, a signal ends it with 0 within its grace: a hundred random moments."""
    _signal_again_and_again(daemon, source, times=100)


def _signal_again_and_again(daemon: DaemonProcess, source: Path, times: int) -> None:
    """Start it, let it fetch, publish, evict and scrub, and end it at a random moment: of its start, too."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    manifests = {}
    for version in VERSIONS:
        files = {f"{name}.bin": chance.randbytes(700_000) for name in "abc"}
        manifests[version] = publish_files(source / version, files)
    quota = 5 * 2_100_000  # one more version than fits is wanted, so that every life evicts too
    listed = {version: {"source": f"file://{source}/{version}"} for version in VERSIONS}
    for time_ in range(times):
        chosen = chance.sample(VERSIONS, 4)
        daemon.write_catalog({"m": {"versions": listed, "prefetch": {"versions": chosen}}})
        daemon.launch(
            "--max-bandwidth", "8MiB/s", "--quota", str(quota), "--scrub-rate", "20MiB/s", "--scrub-period", "1s"
        )
        wait_until_kept(daemon.pid)
        _disturb(daemon, chance, time.monotonic() + chance.random() * 2)
        os.kill(daemon.pid, chance.choice(ENDINGS))
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.05)
            os.kill(daemon.pid, chance.choice(ENDINGS))
        assert daemon.end_within(GRACE_S) == 0, f"seed {seed}, life {time_}: {daemon.log()[-3000:]}"
        assert not daemon.layout.socket.exists()
        assert "Traceback" not in daemon.log()
    daemon.start("--quota", "1GiB")
    for ref in REFS:
        daemon.pull(str(ref))
    daemon.wait_ready(*REFS)
    assert {version: daemon.digest(ModelRef("m", version)) for version in VERSIONS} == {
        version: manifest.digest for version, manifest in manifests.items()
    }
    left = [name for _, folders, files in os.walk(daemon.layout.root) for name in (*folders, *files)]
    assert not [name for name in left if name.startswith(TEMPORARY_PREFIX)]


def _disturb(daemon: DaemonProcess, chance: random.Random, until: float) -> None:
    """Pull and collect garbage, as soon as the daemon answers, until it is time."""
    while time.monotonic() < until:
        if daemon.layout.socket.exists():
            try:
                daemon.control.pull(chance.choice(REFS), None, refresh=False)
                if chance.random() < 0.2:
                    daemon.control.gc(dry_run=False)
            except HoldfastError:
                pass  # it is not listening yet: the socket is an earlier life's
        time.sleep(0.02)


@pytest.mark.parametrize("silence", ["manifest", "head", "body", "connect"])
def test_an_end_does_not_wait_for_a_silent_origin(
    daemon: DaemonProcess, origin: HostileOrigin, source: Path, silence: str
) -> None:
    """SIGTERM ends the daemon by itself while an origin answers nothing: to a connect, a listing, a range, half way."""
    files = {"a.bin": random.Random(1).randbytes(3_000_000)}
    manifest = publish_files(source, files)
    origin.put("/m/a.bin", files["a.bin"], etag='"1"')
    origin.put("/m/holdfast.json", manifest.canonical())
    stalls = {"manifest": ("/m/holdfast.json", Stall(None)), "head": ("/m/a.bin", Stall(None))}
    stalls["body"] = ("/m/a.bin", Stall(1_000_000))
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        if silence == "connect":
            uri = f"http://127.0.0.1:{deaf.getsockname()[1]}/m/"
        else:
            origin.script(stalls[silence][0], *[stalls[silence][1]] * 20)
            uri = origin.url("/m/")
        daemon.write_catalog({"m": prefetched(uri)})
        daemon.start()
        if silence in ("manifest", "connect"):
            daemon.wait_state(ModelRef("m", "v1"), "resolving")
        else:
            daemon.wait(lambda: any(seen.path == "/m/a.bin" for seen in origin.requests), "a request for the file")
        assert daemon.stop() == 0
    assert "leaving at once" not in daemon.log()


def test_a_start_on_a_full_root_is_ended_at_any_moment(daemon: DaemonProcess) -> None:
    """A signal while a full root is being read ends the daemon with 0, and nothing there is lost for it."""
    published = fill_root(daemon.layout, versions=40, files=20)
    chance = random.Random()
    daemon.write_catalog({})
    for _ in range(2):
        daemon.launch()
        wait_until_kept(daemon.pid)
        time.sleep(chance.random() * 1.2)
        os.kill(daemon.pid, chance.choice(ENDINGS))
        assert daemon.end_within(GRACE_S) == 0, daemon.log()
    daemon.start()
    assert {(m["model"], m["state"]) for m in daemon.document()["models"]} == {(ref.name, "ready") for ref in published}


def test_a_hangup_is_not_the_end(daemon: DaemonProcess, source: Path) -> None:
    """SIGHUP ends neither the daemon nor what it is doing."""
    publish_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"m": model(f"file://{source}")})
    daemon.launch()
    wait_until_kept(daemon.pid)
    time.sleep(0.05)
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(lambda: _answers(daemon), "an answer")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.pull("m@v1")
    daemon.wait_ready(ModelRef("m", "v1"))
    assert daemon.stop() == 0


# --- logs that nothing reads ------------------------------------------------------------------------------------------


def test_a_log_without_a_reader_stops_nothing(daemon: DaemonProcess, source: Path) -> None:
    """A daemon whose log's reader has died fetches what is wanted, and ends with 0."""
    reader, writer = os.pipe()
    _start_into(daemon, writer, lambda: None)
    os.close(reader)
    _fetch_and_end(daemon, source)


def test_a_log_whose_reader_is_stuck_stops_nothing(daemon: DaemonProcess, source: Path) -> None:
    """A daemon whose log is full, with a reader that reads nothing, fetches what is wanted, and ends with 0."""
    reader, writer = os.pipe()
    _start_into(daemon, writer, partial(_fill_pipe, writer))
    _fetch_and_end(daemon, source)
    os.close(reader)


def _start_into(daemon: DaemonProcess, writer: int, afterwards: Callable[[], None]) -> None:
    """Start it with a pipe for its log, and do something to the pipe before this process lets go of it."""
    daemon.write_catalog({})
    daemon.launch_into(writer)
    daemon.wait(lambda: _answers(daemon), "an answer")
    afterwards()
    os.close(writer)


def _fill_pipe(writer: int) -> None:
    """Leave no room in a pipe; the next writer waits, as its other holders would."""
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)


def _fetch_and_end(daemon: DaemonProcess, source: Path) -> None:
    publish_files(source, {"a.bin": b"a"})
    daemon.write_catalog_text("models: [")
    time.sleep(0.2)  # something to complain about
    daemon.write_catalog({"m": prefetched(f"file://{source}"), "n": prefetched("http://127.0.0.1:9/")})
    daemon.wait_ready(ModelRef("m", "v1"))
    daemon.wait(lambda: bool(daemon.error(ModelRef("n", "v1"))), "an error")
    assert _answers(daemon)
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.end_within(GRACE_S) == 0


def _answers(daemon: DaemonProcess) -> bool:
    try:
        daemon.control.status()
    except HoldfastError:
        return False
    return True


def test_a_gate_without_a_reader_opens(tmp_path: Path) -> None:
    """A gate whose log's reader has died, or reads nothing, waits, opens, holds, and ends with 0."""
    public = make_public(tmp_path / "public")
    for stuck in (False, True):
        ref = ModelRef("tiny", f"v{int(stuck)}")
        reader, writer = os.pipe()
        options = ("--root", str(public.path), "--model", ref.name, "--version", ref.version, "--listen", "127.0.0.1:0")
        command = [sys.executable, "-m", "sidecar", "gate", *options]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.STDOUT) as gate:
            assert os.read(reader, 1)
            if stuck:
                _fill_pipe(writer)
            else:
                os.close(reader)
            os.close(writer)
            digest = make_snapshot(public, {"a.bin": ref.version.encode()})
            link_model(public, ref, digest)
            wait_for(partial(lease.is_held, public.snapshot(digest).lease), "the gate's lease")
            assert gate.poll() is None
            gate.terminate()
            assert gate.wait(GRACE_S) == 0


# --- gate and injector -----------------------------------------------------------------------------------------------


def test_a_gate_that_waits_tells_its_signal(daemon: DaemonProcess, gates: Gates) -> None:
    """A signal at any moment before the gate is open ends it with 128 and its number; SIGHUP does not."""
    make_public(daemon.layout.public.path)
    chance = random.Random()
    for number in (*ENDINGS, *ENDINGS):
        gate = gates.start()
        wait_until_kept(gate.process.pid)
        os.kill(gate.process.pid, signal.SIGHUP)
        time.sleep(chance.random() * 0.3)
        assert gate.process.poll() is None
        assert gates.stop(gate, number) == 128 + number


def test_an_injector_ends_however_often_it_is_told(tmp_path: Path) -> None:
    """SIGHUP does not end an injector; two signals, the second one while it drains, end it with 0."""
    injectors = Injectors(tmp_path)
    try:
        injector = injectors.start("--drain", "60")
        injector.process.send_signal(signal.SIGHUP)
        assert injector.ask("/readyz")[0] == 200
        injector.process.send_signal(signal.SIGTERM)
        injector.wait_said("stopping")
        injector.process.send_signal(signal.SIGINT)
        assert injector.process.wait(GRACE_S) == 0
    finally:
        injectors.end()


def test_a_farewell_has_an_end() -> None:
    """A program whose farewell hangs is ended by a second signal, or by its patience, with 0."""
    program = (
        "import time; from cached.contract.program.process import SignalThread\n"
        "ending = SignalThread({patience}, lambda why: print(why, flush=True)); ending.start()\n"
        "ending.set_handler(lambda: print('asked', flush=True)); print('up', flush=True); time.sleep(60)"
    )
    for patience, second in ((0.2, False), (50, True)):
        with subprocess.Popen(
            [sys.executable, "-c", program.format(patience=patience)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "asked\n"
            if second:
                process.send_signal(signal.SIGTERM)
            assert process.wait(GRACE_S) == 0
            assert process.stdout.read() == ("told to end again\n" if second else "still busy after 0.2 s\n")
