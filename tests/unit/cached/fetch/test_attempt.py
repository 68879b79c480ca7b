"""Ranges in any order, hashed behind the contiguous front: from memory, or from the disk where memory is short."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.errors import DigestMismatch, HoldfastError
from cached.fetch import attempt as attempt_module
from cached.fetch import workers
from cached.fetch.attempt import Attempt
from cached.fetch.blob import Segment
from cached.store.blob.ingest import Ingest
from cached.store.start import recovery
from cached.transport.connection.cancel import Cancelled
from tests.support.fetching import (
    DEADLINE_S,
    MIB,
    Engine,
    Hold,
    check_committed,
    eventually,
    http,
    noise,
    open_engine,
    private_files,
    ranges_of,
    spec_of,
    spec_of_size,
)
from tests.support.mounts import mounted_image, mounted_ramfs
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Headers, ResetAfter

_SEGMENT = 32 * MIB


def test_the_first_range_last(tmp_path: Path, origin: HostileOrigin) -> None:
    """With the first range held back the others are written all the same, in bounded memory, and hashed afterwards."""
    data, hold = noise(), Hold()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", hold)
    with open_engine(tmp_path / "root", 2) as engine:
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        try:
            rest = len(data) - _SEGMENT
            eventually(lambda: engine.counts.received_bytes >= rest)
            assert not download.result.done()
        finally:
            hold.let_go.set()
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))
        assert engine.counts.received_bytes == len(data)


def test_several_with_their_first_ranges_last(tmp_path: Path, origin: HostileOrigin) -> None:
    """Blobs that share the memory for what is out of order do not wait for each other's pieces."""
    holds, downloads = [Hold() for _ in range(3)], []
    with open_engine(tmp_path / "root", 4) as engine:
        for n, hold in enumerate(holds):
            data = noise()[n : n + 40 * MIB]
            origin.put(f"/{n}", data, etag='"v1"')
            origin.script(f"/{n}", hold)
            downloads.append((data, engine.launch(spec_of(data, name=str(n)), http(origin.url(f"/{n}")))))
        try:
            eventually(lambda: engine.counts.received_bytes >= 3 * 8 * MIB)
        finally:
            for hold in reversed(holds):
                hold.let_go.set()
        for data, download in downloads:
            check_committed(engine.layout, data, download.result.result(DEADLINE_S))


