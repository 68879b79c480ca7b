"""The address of a file's bytes, and the expected content.

Law: values. Credentials are in `HttpTarget.headers` and `url` only, and never shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cached.core.listing import WeakValidators
from cached.transport.connection.cancel import Cancellation

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected file: its `name` in the version, its `size` in bytes if known, and whether the source promises its
    content, so that wrong content is detected in the end."""

    name: str
    size: int | None
    promised: bool


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes `[start, start + length)` of an object, which are the whole of a file."""

    start: int
    length: int


class Issuer(Protocol):
    """Issues the credentials in headers, and is told when a server refuses them. Thread-safe."""

    def refuse(self, headers: Headers) -> bool:
        """Note that a server refused these `headers`, without waiting; return whether others may be accepted."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A ranged GET: `url` with `headers` (these may carry credentials and go to that origin only; an `Accept` among
    them replaces ours, and is no secret).

    `if_match`: a strong ETag, sent as `If-Match` with every range. `weak_validators`: without a strong one, these must
    not change. Both None if the URL itself is immutable, or the content is promised.
    `chosen_by`: the URL that redirected to `url`, if the source followed that redirect itself; else None.
    `stored_bytes`: the stored size of the object, if its bytes are wanted whatever `Content-Encoding` is stored with
    them: on an object store, and for promised content. `expected`: the requested file of a version; None for anything
    else.
    `lifetime_s`: how long the address is valid after `locate` returns it, as far as the source knows (the expiry of a
    signed URL, a token, or the credentials that signed it); None if unlimited. It is renewed (`locate` is called again)
    after four fifths of that, after ten minutes at most, and if a server that accepted it answers 401 or 403.
    `issued_at`: when its credentials were issued, in seconds of `time.monotonic`, if that was before `locate` was
    called (a token that several files share); None: by that call. A refusal of such credentials is not final.
    `issuer`: is told of a refusal, so that the next address has other credentials.
    `part`: where the file is in a larger object (a file in a tar archive); the server must serve ranges then.
    `answers_head`: False where a HEAD costs the server a read of the whole object, as at one that passes its store's
    objects on: none is sent then.
    `names_version`: `url` names one version of the object (a generation), so 404 says that it was replaced or deleted.
    """

    url: str = field(repr=False)
    headers: Headers = field(default=(), repr=False)
    if_match: str | None = None
    weak_validators: WeakValidators | None = None
    chosen_by: str | None = field(default=None, repr=False)
    stored_bytes: int | None = None
    expected: Expected | None = None
    lifetime_s: float | None = None
    issued_at: float | None = None
    part: Part | None = None
    names_version: bool = False
    answers_head: bool = True
    issuer: Issuer | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """A file on this machine. `validator` as in `RemoteFile`: compared again before each range is read."""

    path: Path
    validator: str


def local_validator(found: os.stat_result) -> str:
    """Return a validator that changes whenever a file's bytes may have changed. Who writes a file can set its mtime
    (`cp -p`, `rsync -t`, archives of reproducible builds), and not its ctime; that changes with modes and links too."""
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}-{found.st_ctime_ns}"


class ByteStream(Protocol):
    """Bytes that a source makes as they are read. One thread reads it; a cancellation ends a wait."""

    def readinto(self, view: memoryview) -> int:
        """Fill `view` unless the end comes first; return the bytes, 0 only at the clean end. Raises `HoldfastError`, or
        `Cancelled`; nothing in `view` counts then."""

    def close(self) -> None:
        """Release what it holds. Idempotent."""


@dataclass(frozen=True, slots=True)
class StreamTarget:
    """A file that a source takes out of something else (a compressed layer): one stream from its first byte, without
    ranges and without resuming. `open` may block; what it raises is retried as an error of a server is."""

    open: Callable[[Cancellation], ByteStream]


Target = HttpTarget | LocalTarget | StreamTarget
