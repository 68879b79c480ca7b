"""The head of a response, and its check against the request.

Law: reads and checks the head; receives no body. No answer is trusted: one that contradicts itself or the request is
`bad_response`. Rules: RFC 9110 and 9112, and "Bad answers" in section 9 of the design.
"""

from __future__ import annotations

import http.client
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from cached.contract.errors import Transient
from cached.transport.connection.stream import Stream
from cached.transport.pages import is_page_type
from cached.transport.target import HttpTarget
from cached.transport.urls import origin_of

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [^\r\n]*)?\r?\n")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE | re.ASCII)
_BODILESS = (204, 304)  # RFC 9112, 6.3: no body follows, whatever the fields say
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
# Values of Content-Encoding that are no coding: `aws-chunked` describes an upload (some stores return it), the others
# are mistakes of an upload.
_NO_CODINGS = frozenset({"", "identity", "aws-chunked", "utf-8", "utf8", "binary", "none"})
_MAX_INTERIM_ANSWERS = 8


@dataclass(frozen=True, slots=True)
class RequestedRange:
    """The requested bytes: from `offset`, `length` of them, or all that follow."""

    offset: int
    length: int | None

    @property
    def header(self) -> str | None:
        """The `Range` header, None for the whole object."""
        if self.length is not None:
            return f"bytes={self.offset}-{self.offset + self.length - 1}"
        return f"bytes={self.offset}-" if self.offset else None


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of a response: from `start`, `length` of them, out of an object of `total`; None: unknown."""

    start: int
    length: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response. `length`: its Content-Length, None without one."""

    status: int
    headers: http.client.HTTPMessage
    keep_alive: bool
    chunked: bool
    length: int | None

    @property
    def etag(self) -> str | None:
        """The ETag if it is strong."""
        return strong_etag(self.headers)

    @property
    def weak_etag(self) -> str | None:
        """The ETag if it is weak or malformed."""
        value = (self.headers.get("ETag") or "").strip()
        return value if value and self.etag is None else None

    @property
    def last_modified(self) -> str | None:
        return self.headers.get("Last-Modified")


def bad_response(where: str, problem: str) -> Transient:
    """Return the error for an answer that is malformed or does not fit the request."""
    return Transient("bad_response", f"{where}: {problem}", "it is tried again; if it goes on, the server is at fault")


def no_end(where: str) -> Transient:
    """Return the error for an answer that ends with its connection, where nothing else tells what is all of it."""
    return Transient(
        "bad_response",
        f"{where}: the answer has no length and ends with its connection, so that a part looks like the whole",
        "let the server, and any proxy before it, send Content-Length or chunks, or write a manifest there "
        "(`holdfast publish`)",
    )


def read_head(stream: Stream, where: str) -> ResponseHead:
    """Read one head, skipping interim ones. Raises `Transient` (`bad_response`), or the OSError of the connection."""
    for _ in range(_MAX_INTERIM_ANSWERS):
        match = _STATUS_LINE.fullmatch(stream.readline())
        if match is None:
            raise bad_response(where, "the answer does not begin as HTTP/1.x does")
        headers = _read_headers(stream, where)
        if int(match[2]) >= 200:
            return _parse_head(match, headers, where)
    raise bad_response(where, "too many interim answers")


def extent_of(answer: ResponseHead, asked: RequestedRange, where: str) -> Extent:
    """Return the bytes in a 200 or 206. Raises `Transient` (`bad_response`) unless they are those requested, or all."""
    given = _content_range(answer, where)
    if answer.status == 206:
        return _partial(given, asked, where, answer.length)
    if answer.status != 200:
        raise bad_response(where, f"expected 200 or 206, found {answer.status}")
    if given is None or (given.start == 0 and given.length == given.total == answer.length):
        return Extent(0, answer.length, answer.length)
    # Some servers (rclone's S3) send the requested range with status 200.
    if answer.length is None:
        raise bad_response(where, "status 200 with a Content-Range and no Content-Length")
    return _partial(given, asked, where, answer.length)


def check_unchanged(answer: ResponseHead, target: HttpTarget, where: str, url: str) -> None:
    """Raise `Transient` (`source_changed`) if an answer from `url` has other validators than `target`."""
    if answer.status not in (200, 206, 416):
        return  # an error page has validators of its own
    _check_etag(answer, target.if_match, where)
    if target.weak_validators is not None and target.weak_validators.origin in (None, origin_of(url)):
        _check_etag(answer, target.weak_validators.etag, where)
        _check_date(answer, target.weak_validators.last_modified, where)


def _check_etag(answer: ResponseHead, expected: str | None, where: str) -> None:
    """Compare weakly (RFC 9110, 8.8.3.2): a proxy that changes an encoding may have made one of them weak."""
    found = answer.etag or answer.weak_etag
    if expected is not None and found is not None and found.removeprefix("W/") != expected.removeprefix("W/"):
        raise source_changed(where, f"expected the ETag {expected[:200]}, found {found[:200]}")


def _check_date(answer: ResponseHead, expected: str | None, where: str) -> None:
    found = answer.last_modified
    if expected is None or found is None or found == expected:
        return
    before, now = parse_http_date(expected), parse_http_date(found)
    if before is not None and now is not None and before != now:
        raise source_changed(where, f"last modified {found[:80]}, not {expected[:80]}")


