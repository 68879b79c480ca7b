"""The daemon as the process it is, on a root of its own, and the versions it is given to fetch.

Law: driven through its options, its environment, its catalog, its socket and signals; seen through its port, its files,
its log and its exit code.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from prometheus_client.parser import text_string_to_metric_families

from cached.commands.shared.control_client import ControlClient
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from cached.contract.reference import ModelRef

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 150.0  # a busy machine takes several times as long as a quiet one
_LISTENING = "listening on http://127.0.0.1:"


class DaemonProcess:
    """One root and one catalog, and the daemon on them; it may be started again and again."""

    def __init__(
        self, folder: Path, *options: str, environment: Mapping[str, str] | None = None, under: Sequence[str] = ()
    ) -> None:
        """`under`: the command that the daemon is started with, as `setpriv` and its options."""
        self.layout = Layout(folder / "root")
        self.catalog = folder / "catalog" / "catalog.yaml"
        self.catalog.parent.mkdir(parents=True)
        self.control = ControlClient(self.layout, timeout_s=PATIENCE_S)
        self._log = folder / "daemon.log"
        self._options = options
        self._environment = environment or {}
        self._under = under
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._port = 0

    # --- the process -----------------------------------------------------------------------------------------------

    def launch_into(self, log: IO[bytes] | int, *more: str) -> None:
        """Start the process, writing into `log`, and wait for nothing."""
        self._process = subprocess.Popen(
            [*self._under, *daemon_command(self.layout.root, self.catalog), *self._options, *more],
            env={**bare_environment(), **self._environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def launch(self, *more: str) -> None:
        """Start the process and wait for nothing."""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.launch_into(log, *more)

    def listen(self, *more: str) -> None:
        """Start, and wait until the listeners are open."""
        self.launch(*more)
        self.wait(lambda: _LISTENING in self.log(), "the daemon's listeners")
        self._port = int(self.log().partition(_LISTENING)[2].split()[0])

    def start(self, *more: str) -> None:
        """Start, and wait until it is ready."""
        self.listen(*more)
        self.wait(lambda: self.get("/readyz")[0] == 200, "200 from /readyz")

    def stop(self) -> int:
        """End it as the kubelet does; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_S)

    def end_within(self, seconds: float) -> int:
        """Its exit code, once it ends by itself or by a signal sent before."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Leave nothing running."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of its TCP listener."""
        return "127.0.0.1", self._port

    @property
    def log_file(self) -> Path:
        """What every life of it wrote."""
        return self._log

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def log(self) -> str:
        """What this life of it wrote so far; nothing where it writes into something else."""
        return "" if not self._log.exists() else self._log.read_bytes()[self._log_start :].decode()

    def wait(self, condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
        """Look until `condition` holds; fails after a generous deadline, or at once where the daemon ended. `what` is
        waited for, or says so at the end."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.code() is None, f"the daemon ended with {self.code()}:\n{self.log()[-4000:]}"
            assert time.monotonic() < deadline, (
                f"never: {what if isinstance(what, str) else what()}\n{self.log()[-4000:]}"
            )
            time.sleep(0.01)

    # --- what it says ----------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, patience_s: float = PATIENCE_S) -> tuple[int, str]:
        """Status and body of a request to the TCP port."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=patience_s)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def get(self, path: str) -> tuple[int, str]:
        return self.request("GET", path)

    def document(self) -> dict[str, Any]:
        """What `/v1/status` says."""
        document: dict[str, Any] = json.loads(self.get("/v1/status")[1])
        return document

    def samples(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """A metric's samples, by labels."""
        return {
            frozenset(sample.labels.items()): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name
        }

    def inspect(self, name: str, *options: str) -> str:
        """What `holdfast inspect` prints of version `v1` of a model."""
        command = [
            sys.executable,
            "-m",
            "cached.cli",
            "inspect",
            f"{name}@v1",
            "--root",
            str(self.layout.root),
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there is none."""
        return sum(value for found, value in self.samples(name).items() if labels.items() <= dict(found).items())

    def status(self, ref: ModelRef) -> dict[str, Any] | None:
        """The status file of `ref`; None where there is none, or an empty one, which a power cut may leave until the
        daemon writes it."""
        try:
            content = self.layout.public.model_status(ref).read_bytes()
        except FileNotFoundError:
            return None
        document: dict[str, Any] | None = json.loads(content) if content else None
        return document

    def state(self, ref: ModelRef) -> str | None:
        """The state in the status file of `ref`; None where there is none."""
        status = self.status(ref)
        return None if status is None else str(status["state"])

    def error(self, ref: ModelRef) -> dict[str, Any]:
        """The error in the status file of `ref`; empty where there is none."""
        return (self.status(ref) or {}).get("error") or {}

    def wait_state(self, ref: ModelRef, state: str | None) -> dict[str, Any]:
        """Wait until the status file of `ref` says `state` (None: is gone); returns what it said then."""
        return self.wait_status(ref, lambda status: status.get("state") == state, state or "gone")

    def wait_error(self, ref: ModelRef, *codes: str) -> dict[str, Any]:
        """Wait until the status file of `ref` has an error, of one of `codes` where there are any; returns it: the next
        try may clear it at once."""

        def has_error(status: dict[str, Any]) -> bool:
            code = (status.get("error") or {}).get("code")
            return code in codes if codes else code is not None

        error: dict[str, Any] = self.wait_status(ref, has_error, f"with an error {codes}")["error"]
        return error

    def wait_status(self, ref: ModelRef, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait until the status file of `ref` (empty where there is none) holds; returns what it said then."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            nonlocal seen
            seen = self.status(ref) or {}
            return holds(seen)

        self.wait(look, lambda: f"{ref} {what}; found {seen}")
        return seen

    def wait_ready(self, *refs: ModelRef) -> None:
        """Wait until these versions are ready, and check that their names are there by then."""
        for ref in refs:
            status = self.wait_status(ref, lambda status: status.get("state") in ("ready", "failed"), "ready")
            assert status["state"] == "ready", status
            assert self.path(ref).is_dir()

    def path(self, ref: ModelRef) -> Path:
        """Where a version's files are."""
        return self.layout.public.model_link(ref)

    def digest(self, ref: ModelRef) -> Digest:
        """The digest that a version's name points at."""
        return Digest(Path(os.readlink(self.path(ref))).name)

    def files(self, ref: ModelRef) -> dict[str, bytes]:
        """A published version's files and their bytes."""
        root = self.path(ref).resolve()
        found = (path for path in root.rglob("*") if path.is_file())
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in found
            if path.relative_to(root).parts[0] != ".holdfast"
        }

    # --- what it is told -------------------------------------------------------------------------------------------

    def write_catalog(self, models: Mapping[str, Any], **more: Any) -> None:
        """Replace the catalog (JSON, which is YAML too)."""
        self.write_catalog_text(json.dumps({"models": models, **more}, indent=1))

    def write_catalog_text(self, text: str) -> None:
        """Replace the catalog by any text, atomically."""
        fresh = self.catalog.with_name("fresh")
        fresh.write_text(text)
        fresh.replace(self.catalog)

    def command(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and document of any POST to the control socket."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
        with contextlib.closing(connection), socket.socket(socket.AF_UNIX) as connected:
            connect_control(connected, self.layout)
            connection.sock = connected
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def pull(self, text: str, pin: Digest | None = None) -> str:
        """Pull `name@version`; returns the state that the daemon answers."""
        return str(self.control.pull(ModelRef.parse(text), pin, refresh=False).state)


@contextlib.contextmanager
def daemon_process(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None, under: Sequence[str] = ()
) -> Iterator[DaemonProcess]:
    """A daemon to start, which is not running any more afterwards."""
    daemon = DaemonProcess(folder, *options, environment=environment, under=under)
    try:
        yield daemon
    finally:
        daemon.end()


def daemon_command(root: Path, catalog: Path) -> list[str]:
    """The command that starts a daemon without a cluster on any free port of the loopback. It evicts for a quota only:
    the disk is shared with the rest of the machine, and may be nearly full."""
    return [
        *(sys.executable, "-m", "cached.cli", "daemon", "--root", str(root), "--catalog", str(catalog)),
        *("--kube", "off", "--node", "node-a", "--listen", "127.0.0.1:0"),
        *("--high-watermark", "1", "--low-watermark", "1"),
    ]


def connect_control(client: socket.socket, layout: Layout) -> None:
    """Connect to the control socket; by a short name of its folder, for a test's folder may be too deep for an
    address."""
    folder = os.open(layout.socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client.connect(f"/proc/self/fd/{folder}/{layout.socket.name}")
    finally:
        os.close(folder)


def bare_environment() -> dict[str, str]:
    """This process's environment without what would configure a daemon, or send its requests elsewhere or nowhere: the
    server, which may be imported here, keeps its libraries offline."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HOLDFAST_") and not key.lower().endswith("_proxy") and not key.endswith("_OFFLINE")
    }
    return {**kept, "PYTHONPATH": str(REPOSITORY)}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Manifest:
    """Put plain files into a folder; returns the manifest of exactly these."""
    for path, data in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return Manifest.build(FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items())


def publish_files(folder: Path, files: Mapping[str, bytes]) -> Manifest:
    """Put files and their manifest into a folder, as `holdfast publish` leaves them."""
    manifest = write_files(folder, files)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical())
    return manifest


def model(source: str, *versions: str, digest: Digest | str | None = None, **more: Any) -> dict[str, Any]:
    """A catalog entry of which each of `versions` (`v1` where none is named) comes from `source`."""
    listed = {
        version: {"source": source, **({"digest": str(digest)} if digest else {})} for version in versions or ("v1",)
    }
    return {"versions": listed, **more}


def prefetched(source: str, *versions: str, digest: Digest | str | None = None, **more: Any) -> dict[str, Any]:
    """The same, wanted from the start."""
    return {**model(source, *versions, digest=digest, **more), "prefetch": {"versions": list(versions or ("v1",))}}
