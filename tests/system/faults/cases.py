"""Every fault by name: where it strikes, and what becomes of the version.

Law: values only. A case is retried and right in the end (`Right`), a clear permanent error (`Wrong`), or told and tried
again for as long as it is wanted (`Tried`); what is counted is the reason in `holdfast_fetch_errors_total`.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate

from tests.support.origin_faults import (
    Content,
    Drip,
    DripHead,
    EachTime,
    Endless,
    Extra,
    Fault,
    FlipBit,
    Hangup,
    Headers,
    IgnoreRange,
    InChunks,
    RangeAs200,
    Raw,
    Redirect,
    ResetAfter,
    Stall,
    Status,
    Truncate,
)
from tests.support.stages import SIZE

SOURCES = ("http", "s3", "hf")
_HALF = SIZE // 2
_OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Right:
    """The version arrives, every byte right; this reason was counted on the way (None: nothing went wrong)."""

    reason: str | None = None


@dataclass(frozen=True)
class Wrong:
    """The version fails for good, with this code; its message has `said` in it. `counted`: as the source's error."""

    reason: str
    said: str = ""
    counted: bool = True


@dataclass(frozen=True)
class Tried:
    """The version is tried again, and says why."""

    reason: str


Outcome = Right | Wrong | Tried


@dataclass(frozen=True)
class Case:
    """`faults` for the next requests to `place`; `forever` for all others. `outcomes` where a source differs."""

    name: str
    outcome: Outcome
    faults: tuple[Fault, ...] = ()
    forever: Fault | None = None
    place: str = "bytes"
    sealed: bool = True
    sources: tuple[str, ...] = SOURCES
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)

    def of(self, source: str) -> Outcome:
        return self.outcomes.get(source, self.outcome)


def _later(seconds: int) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


