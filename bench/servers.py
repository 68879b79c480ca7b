"""The servers that bench.serve compares: how each is started on a model's folder, asked, and what it says of its start.

Law: each runs as its users run it, a command in a process of its own, with what its documentation offers for many
clients. Nothing is downloaded: the folder holds the model and the tokenizer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.measure import cpu_seconds, failed, stop, tail, wait_until
from bench.origins import free_port

OURS = "holdfast"
PLAIN, BATCHING = "transformers serve", "transformers serve, batching"
_ROOT = Path(__file__).resolve().parent.parent
_START_S = 600
_STAGE = re.compile(r'^holdfast_(server_)?load_seconds(?:_sum)?\{.*stage="(\w+)".*\} (\S+)$', re.MULTILINE)
_SERVING = ("fastapi", "uvicorn", "pydantic", "rich", "openai", "accelerate")  # transformers' extra `serving`


@dataclass(frozen=True, slots=True)
class Server:
    """One way to serve. `arguments` of a folder, a device and a port; `name` of the folder, as clients give it."""

    row: str
    needs: tuple[str, ...]
    arguments: Callable[[Path, str, int], list[str]]
    name: Callable[[Path], str]

    def missing(self) -> str | None:
        """Why this server has no row here; None where it has one."""
        lacking = [module for module in self.needs if find_spec(module) is None]
        return f"not installed: {', '.join(lacking)}" if lacking else None


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens; `listening_s` after its process began, at `began` on the monotonic clock."""

    server: Server
    url: str
    model: str
    pid: int
    began: float
    listening_s: float

    def cpu_s(self) -> float:
        return cpu_seconds(self.pid)

    def stages(self) -> dict[str, float]:
        """Seconds of each stage, as the server's own metrics say; none where it has no such metrics."""
        if self.server.row != OURS:
            return {}
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {stage if own else f"weights: {stage}": float(value) for own, stage, value in _STAGE.findall(text)}


def _ours(folder: Path, device: str, port: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "server",
        f"--model-path={folder}",
        f"--listen=127.0.0.1:{port}",
        f"--device={device}",
    ]


def _theirs(folder: Path, device: str, port: int) -> list[str]:
    start = "from transformers.cli.transformers import main; main()"  # what their command does, wherever it lies
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-c", start, "serve", str(folder), "--device", device, *address]


SERVERS = (
    Server(OURS, ("aiohttp", "transformers"), _ours, lambda folder: folder.name),
    Server(PLAIN, _SERVING, _theirs, str),
    Server(BATCHING, _SERVING, lambda *of: [*_theirs(*of), "--continuous-batching"], str),
)


@contextmanager
def running(server: Server, folder: Path, device: str, threads: int | None, log: Path) -> Iterator[Running]:
    """Start `server` on `folder` and wait until it listens; ended when the block is left.

    `threads`: of the processor for one computation; None: as many as torch takes.
    """
    port = free_port()
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            server.arguments(folder, device, port), cwd=_ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"

    def listening() -> bool | None:
        if process.poll() is not None:
            raise failed(f"{server.row} ended with {process.returncode}: {tail(log)}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except urllib.error.HTTPError:  # any answer is one
            return True
        except OSError:
            return None
        return True

    try:
        wait_until(listening, f"answer from {server.row}", _START_S, 0.01)
        yield Running(server, url, server.name(folder), process.pid, began, time.monotonic() - began)
    finally:
        stop(process)


def first_token(found: Running, log: Path) -> float:
    """Seconds from the process's start to the first text of a completion, asked for until it is given."""
    body = {"model": found.model, "prompt": "aaab aaac", "max_tokens": 2, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{found.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def asked() -> float | None:
        try:
            with urllib.request.urlopen(request, timeout=_START_S) as answer:
                for line in answer:
                    if text_of(line):
                        return time.monotonic() - found.began
        except urllib.error.HTTPError as error:
            if error.code == 503:  # not ready yet
                return None
            raise failed(f"{found.server.row} answered {error.code}: {tail(log)}") from error
        raise failed(f"{found.server.row} answered without a token: {tail(log)}")

    # Ten times a second: asked more often, a server that answers "not yet" spends its start on that.
    return wait_until(asked, f"token from {found.server.row}", _START_S, 0.1)


def text_of(line: bytes) -> str:
    """The text in one line of an event stream of completions; empty where it has none."""
    if not line.startswith(b"data: {"):
        return ""
    event = json.loads(line[6:])
    if "error" in event:
        raise failed(f"a server answered {event['error']}")
    return "".join(choice.get("text") or "" for choice in event.get("choices", ()))
