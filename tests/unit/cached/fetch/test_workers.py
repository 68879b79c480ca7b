"""Who is carried next: all connections help at once, the urgent goes first, a host gets no more than its share."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.fetch import workers
from cached.fetch.blob import Segment
from cached.fetch.download import Download
from cached.fetch.processor_demand import ProcessorDemand
from cached.fetch.supply import Assignment, OriginSupply
from cached.transport.connection.cancel import Cancelled
from cached.transport.connection.settings import HttpSettings
from tests.support.fetching import (
    DEADLINE_S,
    MIB,
    Hold,
    Paused,
    Plenty,
    check_committed,
    eventually,
    http,
    noise,
    open_engine,
    ranges_of,
    spec_of,
    spec_of_size,
)
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Status

_SEGMENT = 32 * MIB
_PATIENT = HttpSettings(header_timeout_s=3 * DEADLINE_S)  # no attempt of a test that fails goes on by itself


@pytest.mark.parametrize("processors", [1, 8])
def test_all_connections_begin_at_once(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    """The second connection does not wait for the first one's segment to end, nor for a processor while the first ones
    wait for the server."""
    monkeypatch.setattr(workers, "count_processors", lambda: processors)
    data, hold = noise(), Hold()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", hold)
    with open_engine(tmp_path / "root", 3) as engine:
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        try:
            eventually(lambda: len(origin.requests) == 3)
        finally:
            hold.let_go.set()
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))


@pytest.mark.parametrize("demand", [None, 0.9])
def test_no_more_connections_than_processors_can_serve(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, demand: float | None
) -> None:
    """Where the workers at hand need all processors, or may, no further connection is opened for a large blob, but for
    the first of two more blobs than there are processors; a small one, which is little more than its request, has one
    nevertheless, also after a large one that waits."""
    monkeypatch.setattr(workers, "count_processors", lambda: 1)
    monkeypatch.setattr(ProcessorDemand, "measure", lambda _self, _workers: demand)
    data, small = noise(), noise()[:MIB]
    paths = ["/first", "/second", "/third", "/fourth"]
    for path in paths:
        origin.put(path, data + path.encode(), etag='"v1"')
    origin.put("/small", small, etag='"v1"')
    with open_engine(tmp_path / "root", 8) as engine:
        busy = Paused(0)

        def launch(path: str) -> Download:
            return engine.launch(spec_of(data + path.encode(), name=path), http(origin.url(path)), space=busy)

        large = [launch(path) for path in paths[:3]]
        try:
            eventually(lambda: len(origin.requests) == 3)
            assert busy.reached.wait(DEADLINE_S)
            assert not threading.Event().wait(0.3)
            large.append(launch("/fourth"))
            other = engine.launch(spec_of(small, name="other"), http(origin.url("/small")))
            check_committed(engine.layout, small, other.result.result(DEADLINE_S))
            assert not threading.Event().wait(0.3)
            assert [seen.path for seen in origin.requests] == [*paths[:3], "/small"]
        finally:
            busy.let_go.set()
        for path, each in zip(paths, large, strict=True):
            check_committed(engine.layout, data + path.encode(), each.result.result(DEADLINE_S))


def test_small_blobs_keep_no_large_one_waiting(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large blob is begun while more small ones than there are processors are received: there may be no end of them
    at another origin."""
    monkeypatch.setattr(workers, "count_processors", lambda: 1)
    monkeypatch.setattr(ProcessorDemand, "measure", lambda _self, _workers: 0.9)
    data, hold = noise(), Hold()
    origin.put("/large", data, etag='"v1"')
    with open_engine(tmp_path / "root", 4, http=_PATIENT) as engine:
        small = []
        for n in range(3):
            origin.put(f"/{n}", data[n : n + 5000], etag='"v1"')
            origin.script(f"/{n}", hold)
            spec = spec_of(data[n : n + 5000], name=str(n), origin="http://elsewhere")
            small.append(engine.launch(spec, http(origin.url(f"/{n}"))))
        try:
            eventually(lambda: len(origin.requests) == 3)
            check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/large"))))
            assert not any(each.result.done() for each in small) and engine.counts.failures == []
        finally:
            hold.let_go.set()
        for each in small:
            each.result.result(DEADLINE_S)


