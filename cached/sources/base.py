"""The source Protocol: lists the files of one version and locates their bytes.

Law: values and Protocols. Credentials are in `HttpTarget.headers` only: never in `display`, an error, or a log line.
`display` is for people and decides nothing: `Listing.identity` distinguishes files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
    return replace(target, expected=Expected(file.path, file.size, file.is_promised))


class Source(Protocol):
    """One version at a source. `kind` is the bounded metric label (`s3`, `hf`, `http`, `file`); `display` is the URI
    for messages, without credentials, and its host names the origin whose connections are limited.

    The contract, which `cached/conformance/cases.py` asks of every source:

    - The constructor parses the URI and sends no request; it raises `Permanent` for a URI that is no location of it,
      and quotes no secret. Everything else may raise `Transient` and `Permanent` with a remedy, and nothing else.
    - `resolve` gives every file once, by its path below the location, sorted or not, also with an invalid name or with
      a `problem`: a chosen file with one is refused, another one does no harm. Empty files are files; markers of
      folders and `.holdfast/` are not. It is complete or raises; a moving name is resolved once, and the listing then
      names what it was resolved to (`revision`).
    - A file has the strongest that the source vouches for, and not one claim more: `sha256`; else `git_oid` or `sums`,
      of which one is verified; else a `validator` that changes with every change of a byte; else `weak_validators`.
      `RemoteFile.trust` follows from these.
    - `locate` gives where the bytes are now. What the listing's validator promised must hold there: `if_match`, or a
      version in the URL. An object that was replaced since is `Transient` `source_changed`. It may be called for a file
      of a listing that another `Source` of the same URI gave.
    - Credentials go into `HttpTarget.headers` (or a signed URL) for the origin that they are for, with their lifetime:
      `BearerTokens.authorize` does that, and is told of refusals. Never into `display`, `key`, an error or a log line.
    - Blocking requests run in `call_in_thread`, and end with its `Cancellation`. `Service` sends the small ones.
    """

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


class Opener(Protocol):
    """Opens the source that a URI names: a resolver ends in it without knowing other sources."""

    def __call__(self, uri: str, *, chosen_by: str | None = None) -> Source:
        """Return the source, without contacting it. `chosen_by`: the URL of the service that named `uri`, None where
        the catalog did: a service may not send us to this machine or its cloud's metadata, as with a redirect. Raises
        `Permanent`. May import: call it in a thread."""


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


@runtime_checkable
class Describing(Protocol):
    """A source that describes named files without listing a folder: for resolvers whose own index has the names."""

    async def find(self, paths: Sequence[str]) -> Listing:
        """Return a listing of the files at `paths` below the location, in that order, with what the source says of
        each. A file that is missing or unreadable is there with its `problem`. Raises as `resolve` does."""
