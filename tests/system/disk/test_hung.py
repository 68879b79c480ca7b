"""A file system that does not answer: the listeners do, with the reason; others go on; and the daemon can be ended."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.bitrot import flip
from tests.support.daemon import (
    PATIENCE_S,
    REPOSITORY,
    DaemonProcess,
    connect_control,
    daemon_process,
    model,
    prefetched,
    publish_files,
)
from tests.support.faulty import FaultyFolder, mounted_faulty

V1, OTHER = ModelRef("m", "v1"), ModelRef("other", "v1")
BYTES = random.Random(61).randbytes(30_000_000)
SOON_S = 60.0  # a listener that is asked answers: the disk does not, for longer


pytestmark = pytest.mark.long


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[tuple[FaultyFolder, Path]]:
    """A file system that can be told to hang, and where it is."""
    place = tmp_path / "daemon" / "root"
    with mounted_faulty(place) as server:
        yield server, place


@contextmanager
def hanging(server: FaultyFolder) -> Iterator[None]:
    """Nothing that is asked within this block is answered before its end."""
    server.answers.clear()
    try:
        yield
    finally:
        server.answers.set()


def _says(daemon: DaemonProcess, path: str, text: str) -> bool:
    return text in daemon.request("GET", path, SOON_S)[1]


def _connected(daemon: DaemonProcess) -> http.client.HTTPConnection:
    """A connection to the control socket, made while its folder answers."""
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(PATIENCE_S)
    connect_control(connection.sock, daemon.layout)
    return connection


def _check_doors(daemon: DaemonProcess) -> None:
    assert daemon.request("GET", "/healthz", SOON_S)[0] == 200
    for path in ("/readyz", "/v1/status", "/metrics", "/"):
        daemon.request("GET", path, SOON_S)


def test_a_root_that_hangs_is_told_and_left(mount: tuple[FaultyFolder, Path], tmp_path: Path) -> None:
    """While the root's file system does not answer, in the middle of a fetch, every listener does: /readyz and the
    status say that the disk does not answer, commands are refused with it, and SIGTERM ends the daemon with 0. The next
    start goes on."""
    server, _ = mount
    publish_files(tmp_path / "source", {"a.bin": BYTES})
    with daemon_process(tmp_path / "daemon", "--max-bandwidth", "4MiB/s") as daemon:
        daemon.write_catalog({"m": prefetched(f"file://{tmp_path}/source")})
        daemon.start()
        daemon.wait(lambda: daemon.metric("holdfast_fetch_bytes_total") > 4_000_000, "bytes")
        bodies: dict[str, dict[str, str]] = {"pin": {"model": "m", "version": "v1"}, "gc": {}}
        asked = {path: _connected(daemon) for path in bodies}
        with hanging(server):
            for path, connection in asked.items():
                connection.request("POST", f"/v1/{path}", json.dumps(bodies[path]))
            _check_doors(daemon)
            daemon.wait(partial(_says, daemon, "/readyz", "has not answered for"), "the reason at /readyz")
            assert daemon.request("GET", "/readyz", SOON_S)[0] == 503
            error = json.loads(daemon.request("GET", "/v1/status", SOON_S)[1])["disk"]["error"]
            assert (error["code"], error["permanent"]) == ("disk", False)
            assert "has not answered for" in error["message"]
            for path, connection in asked.items():
                answer = connection.getresponse()
                assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "disk"), path
                connection.close()
            _check_doors(daemon)
            assert daemon.stop() == 0
        daemon.start()
        daemon.wait_ready(V1)
        assert daemon.files(V1) == {"a.bin": BYTES}


@contextmanager
def _hung_for_others(server: FaultyFolder, place: Path) -> Iterator[None]:
    """As `hanging`, with the one request that the server still takes spent: the kernel lets its asker not even be
    killed."""
    with hanging(server):
        spent = subprocess.Popen(["stat", str(place)], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        try:
            yield
        finally:
            server.answers.set()
            spent.wait(PATIENCE_S)


def test_a_command_on_a_root_that_hangs_keeps_its_timeout(mount: tuple[FaultyFolder, Path], tmp_path: Path) -> None:
    """A command whose root does not answer, where even the way to the control socket is blocked, ends with 1 after its
    `--timeout`, and says what does not answer; Ctrl-C ends it before."""
    server, place = mount
    with daemon_process(tmp_path / "daemon") as daemon:
        daemon.write_catalog({})
        daemon.start()
        root = daemon.layout.root
        commands = ["pin m@v1", "unpin m@v1", "gc --dry-run", "pull m@v1", "pull --no-wait m@v1"]
        with _hung_for_others(server, place):
            begun = [_command([*command.split(), "--timeout", "2"], root) for command in commands]
            endless = _command(["pull", "m@v1"], root)
            for command, process in zip(commands, begun, strict=True):
                said = process.communicate(timeout=PATIENCE_S)[1]
                assert (process.returncode, f"{root} has not answered for 2 s" in said) == (1, True), command
            endless.send_signal(signal.SIGINT)
            said = endless.communicate(timeout=PATIENCE_S)[1]
            assert endless.returncode == 1
            assert "before the daemon answered" in said


def _command(arguments: list[str], root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cached.cli", *arguments, "--root", str(root)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _wait_until_blocked(pid: int) -> None:
    """Wait until a thread of a process waits for an answer of FUSE, or for 20 s where the kernel does not tell."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if any("request_wait" in (thread / "wchan").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()):
            return
        time.sleep(0.05)


