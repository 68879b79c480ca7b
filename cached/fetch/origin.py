"""The origin of one blob: its bytes at the address of now, and whether what it sends is of the listed object.

Law: blocking, on the workers' threads; keeps no bytes. An address that has ended is renewed here, without a pause; the
download retries everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.fetch.blob import BlobSpec, NoRanges, Segment
from cached.fetch.bodies.local_file import LocalBody
from cached.fetch.bodies.stream_body import StreamBody
from cached.fetch.resolving.addresses import Addresses
from cached.transport.body import Body
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.response import no_end, source_changed
from cached.transport.target import HttpTarget, LocalTarget, StreamTarget, Target

_MAX_RENEWALS = 4  # of an address for one request: one is enough, unless other connections are refused at the same time
_ONE_READ_BYTES = 64 * 1024  # a server reads at least so much of a file at once

AnyBody = LocalBody | StreamBody | Body


class FailureMetrics(Protocol):
    """The count of errors. `kind` is the source's metric label."""

    def fetch_failed(self, kind: str, code: str) -> None: ...


class OriginWorkers(Protocol):
    """The workers, as they ask an origin."""

    client: HttpClient

    @property
    def metrics(self) -> FailureMetrics: ...


class Origin:
    """The origin of the blob `spec`, at the addresses that `locate` returns."""

    def __init__(self, spec: BlobSpec, locate: Callable[[Cancellation], Target], workers: OriginWorkers) -> None:
        self._spec = spec
        self._workers = workers
        self._addresses = Addresses(locate, time.monotonic)

    def drop_address(self) -> None:
        """Ask for another address before the next request: it may lead to a healthy server."""
        self._addresses.drop()

    def request(self, segment: Segment, cancellation: Cancellation, *, streaming: bool) -> AnyBody:
        """Request a segment, or with `streaming` the whole object. Raises `NoRanges` where the origin has it as a
        stream only, or may have sent another object's range; else as `HttpClient.get`."""
        length = None if streaming else segment.length
        target = self._addresses.current(cancellation)
        if isinstance(target, LocalTarget):
            return LocalBody(target, segment.start, length)
        if isinstance(target, StreamTarget):
            if not streaming and segment.start:
                raise NoRanges
            return StreamBody(target, cancellation)
        target, body = self._request_renewed(target, segment.start, length, cancellation)
        self._addresses.mark_accepted(target)
        if not streaming and not self._is_proven(target, body):
            body.close()
            raise NoRanges
        return body

    def _request_renewed(
        self, target: HttpTarget, offset: int, length: int | None, cancellation: Cancellation
    ) -> tuple[HttpTarget, Body]:
        """Return the body from `target`, or from the address that follows it where it has ended: that is no failure,
        so it costs no pause."""
        for _ in range(_MAX_RENEWALS):
            try:
                return target, self._get(target, offset, length, cancellation)
            except HoldfastError as error:
                if not self._addresses.mark_refused(target, error.code):
                    raise
                refusal = error
            self._workers.metrics.fetch_failed(self._spec.kind, refusal.code)
            following = self._addresses.current(cancellation)
            if not isinstance(following, HttpTarget):
                break
            target = following
        raise Transient(refusal.code, refusal.message, "another address is asked for") from refusal

    def _get(self, target: HttpTarget, offset: int, length: int | None, cancellation: Cancellation) -> Body:
        """Return the body, also from the origin proxy if the sha256 is known; a proxy that has an object of another
        length is not believed."""
        content, size = self._spec.sha256, self._spec.key.size
        body = self._workers.client.get(target, offset, length, cancellation, content)
        if content is None or not body.is_proxied or size is None or body.total in (None, size):
            return body
        body.close()
        self._workers.client.distrust(content, self._spec.name)
        return self._workers.client.get(target, offset, length, cancellation, content)

    def find_end(self, segment: Segment, body: AnyBody, *, streaming: bool) -> int | None:
        """Return the offset of the body's end, None if unknown; raises `Transient` if the object's size has changed."""
        expected = self._spec.key.size
        found = body.total if body.total is not None or not streaming else body.length
        if expected is not None and found is not None and found != expected:
            raise self._unlike_listing(f"expected {expected} bytes, the origin has {found}")
        return segment.end if not streaming else expected if expected is not None else found

    def check_end(self, body: AnyBody, position: int, end: int | None) -> None:
        """Check that a body, read to `position`, ended where it must; raises `Transient`."""
        if end is not None and position < end:
            raise Transient("bad_response", f"{self._spec.name}: the body ended at byte {position}, expected {end}", "")
        if end is None and isinstance(body, Body) and body.ends_by_close and not self._spec.is_promised:
            raise no_end(self._spec.name)
        if body.length is None and body.readinto(memoryview(bytearray(1))):
            raise self._unlike_listing(f"the body goes on after byte {position}")

    def check_after(self, received: int, cancellation: Cancellation) -> None:
        """Check that an unbound object, received in one response, still has the same size; raises `HoldfastError`. A
        server that reads a file during a write sends parts of both versions, unless it reads it at once."""
        if self._spec.is_bound or received <= _ONE_READ_BYTES:
            return
        target = self._addresses.current(cancellation)
        if not isinstance(target, HttpTarget) or target.part is not None or not target.answers_head:
            return
        try:
            head = self._workers.client.head(target, cancellation)
        except Permanent as error:
            raise source_changed(self._spec.name, f"after it was read: {error.message}") from error
        if head.size not in (None, received):
            raise source_changed(self._spec.name, f"{received} bytes were read, now it has {head.size}")

    def _is_proven(self, target: HttpTarget, body: Body) -> bool:
        """Return whether a response is certainly of the listed object: a server that sends no ETag with a range, as RFC
        9110, 15.3.7 requires, may have ignored `If-Match`. A whole or promised object needs no proof."""
        if self._spec.is_promised or target.if_match is None:
            return True
        is_whole = body.start == 0 and body.length in (None, self._spec.key.size)
        return is_whole or body.etag == target.if_match

    def _unlike_listing(self, problem: str) -> Transient:
        """Return the error for a response of another length than listed; an unbound object counts as changed."""
        if not self._spec.is_bound:
            return source_changed(self._spec.name, problem)
        remedy = "publish the version again if its files at the source were changed"
        return Transient("bad_response", f"{self._spec.name}: {problem}", remedy)
