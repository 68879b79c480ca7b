"""The byte engine on a root of its own, with what a test looks at: who was counted, and whether all came back.

Law: real threads, files and sockets; nothing of the engine is replaced, except what the daemon passes in too (who
counts, who gives space).
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from cached.contract.layout import Layout, ingest_id
from cached.fetch.blob import BlobSpec, Verified
from cached.fetch.download import Download, Space
from cached.fetch.supply import SupplyMaker
from cached.fetch.workers import _HELD, MAX_OPEN, PEER_HTTP, Workers, WorkerSettings
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.blob.ingest import IngestKey
from cached.store.disk.verity import Sealing
from cached.store.start import recovery
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.origin_proxy import OriginProxySettings
from cached.transport.target import HttpTarget, LocalTarget, Target, local_validator
from tests.support.origin import Seen
from tests.support.origin_faults import Fault, Reply

MIB = 1024 * 1024
DEADLINE_S = 100.0
HASTY = HttpSettings(header_timeout_s=5.0, stall_window_s=2.0, stall_min_bytes=1000)  # no busy machine seems to stall


@lru_cache(maxsize=1)
def noise() -> bytes:
    """70 MiB that repeat nowhere."""
    return random.Random(1).randbytes(70 * MIB)


class Counts:
    """Metrics that remember."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.received_bytes = 0
        self.peer_bytes = 0
        self.failures: list[str] = []
        self.mismatches = 0
        self.peer_mismatches = 0
        self.proxy_bytes = 0
        self.proxy_mismatches = 0

    def received(self, kind: str, size: int) -> None:
        with self._lock:
            self.received_bytes += size
            self.peer_bytes += size if kind == "peer" else 0
            self.proxy_bytes += size if kind == "dragonfly" else 0

    def fetch_failed(self, kind: str, code: str) -> None:
        with self._lock:
            self.failures.append(code)

    def fetched(self, kind: str, seconds: float) -> None:
        """A duration that no test asks about."""

    def verify_failed(self, where: str) -> None:
        with self._lock:
            self.mismatches += 1
            self.peer_mismatches += where == "peer"
            self.proxy_mismatches += where == "dragonfly"


class Plenty:
    """Space without end."""

    def grow(self, size: int) -> None:
        """There is room."""


class Paused(Plenty):
    """Space that keeps the download waiting before it writes beyond `at` bytes, until the test lets it go."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def grow(self, size: int) -> None:
        if size > self._at:
            self.reached.set()
            assert self.let_go.wait(DEADLINE_S)


class Together:
    """A fault that keeps answers back until `count` requests wait for theirs, then gives each the same fault."""

    def __init__(self, count: int, fault: Fault) -> None:
        self._barrier = threading.Barrier(count)
        self._fault = fault

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        self._barrier.wait(DEADLINE_S)
        return self._fault.apply(reply, whole)


class Hold:
    """A fault that keeps an answer back until the test lets it go; `reached` once a request waits."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def apply(self, reply: Reply, whole: memoryview) -> Reply:
        self.reached.set()
        assert self.let_go.wait(DEADLINE_S)
        return reply


