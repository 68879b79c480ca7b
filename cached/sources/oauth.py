"""The answers of token endpoints (RFC 6749), of metadata services and of their kin.

Law: pure. A message quotes the endpoint's own words, shortened, and never a token, an assertion or a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.transport.client import Response
from cached.transport.connection.ssrf import is_loopback
from cached.transport.errors import is_retried
from cached.transport.service.tokens import Token
from cached.transport.urls import Address, display_url

_SHOWN_WORD = 64
_SHOWN = 300


def read_token(answer: Any, where: str) -> Token:
    """Return the token of an endpoint's answer. Raises `Transient` (`bad_response`) for an answer without one."""
    value = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value:
        raise Transient(
            "bad_response",
            f"{where}: expected an answer with an access_token, found none",
            "check that the address is the token endpoint's own",
        )
    return Token(value, read_seconds(answer.get("expires_in")))


def read_seconds(given: object) -> float | None:
    """Return a lifetime in seconds, which some endpoints write as text; None for anything else."""
    text = str(given) if isinstance(given, int | float | str) and not isinstance(given, bool) else ""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < 1e9 else None


def check_tls(endpoint: str, where: str) -> None:
    """Raise `Permanent` (`bad_source`) unless a token may be sent to `endpoint`: over TLS, or to this machine."""
    origin = Address.parse(endpoint).origin
    if origin.scheme != "https" and not is_loopback(origin.host):
        raise Permanent(
            "bad_source",
            f"{where}: expected https:// for requests with a token, found {display_url(endpoint)}",
            "use the https address of the service; for a public bucket add ?anonymous=true",
        )


def explain_refusal(subject: str, remedy: str) -> Callable[[Response], HoldfastError | None]:
    """Return the function that explains a refusal of a token endpoint: `Permanent` (`unauthorized`), with the
    endpoint's own words and `remedy`; None for what another try may mend."""

    def explain(response: Response) -> HoldfastError | None:
        if is_retried(response.status):
            return None
        said = quoted(_words(response.body))
        where = display_url(response.url)
        return Permanent("unauthorized", f"{subject}: {where} gave no token: {response.status} {said}".rstrip(), remedy)

    return explain


def _words(body: bytes) -> str:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    error = document.get("error")
    if isinstance(error, dict):  # Google's form of errors
        return f"{error.get('status', '')} {error.get('message', '')}"
    return f"{error or ''} {document.get('error_description', '')}"


# What headers and settings have: `Bearer eyJ…`, `Authorization: …`, `Cookie: a=b`, `"x-api-key": "…"`. After words that
# errors use, too (`token: expired`), only a value that is no plain word.
_NO_WORD = r"(?=[^\s\"']*[^a-z\s\"'.,;:])[^\s\"',;]+"
_SECRETS = (
    re.compile(rf"(\b(?i:bearer|basic|digest|negotiate|token)\s+){_NO_WORD}"),
    re.compile(
        r"(\b(?i:[\w-]{0,20}(?:authorization|cookie|passw(?:or)?d|secret|session))[\w-]{0,20}[\"']?\s*[:=]\s*[\"']?)[^\s\"',;]+"
    ),
    re.compile(
        rf"(\b(?i:[\w-]{{0,20}}(?:token|(?:api|access|auth)[-_]?key|signature))[\w-]{{0,20}}[\"']?\s*[:=]\s*[\"']?){_NO_WORD}"
    ),
)
_READ = 4096  # characters that are looked at


def quoted(text: str) -> str:
    """Return a server's words as one printable line of bounded length, without queries, which may have a signature, and
    without long words, and without what looks like credentials: a server that repeats the request would make us show a
    token."""
    shown = text[:_READ]
    for secret in _SECRETS:
        shown = secret.sub(r"\1…", shown)
    words = (word.partition("?")[0] for word in shown.split())
    words = (word if len(word) <= _SHOWN_WORD else "…" for word in words)
    return "".join(c for c in " ".join(words) if c.isprintable())[:_SHOWN]
