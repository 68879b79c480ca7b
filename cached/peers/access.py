"""Prove that a request comes from a node of the pool: an HMAC by the pool's key over what the request asks for.

Law: pure; the time is an argument. The key never crosses the network. A signed request can be repeated for
`WINDOW_S` seconds by who saw it, and then asks for the same again: requests change nothing but a tracker's soft state,
whose body's digest is signed too. Comparisons take the same time whatever differs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 60
LEAST_KEY_BYTES = 32
MAX_KEYS = 4
SCHEME = "Holdfast-Pool"
_HEADER = re.compile(SCHEME + r" time=(\d{1,12}), mac=([0-9a-f]{64})", re.ASCII)
_PREFIX = b"holdfast.dev/peers/v1"


class NotOfThisPool(Exception):
    """A request that does not come from this pool, or not now. The text is for our log, and tells the asker nothing
    that it does not know."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a signature covers: the method, the path, and the headers `Range` and `Content-Digest` (empty without one):
    a body is read only after its digest was found to be the pool's."""

    method: str
    path: str
    range: str
    content_digest: str = ""


class PoolKeys:
    """The keys of one pool: the first signs, all are accepted, so that a key can be rotated node by node."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Raises ValueError unless there are 1 to `MAX_KEYS` different keys of at least `LEAST_KEY_BYTES`."""
        if not 0 < len(keys) <= MAX_KEYS or len(set(keys)) != len(keys):
            raise ValueError(f"expected 1 to {MAX_KEYS} different keys, found {len(keys)}")
        shortest = min(map(len, keys))
        if shortest < LEAST_KEY_BYTES:
            raise ValueError(f"expected keys of at least {LEAST_KEY_BYTES} characters, found one of {shortest}")
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"PoolKeys({len(self._keys)})"

    def sign(self, request: SignedRequest, now: float) -> str:
        """Return the `Authorization` header of a request that is sent at `now`, in seconds since the epoch."""
        return f"{SCHEME} time={int(now)}, mac={_compute(self._keys[0], request, int(now))}"

    def check(self, request: SignedRequest, authorization: str, now: float) -> None:
        """Raise `NotOfThisPool` unless a key of the pool signed this request within the window around `now`."""
        match = _HEADER.fullmatch(authorization)
        if match is None:
            raise NotOfThisPool("no signature of a pool")
        sent_at = int(match[1])
        found = [hmac.compare_digest(_compute(key, request, sent_at), match[2]) for key in self._keys]
        if not any(found):
            raise NotOfThisPool("signed with another key: all nodes of a pool need the same")
        if abs(now - sent_at) > WINDOW_S:
            raise NotOfThisPool(f"signed {now - sent_at:+.0f} s ago, at most {WINDOW_S} count: set the nodes' clocks")


def digest_content(body: bytes) -> str:
    """Return the `Content-Digest` header of a body (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode('ascii')}:"


def _compute(key: bytes, request: SignedRequest, sent_at: int) -> str:
    mac = hmac.new(key, _PREFIX, hashlib.sha256)
    parts = (request.method, request.path, request.range, request.content_digest, str(sent_at))
    for part in (each.encode("latin-1") for each in parts):
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.hexdigest()