def test_an_open_gate_on_a_root_that_hangs_heeds_sigterm(mount: tuple[FaultyFolder, Path], tmp_path: Path) -> None:
    """SIGTERM ends a gate that is blocked by its root, so that a pod on such a node does not need its whole grace
    period to end; the exit code is that of the signal."""
    server, place = mount
    publish_files(tmp_path / "source", {"a.bin": b"a"})
    with daemon_process(tmp_path / "daemon") as daemon:
        daemon.write_catalog({"m": prefetched(f"file://{tmp_path}/source")})
        daemon.start()
        daemon.wait_ready(V1)
        asked = ["gate", "--model", "m", "--version", "v1", "--listen", "127.0.0.1:0"]
        gate = _command(asked, daemon.layout.public.path)
        assert gate.stderr is not None
        while "open after" not in gate.stderr.readline():
            pass
        with _hung_for_others(server, place):
            _wait_until_blocked(gate.pid)  # by a look at its lease
            gate.terminate()
            said = gate.communicate(timeout=PATIENCE_S)[1]
            assert (gate.returncode, "still busy" in said) == (128 + signal.SIGTERM, True)


def test_a_root_that_hung_for_a_while_goes_on(mount: tuple[FaultyFolder, Path], tmp_path: Path) -> None:
    """When the root's file system answers again the daemon is ready by itself, and what was under way arrives."""
    server, _ = mount
    publish_files(tmp_path / "source", {"a.bin": BYTES})
    with daemon_process(tmp_path / "daemon", "--max-bandwidth", "4MiB/s") as daemon:
        daemon.write_catalog({"m": prefetched(f"file://{tmp_path}/source")})
        daemon.start()
        daemon.wait(lambda: daemon.metric("holdfast_fetch_bytes_total") > 4_000_000, "bytes")
        with hanging(server):
            daemon.wait(partial(_says, daemon, "/readyz", "has not answered for"), "the reason at /readyz")
        daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "a ready daemon")
        daemon.wait_ready(V1)
        assert daemon.document()["disk"]["error"] is None
        assert daemon.files(V1) == {"a.bin": BYTES}


