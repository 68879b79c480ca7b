"""A node in one thread: the daemon's own reconciler, version fetches, downloads, publisher, ledger, inventory
and store over a real tree, with a clock, a disk, an origin and a cluster that a test moves by hand.

Law: only what surrounds those parts is replaced: the threads (a job waits until the test does it), the byte path (a
download has the bytes it is given), the origin, the cluster, the clock and the disk's free space. Nothing happens
unless the test says so, so that the same choices always give the same life.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus
from cached.core.catalog import EMPTY_CATALOG, Catalog, parse_catalog
from cached.core.demand import PodWant
from cached.core.listing import Listing, RemoteFile
from cached.core.space import DiskSpace, Ledger, Reservation
from cached.daemon.metrics import DaemonMetrics
from cached.daemon.node_state import NodeState
from cached.daemon.opening import adopt_statuses
from cached.daemon.reconciler import Reconciler
from cached.fetch import downloads
from cached.fetch.blob import Verified
from cached.fetch.download import Download
from cached.fetch.downloads import Downloads, DownloadSpace
from cached.fetch.peers import Peers
from cached.fetch.pool.published_chains import PublishedChains
from cached.fetch.resolving.lister import SourceLister
from cached.fetch.trace import NoFetchTrace
from cached.fetch.version import VersionFetches
from cached.node import inventory, threads
from cached.node.cluster import AnnotatedPod, PodLife
from cached.node.inventory import Inventory
from cached.node.publisher import Publisher
from cached.node.status_files import StatusFiles
from cached.node.threads import Blocking
from cached.sources.base import Source, identity_of
from cached.store.blob import blobs, ingest
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk.root import Root
from cached.store.start import recovery
from cached.store.version import deletion
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import Target

P = ParamSpec("P")
T = TypeVar("T")

UNIT = 4096  # the size of a page, which is what a file system gives a file at least
ORIGIN = "file:///origin/"


def nobody_knows_it(name: str) -> bool:
    """Tell whether the origin says nothing of the digest of the blob called so."""
    return name.startswith(("unknown", "stream"))


@dataclass(frozen=True)
class Blob:
    """A file's content: `name` says what the origin tells of it (`stream…`: not even the size), `units` how long it
    is."""

    name: str
    units: int

    @property
    def size(self) -> int:
        return self.units * UNIT

    @property
    def sha256(self) -> str:
        return Digest.of(self.name.encode()).hex

    def remote(self) -> RemoteFile:
        """What a listing says of it."""
        promised = None if nobody_knows_it(self.name) else self.sha256
        size = None if self.name.startswith("stream") else self.size
        return RemoteFile(self.name, self.name, size, validator="v", sha256=promised)


def manifest_of(content: tuple[Blob, ...]) -> Manifest:
    """The manifest of a version that has these blobs."""
    return Manifest.build(FileEntry(blob.name, blob.sha256, blob.size) for blob in content)


class Clock:
    """Seconds that pass when the test says so; stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        """Never the same twice: what is used later is used later."""
        self.now += 1e-6
        return self.now


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose timers follow that clock. A task must always be ready to run, or it would really wait."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock.now


class Jobs(Executor):
    """Stands for a pool of threads: a job waits until the test has it done."""

    def __init__(self, before: Callable[[partial[Any]], None]) -> None:
        self.waiting: list[tuple[Future[Any], partial[Any]]] = []
        self._before = before

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        job = fn if isinstance(fn, partial) else partial(fn, *args, **kwargs)
        self._before(job)
        self.waiting.append((future, job))
        return future

    def do(self, index: int) -> Any:
        """Do a waiting job; returns what it returned, None where it raised."""
        future, job = self.waiting.pop(index)
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 - the job's caller gets it
            future.set_exception(error)
            return None
        future.set_result(result)
        return result

    def die(self) -> None:
        """Nothing that waits is ever done."""
        while self.waiting:
            self.waiting.pop()[0].cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.die()