class Engine:
    """Workers over a root."""

    def __init__(
        self,
        root: Path,
        settings: WorkerSettings,
        http: HttpSettings,
        origin_proxy: OriginProxySettings | None = None,
    ) -> None:
        self.layout = Layout(root)
        recovery.prepare(self.layout)
        self.counts = Counts()
        self.client = HttpClient(http, origin_proxy)
        self._connections = settings.connections
        self.journal = DigestJournal(self.layout.digests, {})
        self.notes = HashNotes(self.layout.hashed, {})
        self.workers = Workers(self.layout, self.client, settings, self.counts, self.journal, self.notes)

    def launch(
        self,
        spec: BlobSpec,
        target: Target | Callable[[], Target],
        priority: int = 0,
        space: Space | None = None,
        make_supply: SupplyMaker | None = None,
    ) -> Download:
        """Start a download."""
        locate = target if callable(target) else lambda: target
        download = Download(spec, lambda _: locate(), space or Plenty(), self.workers, priority, make_supply)
        self.workers.submit([download])
        return download

    def fetch(self, spec: BlobSpec, target: Target | Callable[[], Target]) -> Verified:
        """Fetch a blob; raises what the download ends with."""
        return self.launch(spec, target).result.result(DEADLINE_S)

    def error_of(self, spec: BlobSpec, target: Target | Callable[[], Target]) -> BaseException:
        """What the download ends with, which must be an error."""
        error = self.launch(spec, target).result.exception(DEADLINE_S)
        assert error is not None
        return error

    def folder(self, spec: BlobSpec) -> Path:
        """Where the partial blob lies."""
        return self.layout.ingest / spec.key.id

    def check_all_is_back(self) -> None:
        """Every buffer and every place to hold one has been given back."""
        taken: list[memoryview] = []

        def take_all() -> None:
            while len(taken) < self._connections + _HELD + MAX_OPEN:
                taken.append(self.workers.buffers.take())

        thread = threading.Thread(target=take_all, daemon=True)
        thread.start()
        thread.join(100)
        assert not thread.is_alive(), f"{len(taken)} buffers came back"
        assert len({id(buffer) for buffer in taken}) == len(taken)
        assert all(self.workers.hold_slots.acquire(timeout=100) for _ in range(_HELD))
        assert not self.workers.hold_slots.acquire(blocking=False)

    def close(self) -> None:
        self.workers.stop()
        self.client.close()


@contextmanager
def open_engine(
    root: Path,
    connections: int = 8,
    *,
    per_origin: int | None = None,
    bandwidth: int | None = None,
    http: HttpSettings = HASTY,
    peer_http: HttpSettings = PEER_HTTP,
    origin_proxy: OriginProxySettings | None = None,
) -> Iterator[Engine]:
    """An engine for a `with` block; at its end all that it lent must be back."""
    settings = WorkerSettings(connections, per_origin or connections, bandwidth, Sealing.NONE, peer_http)
    engine = Engine(root, settings, http, origin_proxy)
    try:
        yield engine
    finally:
        engine.close()
    engine.check_all_is_back()


def spec_of(
    data: bytes,
    *,
    name: str = "model.bin",
    validator: str = '"v1"',
    sha256: str | None = "",
    git_oid: str | None = None,
    size: int | None = -1,
    origin: str = "http://origin",
) -> BlobSpec:
    """What fetching `data` asks for; by default its sha256 and size are promised."""
    promised = hashlib.sha256(data).hexdigest() if sha256 == "" else sha256
    id_ = promised or ingest_id("test", name, validator)
    key = IngestKey(id_, validator, len(data) if size == -1 else size)
    return BlobSpec(name, key, promised, git_oid, "http", origin)


def spec_of_size(sha256: str, size: int) -> BlobSpec:
    """What fetching a blob asks for that this process has not got."""
    return BlobSpec("model.bin", IngestKey(sha256, '"v1"', size), sha256, None, "http", "http://origin")


def local(path: Path) -> LocalTarget:
    """A file as the local source locates it."""
    return LocalTarget(path, local_validator(path.stat()))


def http(url: str, etag: str | None = '"v1"') -> HttpTarget:
    return HttpTarget(url, if_match=etag)


def ranges_of(requests: Iterable[Seen]) -> list[tuple[int, int | None]]:
    """What was asked for, in order: first and last byte."""
    asked = []
    for seen in requests:
        first, _, last = seen.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        asked.append((int(first), int(last) if last else None))
    return asked


def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def check_committed(layout: Layout, data: bytes, verified: Verified) -> None:
    """The blob is there as the design says, and nothing else of it is."""
    sha256 = hashlib.sha256(data).hexdigest()
    assert (verified.sha256, verified.size) == (sha256, len(data))
    blob = layout.blob(sha256)
    assert blob.stat().st_mode & 0o7777 == 0o444
    assert blob.stat().st_nlink == 1
    assert blob.stat().st_size == len(data)
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == sha256


def private_files(layout: Layout) -> set[str]:
    """Every file under `private/` but the notes of hashed blobs, by its path there."""
    files = (path for path in layout.private.rglob("*") if not path.is_dir() and path != layout.hashed)
    return {str(path.relative_to(layout.private)) for path in files}
