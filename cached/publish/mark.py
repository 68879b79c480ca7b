"""The mark of a publish under way (`.holdfast/publishing`): who publishes, and a sign of life.

Law: pure values. The mark's presence alone keeps sources from reading half a version; its content tells publishers
apart.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from dataclasses import asdict, dataclass

from cached.contract.digest import Digest
from cached.contract.errors import Permanent

MAX_MARK_BYTES = 64 * 1024
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Mark:
    """One publisher's claim. `publisher`: a random id. `beat` grows while it lives; `ended`: it gave up by itself."""

    publisher: str
    host: str
    started: str
    digest: str
    beat: int = 0
    ended: bool = False

    @classmethod
    def new(cls, digest: Digest) -> Mark:
        """A claim of this process, to publish the version of that digest."""
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(secrets.token_hex(16), socket.gethostname(), started, str(digest))

    @classmethod
    def parse(cls, data: bytes) -> Mark | None:
        """Read a mark; None for one that is torn, or that an older `publish` wrote (empty)."""
        try:
            found = json.loads(data[:MAX_MARK_BYTES])
            mark = cls(**found)
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (mark.publisher, mark.host, mark.started, mark.digest)
        whole = all(isinstance(text, str) for text in texts) and isinstance(mark.ended, bool)
        return mark if whole and isinstance(mark.beat, int) else None

    def encode(self) -> bytes:
        """The bytes of the mark as they are stored."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    def describe(self) -> str:
        """Who it is, for a person."""
        words = (f"host {self.host}", f"begun {self.started}", f"version {self.digest}")
        return ", ".join("".join(c for c in word if c.isprintable())[:_SHOWN] for word in words)


def describe(mark: Mark | None) -> str:
    """Who left a mark, for a person; None: nobody knows."""
    return "an unnamed publisher" if mark is None else mark.describe()


def another_publisher(where: str, other: Mark | None) -> Permanent:
    """The error of the publisher that has to stop, because another one publishes at the same place."""
    return Permanent(
        "another_publisher",
        f"{where}: another publisher is at work there ({describe(other)}); this one stopped",
        "let one publisher publish a version at a time: wait until the other has ended, then publish again",
    )