def test_a_start_on_a_root_that_hangs_can_be_ended(mount: tuple[FaultyFolder, Path], tmp_path: Path) -> None:
    """A daemon that is started on such a root waits for it, without listeners, and SIGTERM ends it with 0."""
    server, _ = mount
    with daemon_process(tmp_path / "daemon") as daemon:
        daemon.write_catalog({})
        daemon.start()
        assert daemon.stop() == 0
        log = daemon.log_file
        with log.open("ab") as into, hanging(server):
            daemon.launch_into(into)
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.end_within(3.0)
            assert daemon.stop() == 0


def test_a_source_that_hangs_stops_nobody_else(mount: tuple[FaultyFolder, Path], tmp_path: Path) -> None:
    """While a folder that is a source does not answer, versions from elsewhere arrive, and SIGTERM ends the daemon."""
    server, place = mount
    publish_files(place / "slow", {"a.bin": BYTES, "b.bin": BYTES[1:]})
    publish_files(tmp_path / "source", {"a.bin": b"other"})
    with daemon_process(tmp_path / "other", "--max-bandwidth", "4MiB/s") as daemon:
        daemon.write_catalog({"m": prefetched(f"file://{place}/slow"), "other": model(f"file://{tmp_path}/source")})
        daemon.start()
        daemon.wait(lambda: daemon.metric("holdfast_fetch_bytes_total") > 4_000_000, "bytes")
        with hanging(server):
            daemon.pull("other@v1")
            daemon.wait_ready(OTHER)
            daemon.write_catalog({"other": model(f"file://{tmp_path}/source")})
            _check_doors(daemon)
            assert daemon.stop() == 0


def test_the_event_loop_touches_no_file_of_the_root(tmp_path: Path) -> None:
    """Through fetches, failures, commands, deletions by hand, rot, evictions and an end, no file-system call to the
    root is made by the thread that answers at the listeners."""
    log, since = tmp_path / "calls", tmp_path / "since"
    watch = {
        "PYTHONPATH": f"{REPOSITORY / 'tests' / 'support' / 'rootwatch'}:{REPOSITORY}",
        "ROOTWATCH_ROOT": str(tmp_path / "daemon" / "root"),
        "ROOTWATCH_LOG": str(log),
        "ROOTWATCH_FROM": str(since),
    }
    publish_files(tmp_path / "a", {"a.bin": BYTES, "b/c.json": b"{}"})
    publish_files(tmp_path / "b", {"a.bin": BYTES, "d.bin": b"d" * 70_000})
    publish_files(tmp_path / "bad", {"a.bin": b"a" * 70_000})
    (tmp_path / "bad" / "a.bin").write_bytes(b"b" * 70_000)
    with daemon_process(
        tmp_path / "daemon", "--scrub-rate", "1GiB/s", "--scrub-period", "1s", environment=watch
    ) as daemon:
        daemon.write_catalog(
            {name: model(f"file://{tmp_path}/{where}") for name, where in (("m", "a"), ("other", "b"), ("bad", "bad"))}
        )
        daemon.start()
        since.touch()
        for name in ("m", "other", "bad"):
            daemon.pull(f"{name}@v1")
        daemon.wait_ready(V1, OTHER)
        daemon.wait_state(ModelRef("bad", "v1"), "failed")
        daemon.control.pin(V1)
        daemon.control.unpin(V1)
        flip(daemon.path(OTHER) / "d.bin")
        daemon.wait(lambda: daemon.metric("holdfast_verify_failures_total", where="scrub") > 0, "the flipped bit")
        shutil.rmtree(daemon.path(V1).resolve())
        daemon.layout.socket.unlink()
        daemon.wait(lambda: daemon.path(V1).exists() and daemon.layout.socket.exists(), "what was deleted")
        daemon.wait_ready(V1, OTHER)
        for path in ("/healthz", "/readyz", "/v1/status", "/metrics"):
            daemon.get(path)
        daemon.control.gc(dry_run=True)
        daemon.control.gc(dry_run=False)
        assert daemon.stop() == 0
    assert not log.exists(), log.read_text()[:6000]
