"""The HTTP client: ranged GETs into the caller's buffers, small fetches, POSTs and HEADs.

Law: blocking, for threads. Headers and credentials of a target go to its own origin only, or to the proxy that the
operator named for them (`origin_proxy.py`); a redirect to another origin drops them, except `Accept`, for the rest of
the request. The body of a POST never leaves its origin. Every error is a `HoldfastError` that shows no credentials, or
`Cancelled`.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.transport.body import Body, Exchange
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.connect import ConnectionKey, Connector
from cached.transport.connection.pool import IdlePool
from cached.transport.connection.settings import HttpSettings
from cached.transport.connection.stream import Deadline, StallClock, Stream
from cached.transport.credentials import NetrcFile, basic
from cached.transport.errors import status_error
from cached.transport.origin_proxy import OriginProxy, OriginProxySettings
from cached.transport.pages import is_page_type, page_error, page_instead
from cached.transport.response import (
    Extent,
    RequestedRange,
    ResponseHead,
    bad_response,
    check_encoding,
    check_no_page_length,
    check_unchanged,
    extent_of,
    read_head,
    source_changed,
)
from cached.transport.target import Expected, Headers, HttpTarget, Part
from cached.transport.urls import Address, display_url, next_hop

_LOCAL_CONNECT_S = 2.0  # to the origin proxy, which is on this node
_NOT_FOUND = 404
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})  # RFC 9110, 15.4: after the others a POST becomes a GET
# Some servers do not implement HEAD, and a URL that is signed for GET refuses it.
_NO_HEAD = frozenset({403, 405, 501})
_EXCERPT_BYTES = 4096  # shows a web page, or the code in the XML of an S3 error
_MAX_PAGE_BYTES = 1024 * 1024  # a longer body of no page's type is not read to explain an error
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0\u0100-\U0010ffff]*")
# The signatures of S3, Google Cloud Storage (both also in their older form) and Azure.
_SIGNED = re.compile(r"[?&](?:X-Amz-Signature|X-Goog-Signature|Signature|sig)=", re.IGNORECASE)
_OURS = frozenset(
    {"host", "connection", "range", "accept-encoding", "if-match", "if-unmodified-since", "content-length"}
    | {"transfer-encoding", "te", "upgrade", "expect"}
)


@dataclass(frozen=True, slots=True)
class Response:
    """A small response. `url`: its address after redirects, without user information. `ends_by_close`: it had no length
    and no chunks, so that nothing tells whether it is complete."""

    status: int
    body: bytes = field(repr=False)
    headers: http.client.HTTPMessage = field(repr=False)
    url: str = field(repr=False)
    ends_by_close: bool = False

    @property
    def redirect_url(self) -> str | None:
        """The absolute URL that a redirect leads to; None if this is none. Raises as a request that follows it does:
        `Permanent` (`insecure_redirect`) for one from TLS to plain HTTP, or to anything but HTTP."""
        if self.status not in _REDIRECTS:
            return None
        location = self.headers.get("Location")
        if location is None:
            raise bad_response(display_url(self.url), "a redirect without Location")
        return next_hop(Address.parse(self.url), location).url


@dataclass(frozen=True, slots=True)
class Head:
    """The metadata of an object from HEAD. `size` in bytes; `etag` only if strong, else `weak_etag`; `url`: its
    address after redirects, without user information."""

    size: int | None
    etag: str | None
    weak_etag: str | None
    last_modified: str | None
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    asked: RequestedRange
    target: HttpTarget
    cancellation: Cancellation
    body: bytes | None = field(default=None, repr=False)
    content: str | None = None


class _Stale(Exception):
    """Control flow: the connection was closed before the first byte of a response."""


class HttpClient:
    """Thread-safe; reuses connections. Proxies and netrc are the environment's at its creation, none with direct
    settings."""

    def __init__(self, settings: HttpSettings, origin_proxy: OriginProxySettings | None = None) -> None:
        """`origin_proxy`: what sends known content in place of its origin."""
        self.settings = settings
        self._origin_proxy = None if origin_proxy is None else OriginProxy(origin_proxy, time.monotonic)
        self._local_connector = Connector(replace(settings, connect_timeout_s=_LOCAL_CONNECT_S, is_direct=True))
        self._netrc = None if settings.is_direct else NetrcFile()
        self._connector = Connector(settings)
        self._pool = IdlePool()

    def credentials(self, url: str) -> str | None:
        """Return the default `Authorization` value for `url`: from its user information, or from the netrc file."""
        return dict(self._own_headers(Address.parse(url), HttpTarget(url))).get("Authorization")

    def get(
        self,
        target: HttpTarget,
        offset: int,
        length: int | None,
        cancellation: Cancellation,
        content: str | None = None,
    ) -> Body:
        """Request `length` bytes (at least one; None: all) from `offset`. The caller closes the body. `content`: the
        sha256 of the whole file, which the caller compares, as 64 hex digits: an origin proxy may send the body then,
        and a wrong one is told to `distrust`. Raises `Transient`, `Permanent` or `Cancelled`; ValueError for a
        `length` below 1."""
        if length is not None and length < 1:
            raise ValueError(f"HTTP has no range of {length} bytes")
        return self._open(target, offset, length, cancellation, content)[1]

    def distrust(self, content: str, name: str) -> None:
        """Ask the origin alone for the content of this sha256 from now on: the origin proxy sent other bytes of the
        file `name`."""
        if self._origin_proxy is not None:
            self._origin_proxy.distrust(content, name)

    def _open(
        self,
        target: HttpTarget,
        offset: int,
        length: int | None,
        cancellation: Cancellation,
        content: str | None = None,
    ) -> tuple[Exchange, Body]:
        part = target.part
        asked = RequestedRange(offset, length) if part is None else _range_in(part, offset, length)
        request = _Request("GET", asked, target, cancellation, content=content)
        exchange, body = self._open_checked(request)
        if part is None:
            return exchange, body
        if (body.start, body.length) != (asked.offset, asked.length):
            body.close()
            raise Permanent(
                "no_ranges",
                f"{display_url(target.url)}: expected a part of the object, found the whole: it serves no ranges",
                "use a server, or a proxy before it, that serves ranges",
            )
        body.start, body.total = offset, part.length
        return exchange, body

    def _open_checked(self, request: _Request) -> tuple[Exchange, Body]:
        exchange = self._follow(request)
        try:
            return exchange, self._checked(exchange, request)
        except HoldfastError as error:
            if exchange.origin_proxy is None:
                raise
            exchange.origin_proxy.record_failure(str(error))
        exchange = self._follow(replace(request, content=None))
        return exchange, self._checked(exchange, request)

    def fetch(self, target: HttpTarget, limit_bytes: int, cancellation: Cancellation) -> Response:
        """Fetch a small object. Raises as `get` does, and `Permanent` (`too_large`) beyond `limit_bytes`."""
        exchange, body = self._open(target, 0, None, cancellation)
        return _read_whole(exchange, body, limit_bytes)

    def fetch_any_status(self, target: HttpTarget, limit_bytes: int, cancellation: Cancellation) -> Response:
        """Fetch a small response of any status, for a caller that knows this server's. Raises as `fetch` otherwise."""
        return self._fetch_any(_Request("GET", RequestedRange(0, None), target, cancellation), limit_bytes)

    def post_any_status(
        self, target: HttpTarget, body: bytes, limit_bytes: int, cancellation: Cancellation
    ) -> Response:
        """Send `body` by POST, with its type in the target's headers; return the small response of any status. It may
        be sent twice where an idle connection was closed: only for requests that change nothing. Raises as `fetch`
        does, and `Permanent` (`insecure_redirect`) for a redirect that would give the body to another origin."""
        return self._fetch_any(_Request("POST", RequestedRange(0, None), target, cancellation, body), limit_bytes)

    def post(self, target: HttpTarget, body: bytes, cancellation: Cancellation) -> Body:
        """Send `body` by POST; return the body of the answer 200, as it comes. The caller closes it. Raises as `get`
        and `post_any_status` do."""
        request = _Request("POST", RequestedRange(0, None), target, cancellation, body)
        return self._checked(self._follow(request), request)

    def peek_any_status(self, target: HttpTarget, cancellation: Cancellation) -> Response:
        """Return the head of the response to a GET of the first byte, of any status, without following a redirect: a
        URL that a HEAD is redirected to may be signed for HEAD only. Its body is not read. Raises as `get` does."""
        address = _address(target)
        request = _Request("GET", RequestedRange(0, 1), target, cancellation)
        exchange = self._ask(address, request, self._own_headers(address, target))
        self._end_unread(exchange, request)
        return Response(exchange.answer.status, b"", exchange.answer.headers, exchange.url)

    def _fetch_any(self, request: _Request, limit_bytes: int) -> Response:
        exchange = self._follow(request)
        with self._any_body(exchange) as body:
            check_encoding(exchange.answer, request.target, exchange.answer.length, exchange.where)
            return _read_whole(exchange, body, limit_bytes)

    def head_any_status(self, target: HttpTarget, cancellation: Cancellation) -> Response:
        """Return the response to HEAD, of any status, without following a redirect. Raises as `head` does."""
        address = _address(target)
        request = _Request("HEAD", RequestedRange(0, None), target, cancellation)
        exchange = self._ask(address, request, self._own_headers(address, target))
        exchange.keep()
        return Response(exchange.answer.status, b"", exchange.answer.headers, exchange.url)

    def head(self, target: HttpTarget, cancellation: Cancellation) -> Head:
        """Return the size and the validators of an object, compared with the target's. Raises as `get` does."""
        exchange = self._follow(_Request("HEAD", RequestedRange(0, None), target, cancellation))
        exchange.keep()
        answer, size = exchange.answer, exchange.answer.length
        if answer.status in _NO_HEAD:
            request = _Request("GET", RequestedRange(0, 1), target, cancellation)
            exchange = self._follow(request)
            with self._checked(exchange, request) as body:
                body.readinto(memoryview(bytearray(1)))
                answer, size = exchange.answer, body.total
        elif answer.status != 200:
            raise status_error(answer, exchange.where, b"")
        check_unchanged(answer, target, exchange.where, exchange.url)
        check_encoding(answer, target, size, exchange.where)
        return Head(size, answer.etag, answer.weak_etag, answer.last_modified, exchange.url)

    def close(self) -> None:
        """Close the idle connections; an open body closes its own."""
        self._pool.close()

    def _checked(self, exchange: Exchange, request: _Request) -> Body:
        """Return the body after the head is checked against the request."""
        try:
            check_unchanged(exchange.answer, request.target, exchange.where, exchange.url)
            self._check_status(exchange, request.target)
            extent = extent_of(exchange.answer, request.asked, exchange.where)
            check_encoding(exchange.answer, request.target, extent.total, exchange.where)
            check_no_page_length(exchange.answer, request.target, extent.total, exchange.where)
        except BaseException as error:
            if isinstance(error, Transient):
                self._raise_page(exchange, request, error)
            exchange.drop()
            raise
        return self._body(exchange, extent, request.target.expected)

    def _raise_page(self, exchange: Exchange, request: _Request, error: Transient) -> None:
        """Raise the page error in place of `error` if the response is a web page and not the expected file."""
        answer, expected = exchange.answer, request.target.expected
        content_type = answer.headers.get_content_type()
        has_beginning = answer.status == 200 or (answer.status == 206 and request.asked.offset == 0)
        is_small = answer.length is not None and answer.length <= _MAX_PAGE_BYTES
        if expected is None or not has_beginning or not (is_small or is_page_type(expected, content_type)):
            return
        found = page_instead(expected, content_type, self._read_excerpt(exchange))
        if found is not None:
            raise page_error(f"the file {expected.name!r}", exchange.where, found) from error

    def _check_status(self, exchange: Exchange, target: HttpTarget) -> None:
        answer = exchange.answer
        if answer.status in (200, 206):
            return
        if answer.status == _NOT_FOUND and target.names_version:
            raise source_changed(exchange.where, "this version of the object is not there any more")
        has_code = answer.status in (400, 403)
        # A body that is read to its end leaves its connection to the next request.
        excerpt = self._read_excerpt(exchange) if has_code or _is_short(answer) else b""
        raise status_error(answer, exchange.where, excerpt if has_code else b"")

    def _read_excerpt(self, exchange: Exchange) -> bytes:
        """Return the beginning of a body, empty if the connection breaks. Ends the exchange."""
        with contextlib.suppress(Transient):
            return _read(self._any_body(exchange), _EXCERPT_BYTES)
        return b""

    def _any_body(self, exchange: Exchange) -> Body:
        return self._body(exchange, Extent(0, exchange.answer.length, None), None)

    def _body(self, exchange: Exchange, extent: Extent, expected: Expected | None) -> Body:
        settings = self.settings
        exchange.stream.wait_limit = StallClock(settings.stall_window_s, settings.stall_min_bytes, exchange.where)
        return Body(exchange, extent, expected)

    def _follow(self, request: _Request) -> Exchange:
        """Send the request and follow redirects."""
        address = _address(request.target)
        own = self._own_headers(address, request.target)
        seen = {address.url}
        while True:
            exchange = self._ask_origin_proxy(address, request, own) or self._ask(address, request, own)
            if exchange.answer.status not in _REDIRECTS or self.settings.is_direct:
                return exchange
            # Every range request passes through a redirect, so its connection is kept where that costs little.
            self._end_unread(exchange, request)
            location = exchange.answer.headers.get("Location")
            if location is None:
                raise bad_response(exchange.where, "a redirect without Location")
            following = next_hop(address, location)
            if request.body is not None:
                _check_post_redirect(exchange, following, address)
            if following.origin != address.origin:
                own = tuple(header for header in own if header[0].lower() == "accept")
            if following.url in seen or len(seen) > self.settings.max_redirects:
                raise Permanent(
                    "redirect_loop",
                    f"{display_url(request.target.url)}: still redirected after {len(seen)} hops, "
                    f"now to {display_url(following.url)}",
                    "use the address of the file itself",
                )
            seen.add(following.url)
            address = following

    def _end_unread(self, exchange: Exchange, request: _Request) -> None:
        """End an exchange whose body is not wanted; keep its connection where that costs little."""
        if request.method == "HEAD":
            exchange.keep()
        elif _is_short(exchange.answer):
            self._read_excerpt(exchange)
        else:
            exchange.drop()

    def _own_headers(self, address: Address, target: HttpTarget) -> Headers:
        """Return the headers for the target's own origin only."""
        if any(name.lower() == "authorization" for name, _ in target.headers):
            return target.headers
        if address.userinfo is not None:
            return (*target.headers, ("Authorization", basic(*address.userinfo)))
        if _SIGNED.search(address.resource):  # S3 answers 400 to a signed URL with a password beside it
            return target.headers
        authorization = None if self._netrc is None else self._netrc.authorization(address.origin.host)
        return (*target.headers, ("Authorization", authorization)) if authorization else target.headers

    def _ask(self, address: Address, request: _Request, own: Headers) -> Exchange:
        """Send one request on an idle or a new connection, and read the head of its response."""
        request.cancellation.check()
        origin, chosen_by = address.origin, address.chosen_by
        if chosen_by is not None and chosen_by.host == origin.host:
            chosen_by = None
        route = ConnectionKey(origin, self._connector.proxy_of(origin), chosen_by)
        data = self._encode(address, route, request, own)
        return self._send(self._connector, route, data, address, request.cancellation)

    def _ask_origin_proxy(self, address: Address, request: _Request, own: Headers) -> Exchange | None:
        """Send one request for known content to the origin proxy; return its response, None if the origin is to be
        asked. Raises as a request to the origin does for an address that it must not ask."""
        proxy, content, origin = self._origin_proxy, request.content, address.origin
        if proxy is None or content is None or self._connector.is_bypassed(origin):
            return None
        if not proxy.takes(origin, content, own):
            return None
        request.cancellation.check()
        self._connector.check_redirect(address.origin, address.chosen_by, request.cancellation)
        route = ConnectionKey(proxy.address, None, None)
        whole = content if request.target.part is None else None
        sent = tuple(header for header in own if header[0].lower() not in _OURS)
        headers = (("Host", proxy.address.netloc), *self._common_headers(own), *_range_headers(request.asked))
        data = _encode_head(request.method, address.resource, (*headers, *proxy.make_headers(origin, whole), *sent))
        try:
            exchange = self._send(self._local_connector, route, data, address, request.cancellation)
        except HoldfastError as error:
            proxy.record_failure(str(error))
            return None
        if exchange.answer.status in (200, 206):
            exchange.origin_proxy = proxy
            return exchange
        if proxy.judge(exchange.answer, display_url(address.url)):
            return exchange
        self._end_unread(exchange, request)
        return None

    def _send(
        self, connector: Connector, route: ConnectionKey, data: bytes, address: Address, cancellation: Cancellation
    ) -> Exchange:
        """Send a request on an idle or a new connection of `route`, and read the head of its response."""
        idle = self._pool.take(route)
        if idle is not None:
            try:
                return self._exchange(idle, data, address, route, cancellation)
            except _Stale:
                # A server may close an idle connection: no fault, so it does not count as an attempt.
                cancellation.check()
        try:
            stream = connector.open(route, cancellation)
            return self._exchange(stream, data, address, route, cancellation)
        except _Stale as error:
            where = display_url(address.url)
            raise Transient("reset", f"{where}: closed without an answer", "it is tried again") from error.__cause__

    def _exchange(
        self, stream: Stream, data: bytes, address: Address, route: ConnectionKey, cancellation: Cancellation
    ) -> Exchange:
        where = display_url(address.url)
        try:
            stream.begin(cancellation, Deadline(self.settings.header_timeout_s, where))
            stream.send(data)
            return Exchange(read_head(stream, where), stream, address.url, route, self._pool, cancellation)
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

    def _encode(self, address: Address, route: ConnectionKey, request: _Request, own: Headers) -> bytes:
        proxy = route.proxy if address.origin.scheme == "http" else None
        headers = [("Host", address.origin.netloc), *self._common_headers(own)]
        if request.body is not None:
            headers.append(("Content-Length", str(len(request.body))))
        if proxy is not None:
            headers.extend(proxy.headers)
        headers.extend(_range_headers(request.asked))
        if request.target.if_match is not None:
            headers.append(("If-Match", request.target.if_match))
        headers.extend((name, value) for name, value in own if name.lower() not in _OURS)
        resource = address.resource if proxy is None else address.url
        return _encode_head(request.method, resource, headers) + (request.body or b"")

    def _common_headers(self, own: Headers) -> Headers:
        """Return the headers of every request, with an `Accept` unless its `own` headers have one."""
        accept = () if any(name.lower() == "accept" for name, _ in own) else (("Accept", "*/*"),)
        return (("User-Agent", self.settings.user_agent), *accept, ("Accept-Encoding", "identity"))