def bytes_cases() -> list[Case]:
    """Faults on the way of a file's bytes: they come through one client, whatever the source."""
    wrong_range = Headers({"Content-Range": f"bytes 7-{SIZE + 6}/{SIZE + 7}"})
    refused = (
        Case("status-401", Wrong("unauthorized"), forever=Status(401)),
        Case("status-403-always", Wrong("forbidden"), forever=Status(403)),
        Case("status-404", Wrong("not_found"), forever=Status(404)),
        Case("status-410", Wrong("gone"), forever=Status(410)),
        Case("status-418", Wrong("http_418"), forever=Status(418)),
        Case("redirect-loop", Wrong("redirect_loop"), forever=EachTime(lambda n: Redirect(f"?hop={n}"))),
        Case("redirect-elsewhere", Wrong("insecure_redirect"), forever=Redirect("ftp://127.0.0.1/model.bin")),
        Case("bit-flips-always", Wrong("digest_mismatch", "expected"), forever=FlipBit(_HALF)),
        Case("wrong-range-always", Wrong("bad_response", "asked for bytes=0-"), forever=wrong_range),
        Case("truncated-always", Wrong("bad_response"), forever=Headers({"Content-Length": str(_HALF)})),
    )
    busy = (
        Case("status-429-seconds", Right("http_429"), (Status(429, {"Retry-After": "1"}),)),
        Case("status-503-date", Right("http_503"), (Status(503, {"Retry-After": _later(1)}),)),
        Case("status-503-nonsense", Right("http_503"), (Status(503, {"Retry-After": "soon"}),)),
        Case("status-429-an-age", Tried("http_429"), forever=Status(429, {"Retry-After": "9" * 30})),
        Case("status-500", Right("http_500"), (Status(500), Status(500))),
        Case("status-408", Right("http_408"), (Status(408),)),
        Case("status-799", Right("http_5xx"), (Status(799),)),
        Case("status-304", Right("bad_response"), (Status(304),)),
        Case("status-416", Right("bad_response"), (Status(416),)),
        Case("expired-signature", Right("forbidden"), (Status(403, {}, b"<Error><Code>AccessDenied</Code></Error>"),)),
        Case(
            "expired-token",
            Right("expired_signature"),
            (Status(400, {}, b"<Error><Code>ExpiredToken</Code></Error>"),),
        ),
    )
    broken = (
        Case("no-answer", Right("reset"), (Hangup(),)),
        Case("reset-in-the-head", Right("reset"), (Raw(b"HTTP/1.1 206 Par"),)),
        Case("reset-mid-body", Right("reset"), (ResetAfter(_HALF),)),
        Case("truncated", Right("bad_response"), (Truncate(_HALF),)),
        Case("silence", Right("stalled"), (Stall(None),)),
        Case("silence-mid-body", Right("stalled"), (Stall(_HALF),)),
        Case("slow-head", Right("stalled"), (DripHead(),)),
        Case("slow-body", Right("stalled"), (Drip(_HALF),)),
    )
    lies = (
        Case("extra-bytes", Right("bad_response"), (Extra(),)),
        Case("wrong-range", Right("bad_response"), (wrong_range,)),
        Case("broken-range", Right("bad_response"), (Headers({"Content-Range": "bytes 9-3/7"}),)),
        Case("no-range-given", Right("bad_response"), (Headers({"Content-Range": None}),)),
        Case("200-for-206", Right(), (IgnoreRange(),)),
        Case("range-as-200", Right(), (RangeAs200(),)),
        Case("chunked", Right(), (InChunks(1000),)),
        Case("bit-flip", Right("digest_mismatch"), (FlipBit(_HALF),)),
        Case("length-too-large", Right("bad_response"), (Headers({"Content-Length": str(SIZE + 9)}),)),
        Case("length-too-small", Right("bad_response"), (Headers({"Content-Length": str(SIZE - 9)}),)),
        Case("length-negative", Right("bad_response"), (Headers({"Content-Length": "-5"}),)),
        Case(
            "two-lengths", Right("bad_response"), (Raw(_OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345"),)
        ),
        Case("length-and-chunked", Right("bad_response"), (Headers({"Transfer-Encoding": "chunked"}),)),
        Case("odd-coding", Right("bad_response"), (Headers({"Transfer-Encoding": "gzip, chunked"}),)),
        Case("gzip", Right("bad_response"), (Content(gzip.compress(bytes(SIZE)), {"Content-Encoding": "gzip"}),)),
        Case("stored-gzip", Right(), (Headers({"Content-Encoding": "gzip"}),)),
        Case("stored-aws-chunked", Right(), (Headers({"Content-Encoding": "aws-chunked"}),), sealed=False),
        Case(
            "stored-gzip-unpromised",
            Right("bad_response"),
            (Headers({"Content-Encoding": "gzip"}),),
            sealed=False,
            sources=("http",),
        ),
        Case(
            "bad-chunk-size", Right("bad_response"), (Raw(_OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n"),)
        ),
        Case(
            "huge-chunk-size",
            Right("bad_response"),
            (Raw(_OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nhello"),),
        ),
        Case(
            "long-chunk",
            Right("bad_response"),
            (Raw(_OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n"),),
        ),
        Case("endless-headers", Right("bad_response"), (Raw(_OK + b"X-Filler: 1\r\n" * 5000),)),
        Case("endless-header", Right("bad_response"), (Raw(_OK + b"X: " + b"y" * 200_000),)),
        Case("endless-body", Right("bad_response"), (Endless(),)),
        Case("endless-hints", Right("bad_response"), (Raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50),)),
        Case("not-http", Right("bad_response"), (Raw(b"SSH-2.0-OpenSSH_9.9\r\n"),)),
        Case("endless-body-always", Wrong("bad_response"), forever=Endless()),
        Case(
            "another-etag",
            Right("source_changed"),
            (Headers({"ETag": '"other"'}),),
            sealed=False,
            sources=("http", "s3"),
        ),
    )
    return [*refused, *busy, *broken, *lies]


def listing_cases() -> list[Case]:
    """Faults of whatever says what a version has: a manifest, a listing, a page of the Hub's tree.

    S3's own library asks twice before it says that something went wrong.
    """
    deep = b"[" * 200_000
    common: tuple[tuple[str, Outcome, tuple[Fault, ...], Fault | None, dict[str, Outcome]], ...] = (
        ("status-401", Wrong("unauthorized"), (), Status(401), {"hf": Wrong("not_found", "or it is private")}),
        ("status-403", Wrong("forbidden"), (), Status(403), {"http": Wrong("not_found")}),
        ("status-503", Right("http_503"), (Status(503, {"Retry-After": "1"}),) * 2, None, {}),
        ("status-429-date", Right("http_429"), (Status(429, {"Retry-After": _later(1)}),) * 2, None, {}),
        ("status-500", Right("http_500"), (Status(500),) * 2, None, {}),
        ("no-answer", Right("reset"), (Hangup(),) * 2, None, {"s3": Right("connect")}),
        ("reset", Right("reset"), (ResetAfter(20),) * 2, None, {"s3": Right("connect")}),
        ("truncated", Right("bad_response"), (Truncate(20),) * 2, None, {"s3": Right("connect")}),
        ("silence", Right("stalled"), (Stall(None),) * 2, None, {}),
        ("silence-mid-body", Right("stalled"), (Stall(20),) * 2, None, {}),
        (
            "length-negative",
            Right("bad_response"),
            (Headers({"Content-Length": "-5"}),) * 2,
            None,
            {"s3": Right("connect")},
        ),
        ("gzip", Right("bad_response"), (Headers({"Content-Encoding": "gzip"}),) * 2, None, {}),
        ("not-http", Right("bad_response"), (Raw(b"SSH-2.0-OpenSSH_9.9\r\n"),) * 2, None, {"s3": Right("connect")}),
        ("redirect-loop", Wrong("redirect_loop"), (), EachTime(lambda n: Redirect(f"?hop={n}")), {}),
        ("empty", Wrong("bad_response"), (), Content(b""), {"http": Wrong("not_found"), "s3": Wrong("not_found")}),
        ("a-page", Wrong("bad_response"), (), Content(b"<html><body>Log in!<p></html>"), {"http": Wrong("not_found")}),
        ("deeply-nested", Wrong("bad_response"), (), Content(deep), {"http": Wrong("not_found")}),
        ("a-number", Wrong("bad_response"), (), Content(b"9" * 5000), {"http": Wrong("not_found")}),
    )
    return [
        Case(f"list-{name}", outcome, faults, forever, "listing", sealed=False, outcomes=different)
        for name, outcome, faults, forever, different in common
    ]
