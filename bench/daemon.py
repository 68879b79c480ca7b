"""A real `holdfast daemon` process on its own root: start it, query it, wait for published versions, end it.

Law: only public interfaces: the command line, the control socket, the TCP port, the files under `public/`.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.measure import failed, stop, tail, wait_until
from bench.origins import free_port
from cached.commands.shared.control_client import ControlClient
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State

_REPOSITORY = Path(__file__).resolve().parent.parent
_READY_TIMEOUT_S = 60
_STATUS_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A catalog entry: one version, its source, its pin, whether it is prefetched."""

    ref: ModelRef
    source: str
    digest: Digest
    prefetch: bool = False


class Daemon:
    """A started daemon; `layout` is its root."""

    def __init__(self, process: subprocess.Popen[bytes], layout: Layout, port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log
        self.layout = layout

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return self._port

    def wait_ready(self) -> None:
        """Return once `/readyz` answers 200."""
        wait_until(self._ready, "200 from the daemon's /readyz", _READY_TIMEOUT_S, 0.02)

    def pull(self, ref: ModelRef) -> None:
        """Pull a version over the control socket, as `holdfast pull --no-wait` does."""
        ControlClient(self.layout).pull(ref, None, refresh=False)

    def wait_published(self, ref: ModelRef, digest: Digest, timeout_s: float) -> None:
        """Return once the version's symlink names the snapshot `digest`; raises `Permanent` on a permanent failure."""
        link, target = self.layout.public.model_link(ref), self.layout.public.link_target(digest)
        asked = time.monotonic()

        def published() -> bool | None:
            nonlocal asked
            try:
                if os.readlink(link) == target:
                    return True
            except FileNotFoundError:
                pass
            if time.monotonic() - asked > _STATUS_EVERY_S:
                asked = time.monotonic()
                self._check(ref)
            return None

        wait_until(published, f"published {ref}", timeout_s)

    def metric(self, name: str, label: str = "") -> float:
        """Return the sum of a metric's samples over its labels, of those with the text `label` among them; 0 without
        samples."""
        found = re.findall(rf"^{re.escape(name)}(\{{.*\}})? (\S+)$", self._get("/metrics")[1], re.MULTILINE)
        return sum(float(value) for labels, value in found if label in labels)

    def status(self) -> dict[str, Any]:
        """Return the document of `/v1/status`."""
        document: dict[str, Any] = json.loads(self._get("/v1/status")[1])
        return document

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Send SIGTERM, then SIGKILL, as the kubelet does."""
        stop(self._process)

    def check_alive(self) -> None:
        """Raise `Permanent` with the end of its log once it has ended."""
        if self._process.poll() is not None:
            raise failed(f"the daemon ended with {self._process.returncode}: {tail(self._log)}")

    def _ready(self) -> bool | None:
        self.check_alive()
        try:
            return True if self._get("/readyz")[0] == 200 else None
        except ConnectionError:
            return None

    def _check(self, ref: ModelRef) -> None:
        self.check_alive()
        try:
            status = ModelStatus.parse(self.layout.public.model_status(ref).read_bytes())
        except FileNotFoundError:
            return
        if status.state is State.FAILED and status.error is not None and status.error.permanent:
            raise failed(f"the daemon refused {ref}: {status.error.message} ({status.error.remedy})")

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@cache
def compile_checkout(checkout: Path) -> None:
    """Compile a checkout's modules, as an installation does: where Python is told to write no bytecode each start would
    compile them anew."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", "cached", "sidecar", "server"], cwd=checkout, check=True)


@contextmanager
def daemon(
    root: Path, catalog: Path, environment: Mapping[str, str], options: Sequence[str] = (), checkout: Path | None = None
) -> Iterator[Daemon]:
    """Start a daemon on `root`, not yet ready, and end it on the way out. Its log lies in a folder beside the catalog:
    the daemon watches the catalog's own folder, where each line of a log would be a change.

    `checkout`: another checkout of this repository to run; None: this one.
    """
    compile_checkout(checkout or _REPOSITORY)
    port, log = free_port(), catalog.parent / "log" / f"{catalog.stem}.log"
    log.parent.mkdir(exist_ok=True)
    argv = [
        *(sys.executable, "-m", "cached.cli", "daemon", "--root", str(root), "--catalog", str(catalog)),
        *("--listen", f"127.0.0.1:{port}", "--kube", "off", "--node", "bench"),
        # No eviction because another program filled the disk.
        *("--high-watermark", "0.99", "--low-watermark", "0.98", *options),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, env=dict(environment), cwd=checkout or _REPOSITORY, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Daemon(process, Layout(root), port, log)
    finally:
        stop(process)


def write_catalog(path: Path, entries: Sequence[CatalogEntry]) -> None:
    """Write a catalog of `entries` (JSON, which is YAML too)."""
    models: dict[str, Any] = {}
    for entry in entries:
        model = models.setdefault(entry.ref.name, {"versions": {}, "prefetch": {"versions": []}})
        model["versions"][entry.ref.version] = {"source": entry.source, "digest": str(entry.digest)}
        if entry.prefetch:
            model["prefetch"]["versions"].append(entry.ref.version)
    for model in models.values():
        if not model["prefetch"]["versions"]:
            del model["prefetch"]
    path.write_text(json.dumps({"models": models}, indent=1))
