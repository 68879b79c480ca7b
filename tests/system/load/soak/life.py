"""A node's life in fast motion: versions are published, wanted, pulled, pinned, evicted and scrubbed, gates come and
go, the origin fails, lies and restarts, disks rot, clients hang.

Law: the daemon and the gates are real processes, the origin is the scripted one; every choice comes from one seed.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time
from collections import deque
from pathlib import Path
from typing import Self

from cached.contract.manifest import MANIFEST_NAME
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, write_files
from tests.support.gates import Gates, RunningGate
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Drip, FlipBit, Hangup, IgnoreRange, ResetAfter, Status, Truncate

OPTIONS = ("--quota", "96MiB", "--scrub-rate", "64MiB/s", "--scrub-period", "1s", "--stall-timeout", "2")
_WINDOW = 12  # versions in the catalog: older ones go, and so does their demand
_GATES = 4
_FILES_MAX_BYTES = 3_000_000
_LARGE_BYTES = 70_000_000  # large enough to be recorded while it comes
_FAULTS = (Hangup(), ResetAfter(5000), Truncate(2000), FlipBit(100), IgnoreRange(), Status(503), Status(500), Drip(90))


class Life:
    """One node. `step` lets the next thing happen."""

    def __init__(self, folder: Path, seed: int, daemon: DaemonProcess) -> None:
        self.happened: dict[str, int] = {}
        self._chance = random.Random(seed)
        self._daemon = daemon
        self._gates = Gates(daemon.layout.public, folder)
        self._origin = HostileOrigin(host="127.0.0.1")
        self._objects: dict[str, bytes] = {}
        self._versions: deque[str] = deque(maxlen=_WINDOW)
        self._standing: deque[RunningGate] = deque()
        self._hanging: deque[socket.socket] = deque(maxlen=8)
        self._count = 0

    def __enter__(self) -> Self:
        self._origin.__enter__()
        self._publish()
        return self

    def __exit__(self, *_: object) -> None:
        self._gates.end()
        for hanging in self._hanging:
            hanging.close()
        self._origin.close()

    def step(self) -> None:
        """Let one more thing happen, now and then a rare one."""
        common = (self._publish, self._pull, self._open_gate, self._open_gate, self._close_gate, self._spoil)
        rare = (self._restart_origin, self._collect, self._pin, self._rot, self._hang, self._ask, self._break_catalog)
        act = self._chance.choice(rare) if self._chance.random() < 0.3 else self._chance.choice(common)
        act()
        name = act.__name__.lstrip("_")
        self.happened[name] = self.happened.get(name, 0) + 1

    def settle(self) -> list[str]:
        """Let the origin behave and everything be wanted; returns what is not ready after a minute."""
        self._restart_origin()
        refs = [ModelRef("soak", version) for version in list(self._versions)[-3:]]
        for ref in refs:
            self._daemon.pull(str(ref))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and any(self._daemon.state(ref) != "ready" for ref in refs):
            time.sleep(0.1)
        return [f"{ref}: {self._daemon.status(ref)}" for ref in refs if self._daemon.state(ref) != "ready"]

    # --- what happens ----------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """A new version comes, and the oldest leaves the catalog."""
        self._count += 1
        version = f"v{self._count}"
        sizes = [self._chance.randrange(1, _FILES_MAX_BYTES) for _ in range(self._chance.randrange(1, 5))]
        if self._count % 25 == 1:  # the first too, so that the buffers' pool is as full as it gets from the start
            sizes.append(_LARGE_BYTES)
        files = {f"part-{number}.bin": self._chance.randbytes(size) for number, size in enumerate(sizes)}
        files["config.json"] = b"{}"  # a blob that every version shares
        folder = self._daemon.catalog.parent / "made"
        manifest = write_files(folder, files)
        if len(self._versions) == self._versions.maxlen:
            self._withdraw(self._versions[0])
        for path, data in {**files, MANIFEST_NAME: manifest.canonical()}.items():
            self._objects[f"/{version}/{path}"] = data
            self._origin.put(f"/{version}/{path}", data, etag=f'"{version}"')
        self._versions.append(version)
        self._tell_catalog()

    def _withdraw(self, version: str) -> None:
        for path in [path for path in self._objects if path.startswith(f"/{version}/")]:
            del self._objects[path]
            self._origin.remove(path)

    def _tell_catalog(self) -> None:
        listed = {version: {"source": self._origin.url(f"/{version}/")} for version in self._versions}
        newest = {"versions": [self._versions[-1]]}
        self._daemon.write_catalog({"soak": {"versions": listed, "prefetch": newest}})

    def _break_catalog(self) -> None:
        self._daemon.write_catalog_text("models: [")
        time.sleep(0.2)
        self._tell_catalog()

    def _pull(self) -> None:
        self._daemon.pull(f"soak@{self._chance.choice(self._versions)}")

    def _open_gate(self) -> None:
        """A pod starts: its gate waits, opens or is stopped while it waits."""
        version = self._chance.choice(self._versions)
        self._daemon.pull(f"soak@{version}")
        self._standing.append(self._gates.start_bare("--model", "soak", "--version", version))
        while len(self._standing) > _GATES:
            self._close_gate()

    def _close_gate(self) -> None:
        if self._standing:
            gate = self._standing.popleft()
            number = signal.SIGKILL if self._chance.random() < 0.3 else signal.SIGTERM
            self._gates.stop(gate, number)

    def _spoil(self) -> None:
        """The next requests for some files go wrong."""
        for path in self._chance.sample(sorted(self._objects), min(3, len(self._objects))):
            self._origin.script(path, self._chance.choice(_FAULTS))

    def _restart_origin(self) -> None:
        port = self._origin.port
        self._origin.close()
        time.sleep(self._chance.random())
        self._origin = HostileOrigin(host="127.0.0.1", port=port)
        self._origin.__enter__()
        for path, data in self._objects.items():
            self._origin.put(path, data, etag=f'"{path.split("/")[1]}"')

    def _collect(self) -> None:
        self._daemon.control.gc(dry_run=False)

    def _pin(self) -> None:
        ref = ModelRef("soak", self._chance.choice(self._versions))
        self._daemon.control.pin(ref)
        self._daemon.control.unpin(ref)

    def _rot(self) -> None:
        """A byte on the disk changes."""
        blobs = sorted(self._daemon.layout.blobs.glob("*/*"))
        if blobs:
            with contextlib.suppress(FileNotFoundError, OSError):  # evicted just now
                blob = self._chance.choice(blobs)
                blob.chmod(0o644)
                with blob.open("r+b") as file:
                    byte = file.read(1) or b"\0"
                    file.seek(0)
                    file.write(bytes([byte[0] ^ 1]))
                blob.chmod(0o444)

    def _hang(self) -> None:
        """Clients that say half a request, or nothing, and stay."""
        host, port = self._daemon.address
        for said in (b"", b"GET /v1/status HTTP/1.1\r\n"):
            if len(self._hanging) == self._hanging.maxlen:
                self._hanging.popleft().close()
            hanging = socket.create_connection((host, port), timeout=100)
            hanging.sendall(said)
            self._hanging.append(hanging)

    def _ask(self) -> None:
        for path in ("/v1/status", "/metrics", "/readyz"):
            self._daemon.get(path)
