"""The mark of a running publish (`.holdfast/publishing`): its publisher, and a heartbeat.

Law: pure values. The mark's presence keeps sources from reading an incomplete version; its content distinguishes
publishers.
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
    """One publisher's claim. `publisher`: a random id. `beat` increases while it runs; `ended`: it stopped itself."""

    publisher: str
    host: str
    started: str
    digest: str
    beat: int = 0
    ended: bool = False

    @classmethod
    def new(cls, digest: Digest) -> Mark:
        """Return a new claim of this process for the version of that digest."""
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(secrets.token_hex(16), socket.gethostname(), started, str(digest))

    @classmethod
    def parse(cls, data: bytes) -> Mark | None:
        """Parse a mark; return None for a truncated one, or the empty one of an older release."""
        try:
            found = json.loads(data[:MAX_MARK_BYTES])
            mark = cls(**found)
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (mark.publisher, mark.host, mark.started, mark.digest)
        whole = all(isinstance(text, str) for text in texts) and isinstance(mark.ended, bool)
        return mark if whole and isinstance(mark.beat, int) else None

    def encode(self) -> bytes:
        """Return the stored bytes of the mark."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def describe_publisher(mark: Mark | None) -> str:
    """Return the host, start and version of a mark's publisher, for people; `mark` None: unknown."""
    if mark is None:
        return "an unnamed publisher"
    words = (f"host {mark.host}", f"begun {mark.started}", f"version {mark.digest}")
    return ", ".join("".join(c for c in word if c.isprintable())[:_SHOWN] for word in words)


def another_publisher(where: str, other: Mark | None) -> Permanent:
    """Return the error of a publisher that must stop, because another one publishes to the same folder."""
    return Permanent(
        "another_publisher",
        f"{where}: another publisher is at work there ({describe_publisher(other)}); this one stopped",
        "let one publisher publish a version at a time: wait until the other has ended, then publish again",
    )
