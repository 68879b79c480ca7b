"""Servers as the processes they are, and snapshots as the daemon leaves them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.api.connections import ConnectionLimits

LIMITS = ConnectionLimits(1024, head_s=15, body_s=15, answer_s=30, idle_s=3600)  # as a server has them
START_WITHIN_S = 150.0
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class ServerProcess:
    """A running `python -m server`."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, sample: str) -> float:
        """The value of one sample, written with its labels as `/metrics` writes it; 0 where it is not there."""
        for line in self.get("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_WITHIN_S)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll until `condition` holds; fails after minutes: a busy machine starts few servers at once."""
    deadline = time.monotonic() + START_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def environment(python_path: Path) -> dict[str, str]:
    """This process's environment without what would configure a server, and with what is in `python_path`. A server
    that is told to stop does not linger for clients that only learn of it then."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
    return {**found, "HOLDFAST_DRAIN_LINGER": "0", "PYTHONPATH": f"{python_path}{os.pathsep}{REPOSITORY}"}


def failing(*arguments: str, python_path: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run a server that ends by itself."""
    command = [sys.executable, "-m", "server", "--listen", "127.0.0.1:0", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(python_path),
        cwd=REPOSITORY,
        timeout=START_WITHIN_S,
        check=False,
    )


@contextmanager
def running(
    log: Path,
    *arguments: str,
    ready: bool = True,
    python_path: Path = REPOSITORY,
    variables: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
) -> Iterator[ServerProcess]:
    """Start a server on any port of the loopback, with what is in `python_path` and these variables, and end it.
    `under`: the program that starts it, with its options."""
    command = [*under, sys.executable, "-m", "server", "--listen", "127.0.0.1:0", *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**environment(python_path), **(variables or {})},
            cwd=REPOSITORY,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening on http://" in line, log.read_text()
        server = ServerProcess(process, line.rpartition(" ")[2].strip(), log)
        if ready:

            def is_ready() -> bool:
                assert process.poll() is None, log.read_text()
                return server.get("/readyz")[0] == 200

            eventually(is_ready, "ready")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(START_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@dataclass(frozen=True)
class Published:
    """A snapshot as the daemon leaves it, and the symlink that names it."""

    link: Path
    snapshot: Path

    @property
    def lease(self) -> Path:
        return self.snapshot / ".holdfast" / "lease"


def publish(source: Path, root: Path, name: str, version: str) -> Published:
    """Lay `source` out as a snapshot under `root`, as section 3 of the design says."""
    digest = hashlib.sha256(str(source).encode()).hexdigest()
    snapshot = root / "snapshots" / digest
    shutil.copytree(source, snapshot)
    (snapshot / ".holdfast").mkdir()
    (snapshot / ".holdfast" / "lease").touch()
    link = root / "models" / name.replace("/", "--") / version
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(Path("../../snapshots") / digest)
    return Published(link, snapshot)
