"""The source Protocol: lists the files of one version and locates their bytes.

Law: values and Protocols. Credentials are in `HttpTarget.headers` only: never in `display`, an error, or a log line.
`display` is for people and decides nothing: `Listing.identity` distinguishes files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

from cached.core.listing import Listing, RemoteFile
from cached.transport.target import Expected, HttpTarget, Target


def identity_of(*parts: str) -> str:
    """Return the hash of `parts`, 64 hex digits: parts may be secret, so only their hash is kept. Pass a password
    through `stretched` first: the hash must not allow guessing likely passwords."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=64)
def stretched(secret: str) -> str:
    """Return a slow hash of a secret that a person chose, which resists guessing; takes some 50 ms, once."""
    return hashlib.pbkdf2_hmac("sha256", secret.encode(), b"holdfast-identity", 100_000).hex()


def expecting(target: Target, file: RemoteFile) -> Target:
    """Add the expected file to the target, so that a web page in place of the file is detected."""
    if not isinstance(target, HttpTarget):
        return target
    promised = file.sha256 is not None or file.git_oid is not None
    return replace(target, expected=Expected(file.path, file.size, promised))


class Source(Protocol):
    """One version at a source. `kind` is the bounded metric label (`s3`, `hf`, `http`, `file`); `display` is the URI
    for messages, without credentials."""

    @property
    def kind(self) -> str: ...

    @property
    def display(self) -> str: ...

    async def resolve(self) -> Listing:
        """List the version, also files with invalid names. Raises `Transient`, or `Permanent` with a remedy."""

    async def locate(self, file: RemoteFile) -> Target:
        """Return the current address of `file`'s bytes, freshly signed. Raises as `resolve` does."""

    async def aclose(self) -> None:
        """Release the source's resources. Idempotent."""


@runtime_checkable
class Revalidating(Protocol):
    """A source that tells with one small request whether an earlier listing is still current."""

    async def is_current(self, tag: str) -> bool:
        """Return whether the listing that had this `tag` is unchanged; False also where only a new listing can tell.
        Raises as `resolve` does."""


@runtime_checkable
class Addressed(Protocol):
    """A source whose addresses follow from its listing, without a request."""

    def address_of(self, file: RemoteFile) -> Target:
        """Return what `locate` returns; from any thread, without waiting."""
