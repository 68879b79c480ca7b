"""A real MLflow server: the program `mlflow` on PATH, or named by HOLDFAST_TEST_MLFLOW.

Law: a process on loopback with a database and artifacts of its own; the test is skipped by name without the program.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.ports import free_port

_START_TIMEOUT_S = 120
_API = "/api/2.0/mlflow/"


class MlflowServer:
    """A running server at `url`; artifacts of its own lie at `destination`, as it was told."""

    def __init__(self, url: str, destination: str) -> None:
        self.url, self.destination = url, destination

    def call(self, method: str, path: str, **body: Any) -> Any:
        """Call a method of the REST API."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{_API}{path}", data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as response:
            return json.load(response)

    def add_run(self) -> tuple[str, str]:
        """Create a run; return its id and the path of its artifacts below the destination."""
        info = self.call("POST", "runs/create", experiment_id="0")["run"]["info"]
        path = info["artifact_uri"].removeprefix("mlflow-artifacts:/").removeprefix(self.destination)
        return info["run_id"], path.lstrip("/")

    def add_version(self, source: str, model: str | None = None, **more: Any) -> tuple[str, str]:
        """Register a version of a model, which is new by default; return both names."""
        name = model or f"model-{uuid4().hex[:12]}"
        if model is None:
            self.call("POST", "registered-models/create", name=name)
        found = self.call("POST", "model-versions/create", name=name, source=source, **more)
        return name, found["model_version"]["version"]


def mlflow_program() -> str:
    """The program's path; skips the test without it."""
    found = os.environ.get("HOLDFAST_TEST_MLFLOW") or shutil.which("mlflow")
    if not found:
        pytest.skip("mlflow is not installed: put it on PATH, or name it in HOLDFAST_TEST_MLFLOW")
    return found


@contextmanager
def mlflow_server(
    folder: Path,
    destination: str | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    serves_artifacts: bool = True,
) -> Iterator[MlflowServer]:
    """Run a server whose artifacts lie at `destination`, by default a folder; which it names to its clients where it
    serves no artifacts."""
    program = mlflow_program()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    at = destination or str(folder / "artifacts")
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", at] if serves_artifacts else ["--no-serve-artifacts"]
    command += [] if serves_artifacts else ["--default-artifact-root", at]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **quiet, **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mlflow did not start:\n{(folder / 'mlflow.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield MlflowServer(f"http://127.0.0.1:{port}", at)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait(100)


def _is_healthy(port: int) -> bool:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=120) as response:
            return bool(response.status == 200)
    except OSError:
        return False
