"""What every source is: something that lists the files of one version and says where their bytes can be read.

Law: values and one Protocol. Credentials live in `HttpTarget.headers` and nowhere else: never in `display`, an error,
or a log line. `display` is for people and decides nothing: what tells two files apart is `Listing.identity`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cached.contract.errors import HoldfastError
from cached.contract.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Signs:
    """What an answer said of an object that can show a change and never proves that there was none.

    `etag`: a weak ETag as it came. `last_modified`: an HTTP date: it is the file's mtime at most servers, which `cp -p`
    and `rsync -t` give to other content, so RFC 9110, 8.8.2.2, which calls it strong when it is old, is not followed.
    `origin`: who said it (`scheme://host[:port]`): a redirect may lead to another host next time, with others.
    `listing`: random; what one listing found may be another object than what the next one finds.
    """

    etag: str | None = None
    last_modified: str | None = None
    origin: str | None = None
    listing: str = field(default_factory=lambda: secrets.token_hex(16), compare=False)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file at a source, as it is listed there: whether a version may hold it is judged when it is chosen.

    `path`: its path in the snapshot. `key`: the source's own address of it (an object key, a URL, a path), which with
    the listing's `identity` names one object and no other.
    `size`: bytes, None while unknown. `validator`: a strong one, which is another whenever a byte is (a strong ETag, a
    version, a blob id, mtime with size and inode); empty where the source has none. `signs`: what there is instead, at
    HTTP. A file that has neither validator nor promised content comes in one answer or not at all. `sha256`: 64 hex
    digits only where the source vouches for them (a manifest, a Git LFS oid), never an ETag. `git_oid`: the Git blob id
    (sha1 of `blob <size>\\0` + bytes), if known.
    `problem`: why nothing can be fetched for it, None where something can; raised only if the file is chosen.
    """

    path: str
    key: str
    size: int | None
    validator: str = ""
    sha256: str | None = None
    git_oid: str | None = None
    problem: HoldfastError | None = None
    signs: Signs | None = None

    @property
    def version(self) -> str:
        """What names this version of the object among all that its key had or will have."""
        return self.validator or (self.signs.listing if self.signs is not None else "")


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder whose files the source cannot tell. `path` ends in `/`; `problem` says why, and is raised only if a file
    below it could be chosen."""

    path: str
    problem: HoldfastError


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one version. `manifest` where the source carries one (`holdfast.json`); then `files` mirror it.

    `identity`: made by `identity_of` from everything that decides what the server answers for a file's `key`: its
    address, the query, the user, the environment. Equal for two listings only if equal keys are one object.
    `revision` is what a moving name was resolved to (a commit), for status and logs. `unlisted`: folders without files
    here. A listing may hold what no version may: `filters.choose` judges what it chooses, and nothing else.
    """

    files: tuple[RemoteFile, ...]
    identity: str
    manifest: Manifest | None = None
    revision: str | None = None
    unlisted: tuple[Unlisted, ...] = ()


def identity_of(*parts: str) -> str:
    """One name, 64 hex digits, for what a source's `parts` are together: they may be secret, so only this is kept.

    A password is stretched first (`stretched`): whoever sees the name must not be able to try out likely ones.
    """
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=64)
def stretched(secret: str) -> str:
    """A stand-in for a secret that people chose, from which it cannot be found by trying; takes some 50 ms, once."""
    return hashlib.pbkdf2_hmac("sha256", secret.encode(), b"holdfast-identity", 100_000).hex()


@dataclass(frozen=True, slots=True)
class Expected:
    """The file that an answer should hold: its `name` in the version, its `size` in bytes if known, and whether its
    content is promised, so that a wrong one is noticed in the end."""

    name: str
    size: int | None
    promised: bool


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A ranged GET: `url` with `headers` (these may carry credentials and go to that origin only).

    `if_match`: a strong ETag sent as `If-Match` with every range. `signs`: where there is none, what must not be seen
    to change. Both None where the URL itself is immutable, or the content is promised. `chosen_by`: the URL that
    redirected to `url`, where the source followed that itself; None where it was told to ask there. `stored_bytes`: the
    size of the object as it is stored, where its bytes are what is wanted whatever `Content-Encoding` is kept with
    them: on an object store, and where the content is promised. `expected`: the file of a version that is asked for;
    None for anything else. `lifetime_s`: how long after `locate` was called the address is good, as far as the source
    knows (a signed URL's expiry, a token's, that of the credentials that signed it); None where it knows of no end. It
    is renewed (`locate` is called again) after four fifths of that, after ten minutes at the most, and once a server
    that took it says 401 or 403.
    """

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    if_match: str | None = None
    signs: Signs | None = None
    chosen_by: str | None = field(default=None, repr=False)
    stored_bytes: int | None = None
    expected: Expected | None = None
    lifetime_s: float | None = None


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """A file that this machine can open. `validator` as in `RemoteFile`: checked again before each range is read."""

    path: Path
    validator: str


Target = HttpTarget | LocalTarget


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
