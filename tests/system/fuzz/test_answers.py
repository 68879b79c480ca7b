"""Bytes from the network: whatever a server answers, the client gives the right bytes or an error of ours."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import HoldfastError
from cached.core.listing import check_names
from cached.sources.http.index import read_index
from cached.sources.s3.client import listed
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from tests.support.reading import read_all
from tests.system.fuzz.mutations import HOSTILE, spoiled, spoiled_bytes

SETTINGS = HttpSettings(header_timeout_s=2.0, stall_window_s=1.0, max_redirects=3)
BODY = bytes(range(100))
HEADERS = b'Content-Range: bytes 100-199/300\r\nETag: "v1"\r\nAccept-Ranges: bytes\r\n'
ANSWERS = (
    b"HTTP/1.1 206 Partial Content\r\n" + HEADERS + b"Content-Length: 100\r\n\r\n" + BODY,
    b"HTTP/1.1 206 Partial Content\r\n"
    + HEADERS
    + b"Transfer-Encoding: chunked\r\n\r\n64\r\n"
    + BODY
    + b"\r\n0\r\n\r\n",
    b"HTTP/1.0 206 Partial Content\r\n" + HEADERS + b"Connection: close\r\n\r\n" + BODY,
    b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Slow Down\r\nRetry-After: 5\r\nContent-Length: 4\r\n\r\nbusy",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial Content\r\n" + HEADERS + b"Content-Length: 100\r\n\r\n" + BODY,
)


class Parrot:
    """Says the same bytes to every client, and closes."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.answer = b""
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/file"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(self.answer)
                connection.shutdown(socket.SHUT_WR)


@contextmanager
def _parrot() -> Iterator[Parrot]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        parrot = Parrot(listening)
        thread = threading.Thread(target=parrot.run)
        thread.start()
        yield parrot
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture(scope="module")
def parrot() -> Iterator[Parrot]:
    with _parrot() as parrot:
        yield parrot


@given(answer=spoiled_bytes(*ANSWERS))
def test_an_answer_is_a_range_or_an_error(parrot: Parrot, answer: bytes) -> None:
    """What is given for a range is as long as the range and was in the answer; everything else is an error of ours."""
    parrot.answer = answer
    with closing(HttpClient(SETTINGS)) as client:
        try:
            given_bytes = read_all(client.get(HttpTarget(parrot.url), 100, 100, Cancellation()))
        except HoldfastError as error:
            assert error.code and error.message
            return
    assert len(given_bytes) == 100
    assert given_bytes in answer or b"chunked" in answer.lower()


@given(answer=spoiled_bytes(*ANSWERS))
def test_a_whole_answer_keeps_its_limit(parrot: Parrot, answer: bytes) -> None:
    """A small object is read whole, within its limit, or not at all."""
    parrot.answer = answer
    with closing(HttpClient(SETTINGS)) as client:
        for ask in (client.fetch, client.fetch_any_status):
            with suppress(HoldfastError):
                assert len(ask(HttpTarget(parrot.url), 80, Cancellation()).body) <= 80


HTML = b'<html><head><title>Index of /m/</title></head><a href="a.bin">a</a><a href="sub/">s</a><a href="../x">u</a>'
AUTOINDEX: list[dict[str, Any]] = [{"name": "a.bin", "type": "file", "size": 3}, {"name": "sub", "type": "directory"}]


@given(
    body=spoiled_bytes(HTML, b"<title>Index of /</title><a href=\"%2e%2e/x\"><a href='a%2fb'><a href=//h/x>")
    | spoiled(AUTOINDEX),
    kind=st.sampled_from(["text/html", "application/json", "text/plain", ""]),
)
def test_an_index_leads_only_below_itself(body: bytes, kind: str) -> None:
    """The names of an index that are taken for files stay below it, at the same origin."""
    base = "http://host/m/"
    entries = [entry for entry in read_index(body, kind, base) or [] if entry.problem is None]
    try:
        check_names(base, (entry.path for entry in entries))
    except HoldfastError:
        return
    for entry in entries:
        assert entry.url.startswith(base)
        assert ".." not in entry.path.split("/") and not entry.path.startswith("/") and "\x00" not in entry.path


PAGE = {"Contents": [{"Key": "p/a.bin", "Size": 3, "ETag": '"e"'}, {"Key": "p/sub/", "Size": 0, "ETag": '"f"'}]}


@given(data=spoiled(PAGE), extra=HOSTILE)
def test_a_listing_of_a_bucket_stays_below_its_prefix(data: bytes, extra: object) -> None:
    """Objects of a page, as the SDK hands it over, lie under the prefix and have a size; else the page is refused."""
    try:
        page = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(page, dict):
        return
    items = page.get("Contents", [])
    if not isinstance(items, list) or not all(
        isinstance(i, dict) and isinstance(i.get("ETag", ""), str) for i in items
    ):
        return  # the SDK's own parser gives a list of objects or none, and text for an ETag
    with suppress(HoldfastError):
        for found in listed({**page, "IsTruncated": extra}, "p/", "s3://b/p/"):
            assert found.key.startswith("p/") and found.size >= 0