class Disk:
    """A file system of `capacity` bytes with the root and others' files on it."""

    def __init__(self, root: Path, capacity: int) -> None:
        self._root = root
        self.capacity = capacity
        self.others = 0
        self._ours: int | None = None

    def changed(self) -> None:
        """The tree is another now."""
        self._ours = None

    @property
    def ours(self) -> int:
        """What the root's data takes, in bytes; a blob counts once however many names it has."""
        if self._ours is None:
            private = self._root / "private"
            files = (os.lstat(f"{at}/{name}") for at, _, names in os.walk(private) for name in names if is_data(name))
            self._ours = sum({found.st_ino: found.st_blocks * 512 for found in files}.values())
        return self._ours

    @property
    def free(self) -> int:
        return max(0, self.capacity - self.others - self.ours)

    def __call__(self) -> DiskSpace:
        return DiskSpace(capacity=self.capacity, free=self.free)


def is_data(name: str) -> bool:
    """Tell a blob, partial or whole, from records and locks."""
    return name == "data" or len(name) >= 64


class Origin:
    """Where everything comes from. `down`: it does not answer."""

    def __init__(self) -> None:
        self.contents: dict[str, tuple[Blob, ...]] = {}
        self.down: HoldfastError | None = None

    def open(self, uri: str) -> Source:
        return _Place(self, uri)


@dataclass
class _Place:
    origin: Origin
    display: str
    kind: str = "file"

    async def resolve(self) -> Listing:
        await asyncio.sleep(0)
        if self.origin.down is not None:
            raise self.origin.down
        return Listing(tuple(blob.remote() for blob in self.origin.contents[self.display]), identity_of(self.display))

    async def locate(self, file: RemoteFile) -> Target:
        raise AssertionError("nothing here asks where bytes are")

    async def aclose(self) -> None:
        """Nothing is held."""


class Bytes:
    """Stands for the workers: a download has the bytes that the test gives it."""

    def __init__(self, layout: Layout, disk: Disk, journal: DigestJournal, notes: HashNotes) -> None:
        self._layout = layout
        self._disk = disk
        self._journal = journal
        self._notes = notes
        self.downloads: list[Download] = []
        self.begun = 0

    def submit(self, downloads: Iterable[Download]) -> None:
        for download in downloads:
            self.downloads.append(download)
            self.begun += 1

    def changed(self, *_downloads: Download) -> None:
        """A download ended: what is called off before its first record leaves nothing on the disk."""
        for download in [each for each in self.downloads if each.result.done()]:
            self.downloads.remove(download)
            if download.result.exception() is not None and download.spec.key.size is None:
                download.left_bytes = 0
                ingest.forget(self._layout, download.spec.key.id)
                download.left_bytes = 0
                self._disk.changed()

    def give(self, download: Download, size: int) -> bool:
        """Have `size` bytes of the download's file on the disk; False where there was no room for them."""
        folder = self._layout.ingest / download.spec.key.id
        try:
            allotment_of(download).grow(size)
        except HoldfastError as error:
            download._settle(error)
            return False
        folder.mkdir(exist_ok=True)
        with (folder / "data").open("ab") as data:
            total = download.spec.key.size or size
            if total:
                os.posix_fallocate(data.fileno(), 0, total)
        download.left_bytes = ingest.allocated_bytes(folder)
        self._disk.changed()
        assert self._disk.others + self._disk.ours <= self._disk.capacity, "the disk is overfull"
        allotment_of(download).grow(size)
        return True

    def finish(self, download: Download, blob: Blob) -> None:
        """Commit the download's file, in the order of the real ones."""
        if not self.give(download, blob.size):
            return
        folder = self._layout.ingest / download.spec.key.id
        if download.spec.sha256 is None:
            self._journal.record({download.spec.key.id: blob.sha256})
        os.truncate(folder / "data", blob.size)
        fresh = blobs.commit(self._layout, folder / "data", blob.sha256)
        if fresh:
            self._notes.note(self._layout, [blob.sha256])
        download.placed = Verified(blob.sha256, blob.size, fresh)
        ingest.forget(self._layout, download.spec.key.id)
        self._disk.changed()
        download._settle(Verified(blob.sha256, blob.size, fresh))

    def fail(self, download: Download, error: HoldfastError) -> None:
        download.left_bytes = 0
        ingest.forget(self._layout, download.spec.key.id)
        download.left_bytes = 0
        self._disk.changed()
        download._settle(error)


def allotment_of(download: Download) -> DownloadSpace:
    space = download._space
    assert isinstance(space, DownloadSpace)
    return space