class Load:
    """What the workers need of the processors: all, or nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        monkeypatch.setattr(workers, "count_processors", lambda: 1)
        monkeypatch.setattr(ProcessorDemand, "measure", lambda _self, _workers: 0.9 if self.is_full else 0.0)

    def check_second_worker(self, origin: HostileOrigin, hold: Hold, requests: int) -> None:
        """End the load once `hold` keeps one worker; check that another one then asks for another range of the same
        blob, the last of so many requests."""
        try:
            assert hold.reached.wait(DEADLINE_S)
            self.is_full = False
            eventually(lambda: len(origin.requests) == requests)
            first, second = ranges_of(origin.requests[-2:])
            assert first != second  # it is not the first one again
        finally:
            hold.let_go.set()


def test_a_free_processor_is_found_soon_after_a_fetch(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that waits to give memory back does not keep the others from looking for a free processor."""
    load, hold, data = Load(monkeypatch), Hold(), noise()
    monkeypatch.setattr(workers, "_RELEASE_S", 2 * DEADLINE_S)
    before = data[: 2 * MIB]  # for one worker: the other one goes on waiting, and is woken first
    origin.put("/before", before, etag='"v1"')
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", hold)
    with open_engine(tmp_path / "root", 2, http=_PATIENT) as engine:
        engine.fetch(spec_of(before, name="before"), http(origin.url("/before")))
        assert not threading.Event().wait(0.3)  # until all workers wait
        load.is_full = True
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        load.check_second_worker(origin, hold, 3)
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))