def source_changed(where: str, problem: str) -> Transient:
    """Return the error for an object that differs from the listed one."""
    return Transient(
        "source_changed",
        f"{where} changed since it was listed: {problem}",
        "it is listed again; publish new content under a new version; servers that share an address must give one ETag "
        "and one date for one content, or the version needs a manifest (`holdfast publish`)",
    )


def check_encoding(answer: ResponseHead, target: HttpTarget, total: int | None, where: str) -> None:
    """Raise `Transient` (`bad_response`) for a content encoding, as none is requested. An object as long as the stored
    one (`total` bytes) is accepted: the header was stored with it."""
    given = ",".join(answer.headers.get_all("Content-Encoding", []))
    codings = [coding for each in given.split(",") if (coding := each.strip().lower()) not in _NO_CODINGS]
    if not codings or (target.stored_bytes is not None and target.stored_bytes == total):
        return
    found = "an unknown length" if total is None else f"{total} bytes"
    stored = "" if target.stored_bytes is None else f": {found} instead of the {target.stored_bytes} stored"
    raise Transient(
        "bad_response",
        f"{where}: Content-Encoding {', '.join(codings)[:40]!r}, which was not asked for{stored}",
        "let the server, and any proxy before it, send files as they are stored; where `holdfast publish` wrote a "
        "manifest, an encoding that is stored does no harm",
    )


def check_no_page_length(answer: ResponseHead, target: HttpTarget, total: int | None, where: str) -> None:
    """Raise `Transient` (`bad_response`) for a page's content type and another length than the expected file's."""
    expected = target.expected
    if expected is None or not is_page_type(expected, answer.headers.get_content_type()):
        return
    if total is not None and expected.size is not None and total != expected.size:
        raise bad_response(where, f"expected {expected.name!r} of {expected.size} bytes, found {total} bytes")


def _read_headers(stream: Stream, where: str) -> http.client.HTTPMessage:
    try:
        headers = http.client.parse_headers(stream)
    except http.client.HTTPException as error:
        raise bad_response(where, f"the header is too long ({type(error).__name__})") from error
    if headers.defects:
        raise bad_response(where, f"the header is malformed ({type(headers.defects[0]).__name__})")
    return headers


def strong_etag(headers: http.client.HTTPMessage) -> str | None:
    """Return the ETag of a response if it is strong."""
    value = (headers.get("ETag") or "").strip()
    return value if _STRONG_ETAG.fullmatch(value) else None


def _parse_head(status_line: re.Match[bytes], headers: http.client.HTTPMessage, where: str) -> ResponseHead:
    lengths = {value.strip() for value in headers.get_all("Content-Length", [])}
    codings = [value.strip().lower() for value in headers.get_all("Transfer-Encoding", [])]
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise bad_response(where, f"Content-Length {', '.join(sorted(lengths))[:80]!r}")
    if codings not in ([], ["chunked"]):
        raise bad_response(where, f"Transfer-Encoding {', '.join(codings)[:80]!r}")
    if codings and lengths:
        raise bad_response(where, "both Content-Length and Transfer-Encoding")
    connection = (headers.get("Connection") or "").lower()
    keep_alive = "close" not in connection if status_line[1] == b"1" else "keep-alive" in connection
    length, status = int(lengths.pop()) if lengths else None, int(status_line[2])
    if status in _BODILESS:
        return ResponseHead(status, headers, keep_alive, chunked=False, length=0)
    return ResponseHead(status, headers, keep_alive, bool(codings), length)


def _content_range(answer: ResponseHead, where: str) -> Extent | None:
    values = answer.headers.get_all("Content-Range", [])
    if not values:
        return None
    match = _CONTENT_RANGE.fullmatch(values[0].strip())
    if match is None or len(values) > 1:
        raise bad_response(where, f"Content-Range {', '.join(values)[:80]!r}")
    start, end = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if end < start or (total is not None and end >= total):
        raise bad_response(where, f"Content-Range {values[0][:80]!r} contradicts itself")
    return Extent(start, end - start + 1, total)


def _partial(given: Extent | None, asked: RequestedRange, where: str, content_length: int | None) -> Extent:
    if given is None or asked.header is None:
        raise bad_response(where, "a partial answer without Content-Range, or that was not asked for")
    to_the_end = given.total is None or given.start + (given.length or 0) == given.total
    fits = given.length == asked.length if asked.length is not None else to_the_end
    if given.start != asked.offset or not fits:
        end = given.start + (given.length or 0) - 1
        raise bad_response(where, f"asked for {asked.header}, answered bytes {given.start}-{end} of {given.total}")
    if content_length not in (None, given.length):
        raise bad_response(where, f"Content-Range gives {given.length} bytes, Content-Length {content_length}")
    return given


def parse_http_date(value: str) -> float | None:
    """Return the POSIX time of an HTTP date; None if it is invalid."""
    try:
        return parsedate_to_datetime(value).timestamp()
    except ValueError:
        return None


def sent_at(date: str | None) -> float:
    """Return the POSIX time of an answer with this `Date`, by the server's clock; by ours without a valid one."""
    sent = parse_http_date(date or "")
    return time.time() if sent is None else sent