class WatchedLedger(Ledger):
    """A ledger that says so where it hands out what is not there."""

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, Reservation]:
        asks = any(self.partial_bytes(id_) < size for id_, size in sizes.items())
        reservations = super().reserve(sizes)
        use = self.compute_use()
        held = use.used + use.reserved + use.dying
        assert held <= use.budget or not asks, f"{held} bytes held of {use.budget}"
        return reservations


@dataclass
class Cluster:
    """The pods of the node, and what its API is told."""

    synced: bool = True
    labels: Mapping[str, str] | None = field(default_factory=dict)
    wants: dict[str, PodWant] = field(default_factory=dict)
    labelled: frozenset[Digest] = frozenset()
    held_back: list[Digest] = field(default_factory=list)

    def pods(self) -> tuple[PodWant, ...]:
        return tuple(self.wants.values()) if self.synced else ()

    def users(self) -> tuple[PodWant, ...]:
        return self.pods()

    def list_annotated(self) -> tuple[AnnotatedPod, ...]:
        return tuple(AnnotatedPod(each.uid, each.pod, (each,), is_ending=False) for each in self.pods())

    def list_unmounted(self) -> frozenset[str]:
        return frozenset()

    async def list_pods_now(self) -> tuple[PodWant, ...]:
        await asyncio.sleep(0)
        return self.pods()

    def published(self, digests: frozenset[Digest]) -> None:
        self.labelled = digests

    @asynccontextmanager
    async def withdrawn(self, digest: Digest) -> AsyncIterator[None]:
        self.held_back.append(digest)
        try:
            await asyncio.sleep(0)
            yield
        finally:
            self.held_back.remove(digest)

    def find_pod(self, uid: str) -> PodLife:
        return PodLife.UNKNOWN

    async def report_csi(self, *, ready: bool) -> None:
        """Nothing looks at it."""

    def tell_pods(self, find: Callable[[ModelRef], ModelStatus | None]) -> None:
        """Nothing listens."""

    def summarise(self, statuses: Iterable[ModelStatus], used: int, capacity: int) -> None:
        """Nothing listens."""

    def lost(self, refs: Iterable[ModelRef], reason: str) -> None:
        """Nothing listens."""

    def figures(self) -> Mapping[str, float]:
        return {}

    async def run(self, changed: Callable[[], None]) -> None:
        """The test calls `changed` itself."""


@dataclass(frozen=True)
class Limits:
    """What the daemon is started with."""

    quota: int | None
    high: float
    low: float


