"""Where a file's bytes are asked for, and what their answer should hold.

Law: values. Credentials live in `HttpTarget.headers` and `url` and are never shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cached.core.listing import Signs


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
