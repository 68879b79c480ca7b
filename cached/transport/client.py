"""The HTTP client: ranged GETs into the caller's buffers, small fetches, and HEADs.

Law: blocking, for threads. Headers and credentials of a target go to the target's own origin and are dropped for good
by a redirect away from it. Every error is a `HoldfastError` that shows no credentials, or `Cancelled`.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import time
from dataclasses import dataclass, field, replace

from cached.contract.errors import Permanent, Transient
from cached.transport.body import Body, Exchange
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.connect import Connector
from cached.transport.connection.pool import IdlePool, Route
from cached.transport.connection.settings import HttpSettings
from cached.transport.connection.stream import Deadline, StallClock, Stream
from cached.transport.credentials import NetrcFile, basic
from cached.transport.errors import refusal
from cached.transport.pages import LOOKED_AT_BYTES, is_page_type, page_error, page_instead
from cached.transport.response import (
    Asked,
    Extent,
    bad_response,
    check_encoding,
    check_no_page_length,
    check_unchanged,
    extent_of,
    read_answer,
)
from cached.transport.target import Expected, HttpTarget
from cached.transport.urls import Address, Origin, display_url, next_hop

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Some servers know no HEAD, and a URL that is signed for GET refuses it.
_NO_HEAD = frozenset({403, 405, 501})
_EXCERPT_BYTES = 4096  # of an error's body: the code in S3's XML comes first
_MAX_PAGE_BYTES = 1024 * 1024  # what is longer, and of no page's type, is not looked into to explain an error
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*")
_OURS = frozenset({"host", "connection", "range", "accept-encoding", "if-match", "if-unmodified-since"})


@dataclass(frozen=True, slots=True)
class Response:
    """A small body, whole. `url`: where it came from after redirects, without user information."""

    status: int
    body: bytes = field(repr=False)
    headers: http.client.HTTPMessage = field(repr=False)
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Head:
    """What a HEAD says. `size` in bytes; `etag` only if strong, else `weak_etag`; `accepts_ranges` None where nothing
    is said; `url`: where it is after redirects, without user information."""

    size: int | None
    etag: str | None
    weak_etag: str | None
    last_modified: str | None
    accepts_ranges: bool | None
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    asked: Asked
    target: HttpTarget


class _Stale(Exception):
    """Control flow: the connection was closed before it gave one byte of an answer."""


class HttpClient:
    """Thread-safe. Connections are kept alive and reused; proxies, netrc and TLS authorities are read from the
    environment when it is made."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._netrc = NetrcFile()
        self._connector = Connector(settings)
        self._pool = IdlePool()

    def credentials(self, url: str) -> str | None:
        """The `Authorization` value that goes to `url` of itself: its user information, or the netrc file's for it."""
        return dict(self._own_headers(Address.parse(url), HttpTarget(url))).get("Authorization")

    def get(self, target: HttpTarget, offset: int, length: int | None, cancellation: Cancellation) -> Body:
        """Ask for `length` bytes (at least one; None: all) from `offset`. Close the body.

        Raises `Transient`, `Permanent` or `Cancelled`.
        """
        if length is not None and length < 1:
            raise ValueError(f"HTTP has no range of {length} bytes")
        request = _Request("GET", Asked(offset, length), target)
        return self._checked(self._follow(request, cancellation), request, cancellation)

    def fetch(self, target: HttpTarget, limit_bytes: int, cancellation: Cancellation) -> Response:
        """Read a whole small object; raises as `get` does, and `Permanent` (`too_large`) beyond `limit_bytes`."""
        request = _Request("GET", Asked(0, None), target)
        exchange = self._follow(request, cancellation)
        return _whole(exchange, self._checked(exchange, request, cancellation), limit_bytes)

    def ask(self, target: HttpTarget, limit_bytes: int, cancellation: Cancellation) -> Response:
        """Read a whole small answer, whatever its status: for a caller that knows what this server means by each.

        Raises as `fetch` does, but for statuses.
        """
        exchange = self._follow(_Request("GET", Asked(0, None), target), cancellation)
        try:
            check_encoding(exchange.answer, target, exchange.answer.length, exchange.where)
        except BaseException:
            exchange.drop()
            raise
        return _whole(
            exchange, self._body(exchange, Extent(0, exchange.answer.length, None), cancellation), limit_bytes
        )

    def look(self, target: HttpTarget, cancellation: Cancellation) -> Response:
        """The head of an answer to HEAD, whatever its status; a redirect is not followed but given. Raises as `ask`."""
        address = _address(target)
        own = self._own_headers(address, target)
        exchange = self._ask(address, _Request("HEAD", Asked(0, None), target), own, cancellation)
        exchange.keep(self._pool, cancellation)
        return Response(exchange.answer.status, b"", exchange.answer.headers, exchange.url)

    def head(self, target: HttpTarget, cancellation: Cancellation) -> Head:
        """Ask for the size and the validators of an object, and compare these with the target's; raises as `get`."""
        exchange = self._follow(_Request("HEAD", Asked(0, None), target), cancellation)
        exchange.keep(self._pool, cancellation)
        answer, size = exchange.answer, exchange.answer.length
        if answer.status in _NO_HEAD:
            request = _Request("GET", Asked(0, 1), target)
            exchange = self._follow(request, cancellation)
            with self._checked(exchange, request, cancellation) as body:
                body.readinto(memoryview(bytearray(1)))
                answer, size = exchange.answer, body.total
        elif answer.status != 200:
            raise refusal(answer, exchange.where, b"", time.time())
        check_unchanged(answer, target, exchange.where, exchange.url)
        check_encoding(answer, target, size, exchange.where)
        ranges = answer.headers.get("Accept-Ranges")
        accepts = "bytes" in ranges.lower() if ranges is not None else True if answer.status == 206 else None
        return Head(size, answer.etag, answer.weak_etag, answer.last_modified, accepts, exchange.url)

    def close(self) -> None:
        """Close the idle connections; a body that is still open closes its own."""
        self._pool.close()

    def _checked(self, exchange: Exchange, request: _Request, cancellation: Cancellation) -> Body:
        """The body, once the head says what was asked for."""
        try:
            check_unchanged(exchange.answer, request.target, exchange.where, exchange.url)
            self._check_status(exchange, cancellation)
            extent = extent_of(exchange.answer, request.asked, exchange.where)
            check_encoding(exchange.answer, request.target, extent.total, exchange.where)
            check_no_page_length(exchange.answer, request.target, extent.total, exchange.where)
        except Transient as error:
            self._raise_page(exchange, request, cancellation, error)
            raise
        except BaseException:
            exchange.drop()
            raise
        return self._body(exchange, extent, cancellation, request.target.expected)

    def _raise_page(self, exchange: Exchange, request: _Request, cancellation: Cancellation, error: Transient) -> None:
        """Raise the error for a web page in place of the expected file, where that is why the answer is wrong in itself
        (`error`); the exchange is over."""
        answer, expected = exchange.answer, request.target.expected
        content_type = answer.headers.get_content_type()
        from_the_start = answer.status == 200 or (answer.status == 206 and request.asked.offset == 0)
        if expected is None or not from_the_start:
            exchange.drop()
            return
        if not is_page_type(expected, content_type) and (answer.length is None or answer.length > _MAX_PAGE_BYTES):
            exchange.drop()
            return
        excerpt = b""
        with contextlib.suppress(Transient):
            excerpt = _read(self._body(exchange, Extent(0, answer.length, None), cancellation), LOOKED_AT_BYTES)
        found = page_instead(expected, content_type, excerpt)
        if found is not None:
            raise page_error(f"the file {expected.name!r}", exchange.where, found) from error

    def _check_status(self, exchange: Exchange, cancellation: Cancellation) -> None:
        answer = exchange.answer
        if answer.status in (200, 206):
            return
        excerpt = b""
        if answer.status in (400, 403):
            with contextlib.suppress(Transient):  # else the status alone must do
                excerpt = _read(self._body(exchange, Extent(0, answer.length, None), cancellation), _EXCERPT_BYTES)
        raise refusal(answer, exchange.where, excerpt, time.time())

    def _body(
        self, exchange: Exchange, extent: Extent, cancellation: Cancellation, expected: Expected | None = None
    ) -> Body:
        settings = self.settings
        exchange.stream.wait_with(StallClock(settings.stall_window_s, settings.stall_min_bytes, exchange.where))
        return Body(exchange, extent, self._pool, cancellation, expected)

    def _follow(self, request: _Request, cancellation: Cancellation) -> Exchange:
        """Ask, and go where redirects lead."""
        address = _address(request.target)
        own: tuple[tuple[str, str], ...] = self._own_headers(address, request.target)
        seen = {address.url}
        while True:
            exchange = self._ask(address, request, own, cancellation)
            if exchange.answer.status not in _REDIRECTS:
                return exchange
            self._leave(exchange, request, cancellation)
            location = exchange.answer.headers.get("Location")
            if location is None:
                raise bad_response(exchange.where, "a redirect without Location")
            following = next_hop(address, location)
            if following.origin != address.origin:
                own = ()
            if following.url in seen or len(seen) > self.settings.max_redirects:
                raise Permanent(
                    "redirect_loop",
                    f"{display_url(request.target.url)}: still redirected after {len(seen)} hops, "
                    f"now to {display_url(following.url)}",
                    "use the address of the file itself",
                )
            seen.add(following.url)
            address = following

    def _leave(self, exchange: Exchange, request: _Request, cancellation: Cancellation) -> None:
        """Keep the connection that gave a redirect where little is left on it: every range comes this way."""
        length = exchange.answer.length
        if request.method == "HEAD":
            exchange.keep(self._pool, cancellation)
        elif length is not None and length <= _EXCERPT_BYTES:
            with contextlib.suppress(Transient):
                _read(self._body(exchange, Extent(0, length, None), cancellation), length + 1)
        else:
            exchange.drop()

    def _own_headers(self, address: Address, target: HttpTarget) -> tuple[tuple[str, str], ...]:
        """What only the target's own origin gets to see."""
        if any(name.lower() == "authorization" for name, _ in target.headers):
            return target.headers
        if address.userinfo is not None:
            return (*target.headers, ("Authorization", basic(*address.userinfo)))
        authorization = self._netrc.authorization(address.origin.host)
        return (*target.headers, ("Authorization", authorization)) if authorization else target.headers

    def _ask(
        self, address: Address, request: _Request, own: tuple[tuple[str, str], ...], cancellation: Cancellation
    ) -> Exchange:
        """One request and the head of its answer, on a kept connection or a new one."""
        cancellation.check()
        route = Route(address.origin, self._connector.proxy_of(address.origin), _led_by(address))
        data = self._encode(address, route, request, own)
        kept = self._pool.take(route)
        if kept is not None:
            try:
                return self._talk(kept, data, address, route, cancellation)
            except _Stale:
                # The server closed it while it was idle, as it may: no fault, so no attempt is counted for it.
                cancellation.check()
        try:
            stream = self._connector.open(address.origin, route.chosen_by, cancellation)
            return self._talk(stream, data, address, route, cancellation)
        except _Stale as error:
            where = display_url(address.url)
            raise Transient("reset", f"{where}: closed without an answer", "it is tried again") from error.__cause__

    def _talk(
        self, stream: Stream, data: bytes, address: Address, route: Route, cancellation: Cancellation
    ) -> Exchange:
        where = display_url(address.url)
        try:
            stream.begin(cancellation, Deadline(self.settings.header_timeout_s, where))
            stream.send(data)
            return Exchange(read_answer(stream, where), stream, route, address.url)
        except BaseException as error:
            stream.close()
            if not isinstance(error, OSError):
                raise
            cancellation.check()
            if not stream.answered and not isinstance(error, TimeoutError):
                raise _Stale from error
            reason = error.strerror or str(error) or type(error).__name__
            raise Transient(
                "reset", f"{where}: {reason} before the answer was complete", "it is tried again"
            ) from error

    def _encode(self, address: Address, route: Route, request: _Request, own: tuple[tuple[str, str], ...]) -> bytes:
        via_proxy = route.proxy is not None and address.origin.scheme == "http"
        headers = [("Host", address.origin.netloc), ("User-Agent", self.settings.user_agent), ("Accept", "*/*")]
        headers.append(("Accept-Encoding", "identity"))
        if via_proxy and route.proxy is not None:
            headers.extend(route.proxy.headers)
        if request.asked.header is not None:
            headers.append(("Range", request.asked.header))
        if request.target.if_match is not None:
            headers.append(("If-Match", request.target.if_match))
        headers.extend((name, value) for name, value in own if name.lower() not in _OURS)
        lines = [f"{name}: {value}" for name, value in headers]
        for (name, _), line in zip(headers, lines, strict=True):
            if not _HEADER.fullmatch(line):
                raise Permanent("bad_header", f"the header {name!r} cannot be sent", "check the source's credentials")
        resource = address.url if via_proxy else address.resource
        return "\r\n".join([f"{request.method} {resource} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def _address(target: HttpTarget) -> Address:
    address = Address.parse(target.url)
    return replace(address, chosen_by=None if target.chosen_by is None else Address.parse(target.chosen_by).origin)


def _led_by(address: Address) -> Origin | None:
    """Which other host's redirects led here."""
    by = address.chosen_by
    return None if by is None or by.host == address.origin.host else by


def _whole(exchange: Exchange, body: Body, limit_bytes: int) -> Response:
    data = _read(body, limit_bytes + 1)
    if len(data) > limit_bytes:
        raise Permanent(
            "too_large",
            f"{exchange.where}: expected at most {limit_bytes} bytes",
            "check that the address is the right one",
        )
    return Response(exchange.answer.status, data, exchange.answer.headers, exchange.url)


def _read(body: Body, limit_bytes: int) -> bytes:
    """At most `limit_bytes` of `body`, which is closed afterwards."""
    data = bytearray()
    with body:
        while len(data) < limit_bytes:
            part = bytearray(min(64 * 1024, limit_bytes - len(data)))
            count = body.readinto(memoryview(part))
            if count == 0:
                break
            data += part[:count]
    return bytes(data)
