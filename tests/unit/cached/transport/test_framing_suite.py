"""What every `Framing` promises, over a real socket: a length, chunks, and an end with the connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from cached.transport.body import Chunked, Counted, Framing, UntilClose
from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.connection.stream import EndOfStream, StallClock, Stream

DATA = bytes(range(256)) * 300
NEXT = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Case:
    """A framing, and how a server writes a body for it. `ends_by_itself`: without the end of the connection."""

    open: Callable[[Stream, int], Framing]
    encode: Callable[[bytes], bytes]
    ends_by_itself: bool


def in_chunks(data: bytes) -> bytes:
    """Chunks of 1, 4096 and 100,000 bytes in turn; an extension and a trailer besides."""
    parts, at, sizes = list[bytes](), 0, (1, 4096, 100_000)
    while at < len(data):
        part = data[at : at + sizes[len(parts) % 3]]
        parts.append(b"%x;note=1\r\n%b\r\n" % (len(part), part))
        at += len(part)
    return b"".join(parts) + b"0\r\nchecked: yes\r\n\r\n"


CASES = {
    "counted": Case(Counted, lambda data: data, ends_by_itself=True),
    "chunked": Case(lambda stream, _size: Chunked(stream, "http://origin/f"), in_chunks, ends_by_itself=True),
    "until close": Case(lambda stream, _size: UntilClose(stream), lambda data: data, ends_by_itself=False),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.ends_by_itself])
def delimited(request: pytest.FixtureRequest) -> Case:
    """A framing that says itself where the body ends."""
    return CASES[request.param]


@contextmanager
def stream_of(sent: bytes, *, closed: bool = True, cancellation: Cancellation | None = None) -> Iterator[Stream]:
    """A stream on which a server sends these bytes and then closes, or says nothing more."""
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            theirs.sendall(sent)
            if closed:
                theirs.shutdown(socket.SHUT_WR)
        over.wait(30)

    server = threading.Thread(target=serve)
    server.start()
    stream = Stream(ours, 0.05, cancellation or Cancellation(), StallClock(30, 1, "http://origin/f"))
    try:
        yield stream
    finally:
        over.set()
        stream.close()
        theirs.close()
        server.join()


def read_all(framing: Framing, most: int) -> bytes:
    """The body up to its clean end, in views of so many bytes."""
    found, buffer = bytearray(), bytearray(most)
    while received := framing.read(memoryview(buffer)):
        found += buffer[:received]
    return bytes(found)


@pytest.mark.parametrize("most", [1000, 4096, 1 << 20])
def test_the_bytes_come_out_as_they_went_in(case: Case, most: int) -> None:
    """Every byte of the body is given once, in order, whatever the views and the parts it came in."""
    with stream_of(case.encode(DATA), closed=not case.ends_by_itself) as stream:
        assert read_all(case.open(stream, len(DATA)), most) == DATA


def test_a_read_fills_no_more_than_its_view(case: Case) -> None:
    """A read gives at least one byte, and touches nothing beyond what it says it received."""
    with stream_of(case.encode(DATA), closed=not case.ends_by_itself) as stream:
        buffer = bytearray(b"?" * 100)
        received = case.open(stream, len(DATA)).read(memoryview(buffer)[:10])
        assert 1 <= received <= 10
        assert buffer == DATA[:received] + b"?" * (100 - received)


@pytest.mark.parametrize("data", [b"", b"x"])
def test_the_end_is_told_as_often_as_it_is_asked(case: Case, data: bytes) -> None:
    """After its last byte a body gives 0, also when asked again; an empty one from the start."""
    with stream_of(case.encode(data), closed=not case.ends_by_itself) as stream:
        framing = case.open(stream, len(data))
        assert read_all(framing, 4096) == data
        assert [framing.read(memoryview(bytearray(8))) for _ in range(3)] == [0, 0, 0]


def test_what_follows_the_body_is_left_to_the_next_answer(delimited: Case) -> None:
    """A body that ends by itself takes not one byte of what comes after it."""
    with stream_of(delimited.encode(DATA) + NEXT) as stream:
        assert read_all(delimited.open(stream, len(DATA)), 1 << 20) == DATA
        assert stream.readline() == NEXT


@pytest.mark.parametrize("missing", [1, len(DATA) // 2])
def test_a_body_cut_short_is_not_taken_for_whole(delimited: Case, missing: int) -> None:
    """Where the framing says how long the body is, a connection that closes earlier is an error."""
    with stream_of(delimited.encode(DATA)[:-missing]) as stream, pytest.raises(EndOfStream):
        read_all(delimited.open(stream, len(DATA)), 1 << 20)


def test_a_cancellation_ends_a_read_that_waits(case: Case) -> None:
    """A read that waits for bytes ends with `Cancelled` as soon as it is called off."""
    cancellation = Cancellation()
    with stream_of(case.encode(DATA)[:1000], closed=False, cancellation=cancellation) as stream:
        framing = case.open(stream, len(DATA))
        threading.Timer(0.1, cancellation.cancel).start()
        with pytest.raises(Cancelled):
            read_all(framing, 1 << 20)
