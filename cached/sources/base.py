"""What every source is: something that lists the files of one version and says where their bytes can be read.

Law: values and one Protocol. Credentials live in `HttpTarget.headers` and nowhere else: never in `display`, an error,
or a log line. `display` is for people and decides nothing: what tells two files apart is `Listing.identity`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from cached.core.listing import Listing, RemoteFile
from cached.transport.target import Expected, HttpTarget, Target


def identity_of(*parts: str) -> str:
    """One name, 64 hex digits, for what a source's `parts` are together: they may be secret, so only this is kept.

    A password is stretched first (`stretched`): whoever sees the name must not be able to try out likely ones.
    """
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=64)
def stretched(secret: str) -> str:
    """A stand-in for a secret that people chose, from which it cannot be found by trying; takes some 50 ms, once."""
    return hashlib.pbkdf2_hmac("sha256", secret.encode(), b"holdfast-identity", 100_000).hex()


def expecting(target: Target, file: RemoteFile) -> Target:
    """The target with what its answer should hold: so a web page in the place of the file is told from it."""
    if not isinstance(target, HttpTarget):
        return target
    promised = file.sha256 is not None or file.git_oid is not None
    return replace(target, expected=Expected(file.path, file.size, promised))


class Source(Protocol):
    """One version's place. `kind` is the bounded metric label (`s3`, `hf`, `http`, `file`); `display` is the URI to
    show, without credentials."""

    @property
    def kind(self) -> str: ...

    @property
    def display(self) -> str: ...

    async def resolve(self) -> Listing:
        """List the version, whatever the names. Raises `Transient`, or `Permanent` with a remedy."""

    async def locate(self, file: RemoteFile) -> Target:
        """Say where `file`'s bytes can be read now, freshly signed. Raises as `resolve` does."""

    async def aclose(self) -> None:
        """Give back what the source holds. Calling it again does nothing."""