def _range_headers(asked: RequestedRange) -> Headers:
    return () if asked.header is None else (("Range", asked.header),)


def _encode_head(method: str, resource: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return the head of a request. Raises `Permanent` (`bad_header`) for a header that is none."""
    lines = []
    for name, value in headers:
        lines.append(f"{name}: {value}")
        if not _HEADER.fullmatch(lines[-1]):
            raise Permanent("bad_header", f"the header {name!r} cannot be sent", "check the source's credentials")
    return "\r\n".join([f"{method} {resource} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def _range_in(part: Part, offset: int, length: int | None) -> RequestedRange:
    """Return the bytes of an object that are these bytes of a part of it."""
    return RequestedRange(part.start + offset, part.length - offset if length is None else length)


def _check_post_redirect(exchange: Exchange, following: Address, address: Address) -> None:
    """Raise unless a POST may be sent again to where it was redirected: its body may carry credentials."""
    if following.origin != address.origin:
        raise Permanent(
            "insecure_redirect",
            f"{exchange.where} redirects a POST to {display_url(following.url)}, another host",
            "use that address itself if it is the right one",
        )
    if exchange.answer.status not in _SAME_METHOD:
        raise bad_response(exchange.where, f"a redirect of a POST by {exchange.answer.status}")


def _address(target: HttpTarget) -> Address:
    address = Address.parse(target.url)
    return address if target.chosen_by is None else replace(address, chosen_by=Address.parse(target.chosen_by).origin)


def _is_short(answer: ResponseHead) -> bool:
    """Return whether a body is short enough to be read for the sake of its connection."""
    has_body = answer.status not in (204, 304)  # these may have a Content-Length nevertheless
    return has_body and answer.length is not None and answer.length <= _EXCERPT_BYTES


def _read_whole(exchange: Exchange, body: Body, limit_bytes: int) -> Response:
    announced = body.length or 0
    data = _read(body, limit_bytes + 1) if announced <= limit_bytes else b""
    if max(announced, len(data)) > limit_bytes:
        body.close()
        found = f", found {announced}" if announced else ""
        raise Permanent(
            "too_large",
            f"{exchange.where}: expected at most {limit_bytes} bytes{found}",
            "check that the address is the right one",
        )
    return Response(exchange.answer.status, data, exchange.answer.headers, exchange.url, body.ends_by_close)


def _read(body: Body, limit_bytes: int) -> bytes:
    """Return at most `limit_bytes` of `body` and close it."""
    parts, left, at_once = list[memoryview](), limit_bytes, max(64 * 1024, min(body.length or 0, 1024 * 1024))
    with body:
        while left:
            part = memoryview(bytearray(min(at_once, left)))
            count = body.readinto(part)
            parts.append(part[:count])
            left -= count
            if not count or body.received == body.length:
                break
    return b"".join(parts)
