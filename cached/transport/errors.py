"""Errors for HTTP statuses other than success: retry, or tell a person what to do.

Law: no I/O. Maps a status, its headers and the beginning of its body to one error.
"""

from __future__ import annotations

import re
from email.message import Message

from cached.contract.errors import HoldfastError, Permanent, Transient, http_code
from cached.transport.response import ResponseHead, parse_http_date, sent_at, source_changed

# S3, Google Cloud Storage and Azure report an expired signature or session with these.
_EXPIRED = (b"<Code>ExpiredToken</Code>", b"Request has expired", b"Signature not valid in the specified time frame")
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")  # S3's own name of an error
_MAX_RETRY_AFTER_S = 3600.0
_RETRIED = "it is tried again; if it goes on, look at the server"
_PERMANENT = {
    401: (
        "unauthorized",
        "it asks for credentials",
        "put a user and password for this host into a netrc file (NETRC), or give the source its token",
    ),
    403: ("forbidden", "these credentials may not read it", "grant this node's credentials read access to it"),
    404: ("not_found", "there is nothing there", "check the address for typing errors, or publish it there"),
    410: ("gone", "it was removed for good", "point the catalog at where it is now"),
    407: (
        "proxy_unauthorized",
        "the proxy asks for credentials",
        "put user and password into HTTP_PROXY or HTTPS_PROXY",
    ),
}


def status_error(answer: ResponseHead, where: str, excerpt: bytes) -> HoldfastError:
    """Return the error for `answer`, whose status is not a success; `excerpt` is the beginning of its body."""
    return response_error(answer.status, answer.headers, where, excerpt)


def response_error(status: int, headers: Message, where: str, excerpt: bytes) -> HoldfastError:
    """Return the error for a status that is no success, from the headers and the beginning of the body."""
    named = _CODE.search(excerpt)
    shown = f"{where} answered {status}" + (f" {named[1].decode('ascii')}" if named else "")
    if status in (400, 403) and any(sign in excerpt for sign in _EXPIRED):
        return Transient("expired_signature", f"{shown}: its signature has expired", "it is signed again")
    if status == 403 and named is not None and named[1] == b"InvalidObjectState":
        return Permanent(
            "archived",
            f"{shown}: the object is in an archive and cannot be read before it is restored",
            "restore it (`aws s3api restore-object`), or copy it to another storage class; then pull again",
        )
    if status in _PERMANENT:
        code, meaning, remedy = _PERMANENT[status]
        return Permanent(code, f"{shown}: {meaning}", remedy)
    if status == 412:
        return source_changed(where, "it is not the object of that ETag or date any more")
    if status == 416:
        return Transient("bad_response", f"{shown}: the range asked for is not in it", _RETRIED)
    if is_retried(status):
        wait_s = retry_after_s(headers.get("Retry-After"), headers.get("Date"))
        return Transient(http_code(status), shown, _RETRIED, retry_after_s=wait_s)
    if status >= 400:
        return Permanent(http_code(status), shown, "check the address and what the server expects of requests for it")
    return Transient("bad_response", f"{shown}, which no request of ours asks for", _RETRIED)


def is_retried(status: int) -> bool:
    """Return whether a request that got this HTTP status may succeed later."""
    return status in (408, 425, 429) or status >= 500


def retry_after_s(value: str | None, date: str | None) -> float | None:
    """Return the delay in seconds that a `Retry-After` asks for, at most an hour; None if it is invalid or missing. A
    date is compared with the answer's own `date`: our clock, or the server's, may be wrong."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        wait_s = float(value[:9])
    else:
        until = parse_http_date(value)
        if until is None:
            return None
        wait_s = until - sent_at(date)
    return min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)