def test_work_that_comes_while_the_processors_are_taken_is_not_forgotten(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a blob has work for another worker at a moment without a free processor, it gets one once there is one."""
    load, hold, data = Load(monkeypatch), Hold(), noise()

    class Filling(Plenty):
        """The processors are taken from the moment that the file is there."""

        def grow(self, size: int) -> None:
            if not size:
                load.is_full = True

    origin.put("/f", data, etag='"v1"')
    origin.script("/f", hold)
    with open_engine(tmp_path / "root", 2, http=_PATIENT) as engine:
        download = engine.launch(spec_of(data), http(origin.url("/f")), space=Filling())
        load.check_second_worker(origin, hold, 2)
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))


def test_memory_goes_back_when_nothing_is_fetched(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some time after the last download no buffer takes memory, and the next download is right all the same."""
    monkeypatch.setattr(workers, "_RELEASE_S", 0.05)
    data = noise()[: 40 * MIB]
    with open_engine(tmp_path / "root", 3) as engine:
        for name in ("a", "b"):
            origin.put(f"/{name}", name.encode() + data, etag='"v1"')
            spec = spec_of(name.encode() + data, name=name)
            check_committed(engine.layout, name.encode() + data, engine.fetch(spec, http(origin.url(f"/{name}"))))
            eventually(lambda: not engine.workers.buffers.holds_pages)


@pytest.mark.parametrize("per_origin", [1, 8])
def test_the_urgent_takes_over_at_the_next_buffer(tmp_path: Path, origin: HostileOrigin, per_origin: int) -> None:
    """A more urgent download gets the connection within its segment, at the same host too; the other one ends right."""
    data, other = noise(), noise()[:MIB]
    origin.put("/slow", data, etag='"v1"')
    origin.put("/fast", other, etag='"v1"')
    with open_engine(tmp_path / "root", 1, per_origin=per_origin) as engine:
        paused = Paused(8 * MIB)
        slow = engine.launch(spec_of(data), http(origin.url("/slow")), priority=2, space=paused)
        assert paused.reached.wait(DEADLINE_S)
        fast = engine.launch(spec_of(other, name="other"), http(origin.url("/fast")), priority=1)
        paused.let_go.set()
        check_committed(engine.layout, other, fast.result.result(DEADLINE_S))
        check_committed(engine.layout, data, slow.result.result(DEADLINE_S))
    slow_ranges = ranges_of(seen for seen in origin.requests if seen.path == "/slow")
    assert [seen.path for seen in origin.requests][:3] == ["/slow", "/fast", "/slow"]
    assert slow_ranges[1] == (12 * MIB, _SEGMENT - 1)


def test_priority_may_change_under_way(tmp_path: Path, origin: HostileOrigin) -> None:
    """A download that becomes urgent overtakes one that began before it."""
    data, other = noise(), noise()[:MIB]
    origin.put("/slow", data, etag='"v1"')
    origin.put("/late", other, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        paused = Paused(8 * MIB)
        slow = engine.launch(spec_of(data), http(origin.url("/slow")), priority=1, space=paused)
        assert paused.reached.wait(DEADLINE_S)
        late = engine.launch(spec_of(other, name="other"), http(origin.url("/late")), priority=2)
        late.priority = 0
        engine.workers.changed(late)
        paused.let_go.set()
        late.result.result(DEADLINE_S)
        assert not slow.result.done()
        check_committed(engine.layout, data, slow.result.result(DEADLINE_S))


def test_a_host_gets_its_share_only(tmp_path: Path, origin: HostileOrigin) -> None:
    """No more than `per_origin` connections go to one host at once; another host gets its own at the same time."""
    lock, now, most = threading.Lock(), [0], [0]

    class Counting(Hold):
        def apply(self, reply, whole):  # type: ignore[no-untyped-def]
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            try:
                return super().apply(reply, whole)
            finally:
                with lock:
                    now[0] -= 1

    holds = [Counting() for _ in range(6)]
    with open_engine(tmp_path / "root", 4, per_origin=2) as engine:
        downloads = []
        for n, hold in enumerate(holds):
            data = noise()[n : n + 5000]
            origin.put(f"/{n}", data, etag='"v1"')
            origin.script(f"/{n}", hold)
            downloads.append(engine.launch(spec_of(data, name=str(n)), http(origin.url(f"/{n}"))))
        eventually(lambda: now[0] == 2)
        elsewhere = noise()[:MIB]
        origin.put("/elsewhere", elsewhere, etag='"v1"')
        engine.fetch(spec_of(elsewhere, name="e", origin="http://elsewhere"), http(origin.url("/elsewhere")))
        for hold in holds:
            hold.let_go.set()
        for download in downloads:
            download.result.result(DEADLINE_S)
    assert most[0] == 2


def test_a_dead_host_does_not_hold_up_another(tmp_path: Path, origin: HostileOrigin) -> None:
    """Blobs that wait to be tried again leave room for those of a host that answers."""
    with open_engine(tmp_path / "root", 2) as engine:
        waiting = []
        for n in range(12):
            data = noise()[n : n + 5000]
            origin.put(f"/{n}", data, etag='"v1"')
            origin.script(f"/{n}", Status(503, {"Retry-After": "3000"}))
            waiting.append(engine.launch(spec_of(data, name=str(n)), http(origin.url(f"/{n}"))))
        eventually(lambda: len(origin.requests) >= 8)
        good = noise()[: 5 * MIB]
        origin.put("/good", good, etag='"v1"')
        fine = engine.launch(spec_of(good, name="good", origin="http://alive"), http(origin.url("/good")))
        check_committed(engine.layout, good, fine.result.result(100))
        assert not any(download.result.done() for download in waiting)


def test_stop_waits_until_all_is_recorded(tmp_path: Path, origin: HostileOrigin) -> None:
    """When `stop` returns, every download has ended and its record is on the disk."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 2) as engine:
        paused = Paused(60 * MIB)
        spec = spec_of(data)
        download = engine.launch(spec, http(origin.url("/f")), space=paused)
        queued = engine.launch(spec_of(data[:9], name="queued"), http(origin.url("/f")), priority=7)
        assert paused.reached.wait(DEADLINE_S)

        def let_go() -> None:
            queued.result.exception(DEADLINE_S)  # it is called off by now, and so is the other one
            time.sleep(0.05)
            paused.let_go.set()

        threading.Thread(target=let_go).start()
        engine.workers.stop()
        assert download.result.done()
        assert (engine.folder(spec) / "state.json").exists()
        assert isinstance(download.result.exception(), Cancelled)
        assert isinstance(queued.result.exception(0), Cancelled)


def test_an_unforeseen_error_ends_its_download_alone(tmp_path: Path, origin: HostileOrigin) -> None:
    """A bug in one download is that download's permanent error; the connections go on with the others."""

    def broken() -> None:
        raise ZeroDivisionError("no such luck")

    data = noise()[:MIB]
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        error = engine.error_of(spec_of(b"x", name="broken"), broken)  # type: ignore[arg-type]
        assert isinstance(error, HoldfastError)
        assert (error.code, error.permanent) == ("internal", True)
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))


def test_blobs_that_wait_for_other_nodes_keep_none_from_the_workers(tmp_path: Path, origin: HostileOrigin) -> None:
    """However many blobs are open whose supply has nothing to ask for, the next blob is begun."""

    class Nothing(OriginSupply):
        def choose(self, segments: Sequence[Segment]) -> Assignment | None:
            return None

        def has_work(self, segments: Sequence[Segment]) -> bool:
            return False

    data = noise()
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 2) as engine:
        waiting = [
            engine.launch(spec_of_size(f"{n:064x}", 2 * MIB), http(origin.url("/none")), 0, None, lambda _: Nothing())
            for n in range(workers.MAX_OPEN + 2)
        ]
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))
        assert not any(each.result.done() for each in waiting)
        for each in waiting:
            each.cancel()
