"""The head of a peer's request, read strictly."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.peers.pieces import PIECE_BYTES
from cached.peers.serving.request import BadRequest, PeerRequest, parse_head

PARTS = st.sampled_from(
    [b"GET", b" ", b"/v1/blobs", b"HTTP/1.1", b"\r\n", b"\n", b"\r", b"Range", b": ", b":", b"bytes=0-9", b"\0"]
)


@given(st.binary(max_size=200) | st.lists(PARTS, max_size=30).map(b"".join))
def test_any_bytes_are_a_request_or_refused(head: bytes) -> None:
    """Whatever arrives is one request, whose parts have no line end, or a `BadRequest`."""
    with contextlib.suppress(BadRequest):
        found = parse_head(head)
        for text in (found.path, *found.headers, *found.headers.values()):
            assert text.isprintable()
        with contextlib.suppress(BadRequest):
            start, end = found.parse_range()
            assert 0 <= start < end <= start + PIECE_BYTES


def test_a_request_is_read() -> None:
    """Method, path, headers by lower-case name, and the range as `[start, end)`."""
    found = parse_head(b"GET /v1/x HTTP/1.1\r\nHost: a:1\r\nRANGE: bytes=5-9")
    assert found == PeerRequest("GET", "/v1/x", {"host": "a:1", "range": "bytes=5-9"})
    assert found.parse_range() == (5, 10)


@pytest.mark.parametrize("text", ["bytes=\u0661-2", "bytes=1-2 ", "Bytes=1-2", "bytes=" + "9" * 30 + "-" + "9" * 31])
def test_a_range_has_one_form(text: str) -> None:
    """Other digits, spaces, another case and absurd numbers are no range."""
    with pytest.raises(BadRequest):
        PeerRequest("GET", "/", {"range": text}).parse_range()
