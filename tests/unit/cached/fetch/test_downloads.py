"""One download per blob, however many wait; whatever becomes of it, the ledger says what the disk says."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent
from cached.core.space import DiskSpace, Ledger, NoSpace
from cached.fetch import downloads
from cached.fetch.blob import BlobSpec, Verified
from cached.fetch.download import Download
from cached.fetch.downloads import Downloads, DownloadSpace
from cached.store.blob import blobs
from cached.store.blob.ingest import allocated_bytes
from cached.store.disk import durable
from cached.store.start import recovery
from cached.transport.connection.cancel import Cancelled
from cached.transport.connection.settings import HttpSettings
from tests.support.fetching import MIB, Engine, Hold, check_committed, http, noise, open_engine, spec_of
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import FlipBit, InChunks, ResetAfter, Stall, Status

_CAPACITY = 200 * MIB


class Table:
    """Downloads over an engine, with a ledger over a disk of 200 MiB that holds this root alone."""

    def __init__(self, engine: Engine, quota: int | None = None, disk: Callable[[], DiskSpace] | None = None) -> None:
        self.engine = engine
        self.ledger = Ledger(quota, disk or self._disk)
        self.downloads = Downloads(engine.layout, engine.workers, self.ledger)

    def _disk(self) -> DiskSpace:
        taken = sum(path.lstat().st_blocks * 512 for path in self.engine.layout.private.rglob("data"))
        taken += sum(path.lstat().st_blocks * 512 for path in self.engine.layout.blobs.rglob("*/*"))
        return DiskSpace(_CAPACITY, _CAPACITY - taken)

    def join(self, spec: BlobSpec, url: str, who: str, priority: int = 0) -> tuple[Download, asyncio.Future[Verified]]:
        joined = self.downloads.join(spec, who, priority)
        if joined is not None:
            return joined
        allotment = self.reserve(spec)[spec.key.id]
        return self.downloads.start(spec, lambda _cancellation: http(url), allotment, who, priority)

    def reserve(self, *specs: BlobSpec) -> dict[str, DownloadSpace]:
        allotments: dict[str, DownloadSpace] = {}
        try:
            self.downloads.reserve(specs, allotments)
        except BaseException:
            for allotment in allotments.values():
                allotment.give_back()
            raise
        return allotments

    def accounts(self) -> tuple[int, int, int]:
        """Bytes committed, reserved, dying."""
        use = self.ledger.compute_use()
        return use.used, use.reserved, use.dying


@asynccontextmanager
async def tables(root: Path, connections: int = 2, quota: int | None = None) -> AsyncIterator[Table]:
    with open_engine(root, connections, http=HttpSettings()) as engine:
        yield Table(engine, quota)


async def _ended(result: asyncio.Future[Verified]) -> BaseException | None:
    await asyncio.wait([result])
    await asyncio.sleep(0)  # the table hears of it in the same turn of the loop
    return result.exception()


async def test_several_wait_for_one_download(tmp_path: Path, origin: HostileOrigin) -> None:
    """Two that want one blob get the same download and the same result; it is fetched and reserved once."""
    data, hold = noise()[: 5 * MIB], Hold()
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", hold)
    async with tables(tmp_path / "root") as table:
        spec = spec_of(data)
        first = table.join(spec, url, "a")
        second = table.join(spec, url, "b", priority=-1)
        assert first == second
        assert (table.accounts(), first[0].priority) == ((0, len(data), 0), -1)
        assert table.downloads.busy() == {spec.key.id}
        hold.let_go.set()
        check_committed(table.engine.layout, data, await first[1])
        assert await _ended(first[1]) is None
        assert table.accounts() == (len(data), 0, 0)
        assert table.downloads.busy() == frozenset()
        assert table.downloads.leave(spec, "a") is None
    assert len(origin.requests) == 1


async def test_a_download_that_waits_is_counted_right(tmp_path: Path, origin: HostileOrigin) -> None:
    """The blocks of a file whose first byte has yet to come are in the ledger, and a recount finds nothing wrong."""
    data = noise()[: 5 * MIB]
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", Stall(None))
    async with tables(tmp_path / "root") as table:
        spec = spec_of(data)
        table.join(spec, url, "a")
        while not origin.requests:
            await asyncio.sleep(0.01)
        taken = allocated_bytes(table.engine.layout.ingest / spec.key.id)
        assert table.ledger.partial_bytes(spec.key.id) == taken
        assert table.ledger.compute_use().free == _CAPACITY - len(data)
        with table.ledger.begin_recount() as correct:
            assert correct(recovery.measure(table.engine.layout)) == 0
        ending = table.downloads.leave(spec, "a")
        assert ending is not None
        assert isinstance(await _ended(ending), Cancelled)


async def test_what_a_file_system_allocates_ahead_is_no_reservation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a stream are reserved before they are written, also where its file has more blocks than are reserved, as
    on XFS, which allocates ahead of the end."""
    monkeypatch.setattr(downloads, "_STEP_BYTES", MIB)
    async with tables(tmp_path / "root") as table:
        spec = spec_of(b"", size=None)
        space = table.reserve(spec)[spec.key.id]
        folder = table.engine.layout.ingest / spec.key.id
        folder.mkdir()
        with (folder / "data").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 8 * MIB)
        for size in (1, 3 * MIB, 5 * MIB):
            space.grow(size)
            assert space.reserved >= size
        space.give_back()


