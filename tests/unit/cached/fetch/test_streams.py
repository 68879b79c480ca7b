"""Origins without ranges, and objects whose length no server says: one stream, from the start, and right."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Transient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import StreamTarget
from tests.support.fetching import (
    DEADLINE_S,
    MIB,
    Hold,
    check_committed,
    http,
    noise,
    open_engine,
    private_files,
    ranges_of,
    spec_of,
)
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Both, Fault, FlipBit, IgnoreRange, InChunks, RangeAs200, ResetAfter, Truncate


def _always(fault: Fault) -> list[Fault]:
    return [fault] * 20


def test_an_origin_without_ranges(tmp_path: Path, origin: HostileOrigin) -> None:
    """An origin that answers every range with all of it is read once from the start, with any number of connections."""
    data = noise()
    for connections in (1, 4):
        path = f"/{connections}"
        origin.put(path, data, etag='"v1"')
        origin.script(path, *_always(IgnoreRange()))
        with open_engine(tmp_path / path.strip("/"), connections) as engine:
            check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url(path))))
            assert len(private_files(engine.layout)) == 1


def test_a_range_beside_a_stream_spoils_nothing(tmp_path: Path, origin: HostileOrigin) -> None:
    """Of an origin that answers one range with all and another with a range, only one answer's bytes are used."""
    data, hold = noise(), Hold()
    first, second = Hold(), Both(hold, FlipBit(40 * MIB))
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", Both(first, IgnoreRange()), second, *_always(IgnoreRange()))
    with open_engine(tmp_path / "root", 2) as engine:
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        try:
            assert hold.reached.wait(DEADLINE_S)
            first.let_go.set()
            threading.Timer(1.0, hold.let_go.set).start()
            check_committed(engine.layout, data, download.result.result(DEADLINE_S))
        finally:
            hold.let_go.set()


def test_ranges_that_stop_being_served(tmp_path: Path, origin: HostileOrigin) -> None:
    """An origin that forgets its ranges midway is read once more from the start; what was there is not mixed in."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", Both(FlipBit(5), ResetAfter(40 * MIB)), Both(FlipBit(33 * MIB), ResetAfter(9 * MIB)))
    origin.script("/f", *_always(IgnoreRange()))
    with open_engine(tmp_path / "root", 1) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
    assert engine.counts.mismatches == 0


def test_ranges_under_status_200(tmp_path: Path, origin: HostileOrigin) -> None:
    """An origin that sends the range it was asked for under status 200 is fetched in parallel all the same."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", *_always(RangeAs200()))
    with open_engine(tmp_path / "root", 2) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
    assert sorted(ranges_of(origin.requests))[0] == (0, 32 * MIB - 1)
    assert engine.counts.received_bytes == len(data)


def test_unknown_size_and_digest(tmp_path: Path, origin: HostileOrigin) -> None:
    """An object of which nothing is promised is read to its clean end, chunked or not, empty or not."""
    with open_engine(tmp_path / "root", 4) as engine:
        for size in (0, 1, 4096, 5 * MIB + 1):
            for fault in (InChunks(100_000), IgnoreRange()):
                data = noise()[:size]
                path = f"/{size}/{type(fault).__name__}"
                origin.put(path, data, etag='"v1"')
                origin.script(path, fault)
                spec = spec_of(data, name=path, sha256=None, size=None)
                check_committed(engine.layout, data, engine.fetch(spec, http(origin.url(path))))


def test_a_stream_that_breaks_begins_again(tmp_path: Path, origin: HostileOrigin) -> None:
    """A broken stream is read again from the start; no byte of the broken one stays."""
    data = noise()[: 9 * MIB]
    origin.put("/f", data, etag='"v1"')
    broken = Both(FlipBit(0), Both(InChunks(MIB), ResetAfter(6 * MIB)))
    origin.script("/f", broken, Both(InChunks(MIB), Truncate(5 * MIB)), InChunks(MIB))
    with open_engine(tmp_path / "root", 2) as engine:
        spec = spec_of(data, sha256=None, size=None)
        check_committed(engine.layout, data, engine.fetch(spec, http(origin.url("/f"))))
    assert engine.counts.failures == ["reset", "bad_response"]


def test_a_stream_of_another_length_is_refused(tmp_path: Path, origin: HostileOrigin) -> None:
    """Chunked bytes that are more, or fewer, than the listing says are a bad response, though no digest is promised."""
    data = noise()[: 5 * MIB]
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        for n, size in enumerate((len(data) - 1, len(data) + 1)):
            origin.script("/f", *[Both(IgnoreRange(), InChunks(MIB))] * 3)
            error = engine.error_of(spec_of(data, name=str(n), sha256=None, size=size), http(origin.url("/f")))
            assert isinstance(error, HoldfastError)
            assert (error.code, error.permanent) == ("bad_response", True)
        assert private_files(engine.layout) == set()


class Made:
    """A stream that a source makes: `data` in uneven pieces, which breaks after `breaks_at` bytes if that is given."""

    def __init__(self, data: bytes, breaks_at: int | None) -> None:
        self._data = memoryview(data)
        self._breaks_at = breaks_at
        self._at = 0
        self.closed = False

    def readinto(self, view: memoryview) -> int:
        end = len(self._data) if self._breaks_at is None else self._breaks_at
        if self._at == end and self._breaks_at is not None:
            raise Transient("bad_response", "the layer is damaged", "it is tried again")
        count = min(len(view), end - self._at, 100_003)
        view[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("size", [0, 1000, 9 * MIB + 5])
@pytest.mark.parametrize("known", [True, False])
def test_a_stream_that_a_source_makes(tmp_path: Path, size: int, known: bool) -> None:
    """A file that is taken out of a layer is read once from its start, again after a failure, and every stream is
    closed; with its size known or not."""
    data, made = noise()[:size], list[Made]()

    def opened(_cancellation: Cancellation) -> Made:
        made.append(Made(data, size // 2 if not made else None))
        return made[-1]

    with open_engine(tmp_path / "root", 3) as engine:
        spec = spec_of(data, sha256=None, size=size if known else None)
        check_committed(engine.layout, data, engine.fetch(spec, StreamTarget(opened)))
    assert all(stream.closed for stream in made)
    assert len(made) == (0 if known and not size else 2)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_made_stream_of_another_length_is_refused(tmp_path: Path, more: int) -> None:
    """A stream that ends early, or goes on, is not the listed file."""
    data = noise()[: 2 * MIB]
    with open_engine(tmp_path / "root", 2) as engine:
        spec = spec_of(data, sha256=None, size=len(data) - more)
        error = engine.error_of(spec, StreamTarget(lambda _cancellation: Made(data, None)))
        assert isinstance(error, HoldfastError) and error.code == "bad_response"
        assert private_files(engine.layout) == set()
