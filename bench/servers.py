"""The servers that bench.serve compares: how to start each on a model's folder, query it, and read its start metrics.

Law: each runs as its users run it, as a command in its own process, with its documented options for many clients.
Nothing is downloaded: the folder has the model and the tokenizer.
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
    """One way to serve: `arguments(folder, device, port)`, and `name(folder)` as clients send it."""

    row: str
    needs: tuple[str, ...]
    arguments: Callable[[Path, str, int], list[str]]
    name: Callable[[Path], str]

    def missing(self) -> str | None:
        """Return why this server cannot run here; None where it can."""
        lacking = [module for module in self.needs if find_spec(module) is None]
        return f"not installed: {', '.join(lacking)}" if lacking else None


@dataclass(frozen=True, slots=True)
class Running:
    """A listening server: `listening_s` after its process started, at `began` on the monotonic clock."""

    server: Server
    url: str
    model: str
    pid: int
    began: float
    listening_s: float

    def cpu_s(self) -> float:
        return cpu_seconds(self.pid)

    def stages(self) -> dict[str, float]:
        """Return the seconds of each stage from the server's metrics; empty for a server without them."""
        if self.server.row != OURS:
            return {}
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {stage if own else f"weights: {stage}": float(value) for own, stage, value in _STAGE.findall(text)}


def _ours(folder: Path, device: str, port: int) -> list[str]:
    options = [f"--model-path={folder}", f"--listen=127.0.0.1:{port}", f"--device={device}", "--drain-linger=0"]
    return [sys.executable, "-m", "server", *options]


def _theirs(folder: Path, device: str, port: int) -> list[str]:
    start = "from transformers.cli.transformers import main; main()"  # what their command runs
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-c", start, "serve", str(folder), "--device", device, *address]


SERVERS = (
    Server(OURS, ("aiohttp", "transformers"), _ours, lambda folder: folder.name),
    Server(PLAIN, _SERVING, _theirs, str),
    Server(BATCHING, _SERVING, lambda *of: [*_theirs(*of), "--continuous-batching"], str),
)


@contextmanager
def running(server: Server, folder: Path, device: str, threads: int | None, log: Path) -> Iterator[Running]:
    """Start `server` on `folder`, wait until it listens, and end it on the way out.

    `threads`: CPU threads for one computation; None: torch's own number.
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
    """Return the seconds from the process's start to the first text of a completion, retried until it is ready."""
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

    # Ten times a second: more requests would slow a server that is still starting.
    return wait_until(asked, f"token from {found.server.row}", _START_S, 0.1)


def text_of(line: bytes) -> str:
    """Return the text in one line of an event stream of completions; empty without text."""
    if not line.startswith(b"data: {"):
        return ""
    event = json.loads(line[6:])
    if "error" in event:
        raise failed(f"a server answered {event['error']}")
    return "".join(choice.get("text") or "" for choice in event.get("choices", ()))