async def test_the_last_to_leave_cancels(tmp_path: Path, origin: HostileOrigin) -> None:
    """A download goes on while one waits, with that one's urgency; when the last one leaves it is called off."""
    data, hold = noise()[: 5 * MIB], Hold()
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", hold)
    async with tables(tmp_path / "root") as table:
        spec = spec_of(data)
        download, result = table.join(spec, url, "a", priority=1)
        table.join(spec, url, "b", priority=5)
        assert table.downloads.leave(spec, "a") is None
        assert (download.priority, result.done()) == (5, False)
        table.downloads.reprioritize("b", 3)
        assert download.priority == 3
        assert table.downloads.leave(spec, "stranger") is None
        ending = table.downloads.leave(spec, "b")
        assert ending is result
        assert isinstance(await _ended(result), Cancelled)
        hold.let_go.set()
        assert table.accounts() == (0, 0, 0)


@pytest.mark.parametrize(
    ("fault", "code"), [(Status(404), "not_found"), (Status(412), "source_changed"), (FlipBit(3), "digest_mismatch")]
)
async def test_a_failure_gives_the_space_back(
    tmp_path: Path, origin: HostileOrigin, fault: Status | FlipBit, code: str
) -> None:
    """Whatever a download fails of, what it had set aside is free again, and what stays on disk is accounted for."""
    data = noise()[: 5 * MIB + 1]
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", fault, fault)
    async with tables(tmp_path / "root") as table:
        _, result = table.join(spec_of(data), url, "a")
        error = await _ended(result)
        assert isinstance(error, HoldfastError)
        assert error.code == code
        assert table.accounts() == (0, 0, 0)
        assert table.ledger.compute_use().free == _CAPACITY


@pytest.mark.parametrize("promised", [True, False])
async def test_a_blob_that_the_disk_takes_and_does_not_sync(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, promised: bool
) -> None:
    """Where the disk fails after a blob got its name, the download fails and the ledger counts it as the disk does."""
    data, sync = noise()[: 5 * MIB + 1], durable.fsync_dir
    url = origin.put("/f", data, etag='"v1"')
    async with tables(tmp_path / "root") as table:

        def failing(path: Path) -> None:
            if path.parent == table.engine.layout.blobs:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(path)

        monkeypatch.setattr(durable, "fsync_dir", failing)
        spec = spec_of(data) if promised else spec_of(data, sha256=None)
        error = await _ended(table.join(spec, url, "a")[1])
        assert isinstance(error, HoldfastError)
        assert error.code == "disk"
        assert blobs.has(table.engine.layout, hashlib.sha256(data).hexdigest())
        assert table.accounts() == (len(data), 0, 0)


async def test_a_partial_blob_is_dying_until_it_is_resumed(tmp_path: Path, origin: HostileOrigin) -> None:
    """What a cancelled download leaves counts as dying; a resumed download reserves only the rest."""
    data, hold = noise()[: 70 * MIB], Hold()
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", ResetAfter(8 * MIB), hold)
    async with tables(tmp_path / "root", connections=1) as table:
        spec = spec_of(data)
        table.join(spec, url, "a")
        await asyncio.to_thread(hold.reached.wait, 30)
        ending = table.downloads.leave(spec, "a")
        assert ending is not None
        await _ended(ending)
        hold.let_go.set()
        assert table.accounts() == (0, 0, len(data))
        _, result = table.join(spec, url, "b")
        assert table.accounts() == (0, len(data), 0)
        assert await _ended(result) is None
        assert table.accounts() == (len(data), 0, 0)


async def test_what_the_disk_gave_is_not_counted_twice(tmp_path: Path, origin: HostileOrigin) -> None:
    """While a blob is under way the disk shows its bytes as taken: of what is free only its size is missing, once."""
    data, hold = noise()[: 70 * MIB], Hold()
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", ResetAfter(5 * MIB), hold)
    async with tables(tmp_path / "root", connections=1) as table:
        _, result = table.join(spec_of(data), url, "a")
        await asyncio.to_thread(hold.reached.wait, 30)
        use = table.ledger.compute_use()
        hold.let_go.set()
        assert use.reserved == len(data)
        assert _CAPACITY - len(data) - MIB < use.free <= _CAPACITY - len(data)
        assert await _ended(result) is None


