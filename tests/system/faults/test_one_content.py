"""A file without promised digest and strong validator is one answer of its server, whole, or it is fetched again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, prefetched
from tests.support.http_server import serve_http

V1 = ModelRef("m", "v1")
MIB = 1024 * 1024
SIZE = 70 * MIB  # three ranges, were it asked for in ranges
EARLIER, LATER = "Mon, 02 Nov 2026 10:00:00 GMT", "Tue, 03 Nov 2026 10:00:00 GMT"
UNPROVEN: dict[str, dict[str, str]] = {
    "nothing": {},
    "weak": {"ETag": 'W/"1"'},
    "modified": {"Last-Modified": EARLIER},
}


pytestmark = pytest.mark.long


@dataclass
class Place:
    """One object, a letter over and over, which a test replaces at will. `hook` is called in a GET before each MiB with
    the number of that GET and of the bytes sent; it may raise `ConnectionError` to break the connection."""

    letter: bytes = b"a"
    size: int = SIZE
    headers: dict[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()  # headers that only HEAD gives
    hook: Callable[[int, int], None] = lambda number, sent: None
    gets: list[str | None] = field(default_factory=list)  # the Range of each GET
    url: str = ""

    def replace(self, headers: dict[str, str] | None = None, size: int = SIZE) -> None:
        self.letter, self.size = b"b", size
        self.headers = self.headers if headers is None else headers


@contextmanager
def served(place: Place) -> Iterator[Place]:
    """A server of `place`, with ranges, that answers a request with the object that is there when it comes; what it
    sends is what is there when it is sent, as where a file is written over."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            with suppress(ConnectionError):
                self._answer(with_body=True)
                return
            self.close_connection = True

        def _answer(self, *, with_body: bool) -> None:
            if self.path != "/m.bin":
                self.send_error(404)
                return
            given, size, asked = self.letter(), place.size, self.headers["Range"]
            first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
            start, end = int(first), min(size, int(last or size - 1) + 1)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("Content-Length", str(end - start))
            for name, value in place.headers.items():
                if not with_body or name not in place.hidden:
                    self.send_header(name, value)
            self.end_headers()
            if not with_body:
                return
            place.gets.append(asked)
            number = len(place.gets)
            for at in range(start, end, MIB):
                place.hook(number, at - start)
                self.wfile.write((given if not in_place else self.letter()) * (min(end, at + MIB) - at))
            place.hook(number, end - start)

        def letter(self) -> bytes:
            return place.letter

    in_place = bool(getattr(place.hook, "in_place", False))
    with serve_http(Handler) as host:
        place.url = f"http://{host}/m.bin"
        yield place


def _fetched(daemon: DaemonProcess, place: Place) -> bytes:
    """The letters of the file that becomes ready."""
    daemon.write_catalog({"m": prefetched(place.url)})
    daemon.start()
    daemon.wait_ready(V1)
    (data,) = daemon.files(V1).values()
    return bytes(sorted(set(data)))


@pytest.mark.parametrize("headers", UNPROVEN.values(), ids=UNPROVEN.keys())
def test_it_comes_in_one_answer(daemon: DaemonProcess, headers: dict[str, str]) -> None:
    """It is asked for once, from its first byte, without a range, and replaced after that it is what it was."""

    def hook(number: int, sent: int) -> None:
        if number == 1 and sent == 32 * MIB:
            place.replace()

    place = Place(headers=headers, hook=hook)
    with served(place):
        assert _fetched(daemon, place) == b"a"
        assert place.gets[0] is None and set(place.gets[1:]) <= {"bytes=0-0"}


@pytest.mark.parametrize("headers", UNPROVEN.values(), ids=UNPROVEN.keys())
def test_it_starts_over_after_a_break(daemon: DaemonProcess, headers: dict[str, str]) -> None:
    """Broken off and replaced, it comes anew from its first byte: nothing of the first answer is kept."""

    def hook(number: int, sent: int) -> None:
        if number == 1 and sent == 40 * MIB:
            place.replace()
            raise ConnectionError

    place = Place(headers=headers, hook=hook)
    with served(place):
        assert _fetched(daemon, place) == b"b"
        assert place.gets == [None, None]


@pytest.mark.parametrize("headers", UNPROVEN.values(), ids=UNPROVEN.keys())
def test_it_starts_over_after_a_crash(daemon: DaemonProcess, headers: dict[str, str]) -> None:
    """The daemon is killed in the middle, the object replaced: the next daemon resumes nothing."""
    arrived, let_go = threading.Event(), threading.Event()

    def hook(number: int, sent: int) -> None:
        if number == 1 and sent == 66 * MIB:
            arrived.set()
            let_go.wait(60)
            raise ConnectionError

    place = Place(headers=headers, hook=hook)
    with served(place):
        daemon.write_catalog({"m": prefetched(place.url)})
        daemon.start()
        assert arrived.wait(60)
        daemon.kill()
        let_go.set()
        place.replace()
        assert _fetched(daemon, place) == b"b"
        assert place.gets == [None, None]


@pytest.mark.parametrize(
    ("before", "after", "size"),
    [
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"2"'}, SIZE),
        ({"Last-Modified": EARLIER}, {"Last-Modified": LATER}, SIZE),
        ({"ETag": 'W/"1"', "Last-Modified": EARLIER}, {"ETag": '"2"', "Last-Modified": EARLIER}, SIZE),
        ({}, {}, SIZE + MIB),
        ({}, {}, SIZE - MIB),
    ],
    ids=["weak", "modified", "now-strong", "longer", "shorter"],
)
@pytest.mark.parametrize("during", [True, False], ids=["during", "before"])
def test_a_sign_of_change_is_source_changed(
    daemon: DaemonProcess, before: dict[str, str], after: dict[str, str], size: int, during: bool
) -> None:
    """Another weak ETag, date or length than was listed, with the answer or once it is over, throws away what came:
    the version is listed again, and is what the object is now."""

    def hook(number: int, sent: int) -> None:
        if number == 1 and sent == 40 * MIB:
            place.replace(after, size)
            if not during:
                raise ConnectionError

    hook.in_place = during  # type: ignore[attr-defined]
    place = Place(headers=before, hook=hook)
    with served(place):
        assert _fetched(daemon, place) == b"b"
    assert daemon.metric("holdfast_fetch_errors_total", source="http", reason="source_changed") >= 1
    broken = daemon.metric("holdfast_fetch_errors_total", source="http", reason="bad_response")
    assert broken == (0 if during else 1)


def test_a_range_without_the_etag_proves_nothing(daemon: DaemonProcess) -> None:
    """A server that gives the ETag to HEAD and not with ranges may have ignored If-Match: all comes in one answer."""

    def hook(number: int, sent: int) -> None:
        if number == 1 and sent == 32 * MIB:
            place.replace()

    place = Place(headers={"ETag": '"same"'}, hidden=("ETag",), hook=hook)
    with served(place):
        assert len(_fetched(daemon, place)) == 1
        assert place.gets[-1] is None