def test_bytes_in_order_are_not_read_back(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that comes in order is hashed from memory, also while other blobs take all the room for pieces."""
    reads: list[int] = []
    real = Ingest.read

    def read(ingest: Ingest, buffer: memoryview, offset: int) -> int:
        reads.append(offset)
        return real(ingest, buffer, offset)

    monkeypatch.setattr(Ingest, "read", read)
    data = noise()
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        taken = 0
        while engine.workers.hold_slots.acquire(blocking=False):
            taken += 1
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
        engine.workers.hold_slots.release(taken)
    assert reads == []


@pytest.mark.parametrize("processors", [1, 64])
def test_blobs_at_once_on_few_processors(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    """A wrong bit is found and the other blobs are right, whether workers hash their pieces or hand them to another
    thread; also where a blob's first range comes last."""
    monkeypatch.setattr(workers, "count_processors", lambda: processors)
    datas = [noise()[n : n + 36 * MIB] for n in range(3)]
    hold = Hold()
    origin.put("/0", datas[0], etag='"v1"')
    origin.script("/0", hold)
    origin.put("/1", datas[1], etag='"v1"')
    origin.put("/2", datas[2][:-9] + b"x" + datas[2][-8:], etag='"v1"')
    with open_engine(tmp_path / "root", 4) as engine:
        downloads = [
            engine.launch(spec_of(data, name=str(n)), http(origin.url(f"/{n}"))) for n, data in enumerate(datas)
        ]
        try:
            check_committed(engine.layout, datas[1], downloads[1].result.result(DEADLINE_S))
            wrong = downloads[2].result.exception(DEADLINE_S)
        finally:
            hold.let_go.set()
        assert isinstance(wrong, DigestMismatch)
        check_committed(engine.layout, datas[0], downloads[0].result.result(DEADLINE_S))


def test_a_crash_loses_little(tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk syncs, a connection begins no range that would make a crash cost it more than 64 MiB."""
    monkeypatch.setattr(workers, "count_processors", lambda: 64)  # so that each segment is a request
    data = noise() + noise()[: 58 * MIB]
    synced, real = threading.Event(), os.fdatasync

    def slow(descriptor: int) -> None:
        assert synced.wait(DEADLINE_S)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        try:
            eventually(lambda: engine.counts.received_bytes >= 2 * _SEGMENT)
            assert not threading.Event().wait(0.3)
            assert ranges_of(origin.requests) == [(0, _SEGMENT - 1), (_SEGMENT, 2 * _SEGMENT - 1)]
        finally:
            synced.set()
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))


@pytest.mark.parametrize(
    ("piece_s", "ends"),
    [(0.001, [4, 6, 7, 8]), (4 / 192, [3, 5, 6, 7, 8]), (4 / 63, [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_bytes_that_come_fast_need_fewer_requests(tmp_path: Path, piece_s: float, ends: list[int]) -> None:
    """Where each processor has a blob, a request asks for as many segments as come in half a second, at most four, and
    leaves half of those that are left to others; the bytes are asked for once, in order."""
    with open_engine(tmp_path / "root", 1) as engine, alone_on_the_processors(engine) as attempt:
        segment = attempt.take_segment()
        assert segment == Segment(0, _SEGMENT)
        receive_one_piece(engine, attempt, 0, piece_s)
        attempt.end_segment(Segment(4 * MIB, _SEGMENT))
        asked = []
        while (segment := attempt.take_segment()) is not None:
            asked.append(segment)
            attempt.end_segment(None)
        edges = [4 * MIB, *(end * _SEGMENT for end in ends)]
        assert asked == [Segment(start, end) for start, end in itertools.pairwise(edges)]


def test_a_request_that_several_segments_share_ends_early(tmp_path: Path) -> None:
    """What is left of it is again the segments that it was made of, so that several connections can go on with it; a
    second connection to the same blob asks for one segment at a time."""
    with open_engine(tmp_path / "root", 2) as engine, alone_on_the_processors(engine) as attempt:
        assert attempt.take_segment() == Segment(0, _SEGMENT)
        receive_one_piece(engine, attempt, 0, 0.001)
        attempt.end_segment(Segment(4 * MIB, _SEGMENT))
        shared = attempt.take_segment()
        assert shared == Segment(4 * MIB, 4 * _SEGMENT)
        assert attempt.take_segment() == Segment(4 * _SEGMENT, 5 * _SEGMENT)
        receive_one_piece(engine, attempt, 4 * MIB, 0.001)
        attempt.end_segment(Segment(8 * MIB, shared.end))
        rest = [attempt.take_segment() for _ in range(4)]
        edges = [8 * MIB, _SEGMENT, 2 * _SEGMENT, 3 * _SEGMENT, 4 * _SEGMENT]
        assert rest == [Segment(start, end) for start, end in itertools.pairwise(edges)]
        for _ in range(5):
            attempt.end_segment(None)


@contextmanager
def alone_on_the_processors(engine: Engine) -> Iterator[Attempt]:
    """An attempt at a blob of eight segments, while each processor has a blob; it is cancelled at the end."""
    engine.workers.fills_processors = lambda: True  # type: ignore[method-assign]
    attempt = Attempt(spec_of_size("ab" * 32, 8 * _SEGMENT), engine.workers, stream=False)
    try:
        yield attempt
    finally:
        attempt.fail(Cancelled())
        assert isinstance(attempt.outcome.exception(DEADLINE_S), Cancelled)


def receive_one_piece(engine: Engine, attempt: Attempt, offset: int, seconds: float) -> None:
    """A piece of 4 MiB that took `seconds`."""
    buffer = engine.workers.buffers.take()
    assert len(buffer) == 4 * MIB
    attempt.accept(buffer, len(buffer), offset, seconds)


def test_a_joined_request_that_breaks(tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a connection breaks within a request of several segments the blob is whole all the same, and no byte that
    arrived is asked for again."""
    monkeypatch.setattr(workers, "count_processors", lambda: 1)
    monkeypatch.setattr(attempt_module, "_REQUEST_S", 1000)  # so that no link is too slow for it
    data = noise() + noise()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", Headers({}), ResetAfter(34 * MIB))
    with open_engine(tmp_path / "root", 1) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
        assert engine.counts.received_bytes < len(data) + MIB
    assert ranges_of(origin.requests)[1] == (_SEGMENT, 3 * _SEGMENT - 1)


def test_a_sync_that_fails_ends_the_download(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk cannot make bytes durable the download ends with that, and those bytes count for nothing later."""
    data, failures, real = noise(), [1], os.fdatasync

    def fail_once(descriptor: int) -> None:
        if failures:
            failures.pop()
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_once)
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        spec = spec_of(data)
        error = engine.error_of(spec, http(origin.url("/f")))
        assert isinstance(error, HoldfastError)
        assert (error.code, error.permanent) == ("disk", False)
        before = engine.counts.received_bytes
        check_committed(engine.layout, data, engine.fetch(spec, http(origin.url("/f"))))
        assert engine.counts.received_bytes - before == len(data)


@pytest.mark.parametrize("sha256", ["", None])
def test_a_disk_that_refuses_the_last_step(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, sha256: str | None
) -> None:
    """A commit that the disk refuses ends the download with an error of ours, and the next one goes through."""
    data, real = noise(), os.rename
    broken = [True]

    def full(source: object, target: object) -> None:
        if broken and str(target).endswith("state.json" if sha256 is None else hashlib.sha256(data).hexdigest()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)  # type: ignore[arg-type]

    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 2) as engine:
        monkeypatch.setattr(os, "rename", full)
        spec = spec_of(data, sha256=sha256)
        error = engine.error_of(spec, http(origin.url("/f")))
        assert isinstance(error, HoldfastError)
        assert (error.code, error.permanent) == ("no_space", False)
        broken.clear()
        check_committed(engine.layout, data, engine.fetch(spec, http(origin.url("/f"))))


def test_an_unknown_digest_is_noted(tmp_path: Path, origin: HostileOrigin) -> None:
    """A file whose digest no source promised leaves a note of what it became, and the next start takes its word."""
    data = noise()[:5000]
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        spec = spec_of(data, sha256=None)
        verified = engine.fetch(spec, http(origin.url("/f")))
        check_committed(engine.layout, data, verified)
        assert private_files(engine.layout) == {f"blobs/{verified.sha256[:2]}/{verified.sha256}", "digests.jsonl"}
        assert recovery.recover(engine.layout).digests == {spec.key.id: verified.sha256}


@pytest.mark.parametrize("size_known", [True, False])
def test_a_full_disk(tmp_path: Path, origin: HostileOrigin, size_known: bool) -> None:
    """A disk that is full ends the download with that, keeps nothing of it, and once there is room it goes through."""
    data = noise()[: 40 * MIB]
    origin.put("/f", data, etag='"v1"')
    with mounted_image(tmp_path / "disk", "ext4", 100 * MIB) as disk, open_engine(disk / "root", 2) as engine:
        filler = disk / "filler"
        filler.write_bytes(bytes(60 * MIB))
        spec = spec_of(data, size=len(data) if size_known else None)
        error = engine.error_of(spec, http(origin.url("/f")))
        assert isinstance(error, HoldfastError)
        assert (error.code, error.permanent) == ("no_space", False)
        assert os.listdir(engine.layout.ingest) == []
        filler.unlink()
        check_committed(engine.layout, data, engine.fetch(spec, http(origin.url("/f"))))


def test_without_direct_access_and_preallocation(tmp_path: Path, origin: HostileOrigin) -> None:
    """A file system that knows neither O_DIRECT nor fallocate is written through the page cache, as rightly."""
    data, hold = noise()[: 70 * MIB - 3], Hold()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", hold)
    with mounted_ramfs(tmp_path / "disk") as disk, open_engine(disk / "root", 2) as engine:
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(disk / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        try:
            eventually(lambda: engine.counts.received_bytes >= len(data) - _SEGMENT)
        finally:
            hold.let_go.set()
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))