async def test_a_stream_reserves_as_it_grows(tmp_path: Path, origin: HostileOrigin) -> None:
    """A blob of unknown size sets space aside step by step, commits what it turned out to take, and no more."""
    data = noise()
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", InChunks(MIB))
    async with tables(tmp_path / "root") as table:
        _, result = table.join(spec_of(data, sha256=None, size=None), url, "a")
        check_committed(table.engine.layout, data, await result)
        assert await _ended(result) is None
        assert table.accounts() == (len(data), 0, 0)


@pytest.mark.parametrize(("quota", "others", "code"), [(66, 0, "too_large"), (80, 14, "no_space")])
async def test_a_stream_that_outgrows_the_space(
    tmp_path: Path, origin: HostileOrigin, quota: int, others: int, code: str
) -> None:
    """A stream that finds no more space ends with that, and leaves nothing: for good where it never fits, else saying
    how much was missing of all that came, as another try begins anew."""
    data = noise()
    url = origin.put("/f", data, etag='"v1"')
    origin.script("/f", InChunks(MIB))
    async with tables(tmp_path / "root", quota=quota * MIB) as table:
        table.ledger.count_blob("a" * 64, others * MIB)
        _, result = table.join(spec_of(data, sha256=None, size=None), url, "a")
        error = await _ended(result)
        assert isinstance(error, HoldfastError)
        assert error.code == code
        if isinstance(error, NoSpace):
            assert 66 * MIB < error.needed_bytes <= len(data)
        assert table.accounts() == (others * MIB, 0, 0)
        assert list(table.engine.layout.ingest.iterdir()) == []


async def test_the_same_bytes_by_two_ways_are_counted_once(tmp_path: Path, origin: HostileOrigin) -> None:
    """Two files of unknown digest that turn out to be equal are one blob in the ledger."""
    data = noise()[:MIB]
    async with tables(tmp_path / "root") as table:
        results = []
        for name in ("x", "y"):
            url = origin.put(f"/{name}", data, etag='"v1"')
            results.append(table.join(spec_of(data, name=name, sha256=None), url, "a")[1])
        assert [await _ended(result) for result in results] == [None, None]
        assert sorted(result.result().fresh for result in results) == [False, True]
        assert table.accounts() == (len(data), 0, 0)


async def test_reserving_is_all_or_nothing(tmp_path: Path) -> None:
    """Of several blobs the space of all is set aside, or of none; what never fits is said to."""
    small, large = noise()[: 40 * MIB], noise()[1 : 40 * MIB + 1]
    async with tables(tmp_path / "root", quota=70 * MIB) as table:
        with pytest.raises(Permanent) as never:
            table.reserve(spec_of(small), spec_of(large))
        assert never.value.code == "too_large"
        assert table.accounts() == (0, 0, 0)
        held = table.reserve(spec_of(small), spec_of(small, name="same content"))
        assert table.accounts() == (0, len(small), 0)
        with pytest.raises(NoSpace):
            table.reserve(spec_of(noise()[:MIB]), spec_of(large))
        assert table.accounts() == (0, len(small), 0)
        for allotment in held.values():
            allotment.give_back()
        assert table.accounts() == (0, 0, 0)


@pytest.mark.parametrize("change", ["join", "leave"])
async def test_a_changed_urgency_is_heard_at_once(tmp_path: Path, origin: HostileOrigin, change: str) -> None:
    """Where a joiner makes one download as urgent as another, or a leaver the other no more urgent, both advance."""
    data, other, hold = noise()[:MIB], noise()[1 : MIB + 1], Hold()
    url, other_url = origin.put("/f", data, etag='"v1"'), origin.put("/g", other, etag='"v1"')
    origin.script("/f", hold)
    async with tables(tmp_path / "root") as table:
        _, first = table.join(spec_of(data), url, "a", priority=0)
        table.join(spec_of(data), url, "b", priority=2)
        _, second = table.join(spec_of(other), other_url, "c", priority=2)
        await asyncio.to_thread(hold.reached.wait, 30)
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        if change == "join":
            table.join(spec_of(other), other_url, "d", priority=0)
        else:
            table.downloads.leave(spec_of(data), "a")
        done, _ = await asyncio.wait([second], timeout=100)
        hold.let_go.set()
        assert done
        assert [await _ended(result) for result in (first, second)] == [None, None]