class Node:
    """One root through many lives of its daemon."""

    def __init__(self, root: Path, capacity: int, on_job: Callable[[partial[Any]], None]) -> None:
        self.layout = Layout(root)
        self.clock = Clock()
        self.disk = Disk(root, capacity)
        self.origin = Origin()
        self.cluster = Cluster()
        self.catalog: Catalog = EMPTY_CATALOG
        self._on_job = on_job
        self._last_used: dict[ModelRef, float] = {}  # as the leases' times on the disk, which no test can turn

    def boot(self, limits: Limits) -> None:
        """Start the daemon, in the order of `app`."""
        self.loop = Loop(self.clock)
        recovery.prepare(self.layout)
        recovered = recovery.recover(self.layout)
        self.disk.changed()
        self.jobs = Jobs(self._on_job)
        with patch.object(threads, "start_pool", lambda *_, **__: self.jobs):
            pool = Blocking(4)
        self.status_files = StatusFiles(self.layout.public, "node", _nothing)
        self.inventory = Inventory(self.layout, recovered)
        self.inventory.last_used = {ref: self._last_used.get(ref, 0.0) for ref in self.inventory.models}
        self.ledger = WatchedLedger(limits.quota, self.disk)
        self.ledger.count_all(recovered.on_disk)
        self.lock = Root(self.layout)
        journal = DigestJournal(self.layout.digests, recovered.digests)
        metrics = DaemonMetrics()
        notes = HashNotes(self.layout.hashed, recovered.hashed)
        self.bytes = Bytes(self.layout, self.disk, journal, notes)
        self.downloads = Downloads(self.layout, self.bytes, self.ledger)  # type: ignore[arg-type]  # what it uses of them
        self.publisher = Publisher(
            layout=self.layout,
            root=self.lock,
            inventory=self.inventory,
            status_files=self.status_files,
            ledger=self.ledger,
            blocking=pool,
            cluster=self.cluster,
            journal=journal,
            notes=notes,
            ignoring_own=contextlib.nullcontext,
        )
        self.transfers = VersionFetches(
            trace=NoFetchTrace(),
            layout=self.layout,
            ledger=self.ledger,
            downloads=self.downloads,
            status_files=self.status_files,
            publisher=self.publisher,
            blocking=pool,
            metrics=metrics,
            lister=SourceLister(lambda uri: pool.run(self.origin.open, uri), metrics, 600.0),
            peers=Peers(None, PublishedChains(HttpClient(HttpSettings())), _nothing),
        )
        self.state = NodeState(
            inventory=self.inventory,
            status_files=self.status_files,
            ledger=self.ledger,
            fetches=self.transfers,
            cluster=self.cluster,
            clock=self.clock.monotonic,
        )
        self.reconciler = Reconciler(
            state=self.state,
            downloads=self.downloads,
            publisher=self.publisher,
            metrics=metrics,
            loop=self.loop,
            high_watermark=limits.high,
            low_watermark=limits.low,
        )
        self.reconciler.resume(
            adopt_statuses(
                recovery.read_statuses(self.layout, recovered), self.status_files, self.inventory, recovered.lost
            )
        )
        self.reconciler.use_catalog(self.catalog)
        self.tasks = [self.loop.create_task(self.reconciler.run())]
        self.turn()

    def crash(self) -> None:
        """End the daemon as `kill -9` does, between two steps on the disk."""
        self._last_used = self.inventory.last_used
        self.jobs.die()
        for task in self.tasks:
            task.cancel()
        self.jobs.submit = _dead  # type: ignore[method-assign]
        self.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))
        self.tasks.clear()
        self.turn()
        self.loop.close()
        self.status_files.close()
        self.lock.close()

    def turn(self, times: int = 60) -> None:
        """Let the event loop go round."""

        async def around() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self.loop.run_until_complete(around())
        for task in [each for each in self.tasks if each.done()]:
            self.tasks.remove(task)
            task.result()

    def begin(self, act: Any) -> None:
        """Let a coroutine run beside the others."""
        self.tasks.append(self.loop.create_task(act))
        self.turn()

    def do_job(self, index: int) -> None:
        """Do one of the jobs that wait for a thread."""
        self.jobs.do(index % len(self.jobs.waiting))
        self.disk.changed()
        self.turn()

    def use_catalog(self, text: str) -> None:
        parsed = parse_catalog(text, EMPTY_CATALOG)
        assert not parsed.rejected, parsed.rejected
        self.catalog = parsed.catalog
        self.reconciler.use_catalog(self.catalog)

    # --- what a test compares --------------------------------------------------------------------------------------

    def content(self, ref: ModelRef) -> tuple[Blob, ...]:
        """What the origin has of a version."""
        return self.origin.contents[f"{ORIGIN}{ref.name}/{ref.version}"]

    def committed(self) -> dict[str, int]:
        """The committed blobs on the disk."""
        return {path.name: path.stat().st_size for path in self.layout.blobs.glob("*/*")}

    def left_over(self) -> int:
        """Bytes of partial blobs and of the quarantine on the disk."""
        partial_bytes = sum(ingest.allocated_bytes(folder) for folder in self.layout.ingest.iterdir())
        return partial_bytes + sum(path.stat().st_size for path in self.layout.quarantine.iterdir())


def is_eviction(job: partial[Any]) -> tuple[ModelRef, Digest] | None:
    """What a job evicts, if it does."""
    step = next((arg for arg in job.args if isinstance(arg, partial)), job)
    if step.func is not deletion.evict:
        return None
    _, ref, digest, *_ = step.args
    return ref, digest


@contextmanager
def fake_time(clock: Clock) -> Iterator[None]:
    """Let last uses follow the clock, and streams grow in small steps."""
    with (
        patch.object(inventory, "time", clock),
        patch.object(downloads, "_STEP_BYTES", 2 * UNIT),
        patch.object(downloads, "is_small", lambda _spec: False),  # these blobs stand for large ones
    ):
        yield


def refused() -> HoldfastError:
    return Permanent("not_found", "the origin has no such file", "publish it")


def unreachable() -> HoldfastError:
    return Transient("unreachable", "the origin does not answer", "wait")


def _nothing() -> None:
    """The root is there."""


def _dead(*_: object, **__: object) -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    return future
