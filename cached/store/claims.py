"""The blobs and partial blobs that version fetches reuse; a deletion leaves them.

Law: in memory and thread-safe; does no I/O. A fetch claims first, then waits for the deletion in progress (`settle`),
and only then checks which blobs exist: these stay until the claim is dropped. A deletion checks the claims and deletes
within one `deciding`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cached.store.digest_journal import DigestJournal


@dataclass(slots=True)
class _Claim:
    blobs: dict[str, int]
    partials: frozenset[str]


class Claims:
    """Claimed blobs by sha256 and partial blobs by id, per claimant. A blob's size is 0 until it is known to exist.
    `journal` has the digest that a claimed partial blob of unknown digest turned out to have."""

    def __init__(self, journal: DigestJournal) -> None:
        self.journal = journal
        self._lock = threading.Lock()  # never held during a blocking call
        self._deciding = threading.Lock()  # held during one deletion: only threads that may block wait for it
        self._claims: dict[Hashable, _Claim] = {}

    def claim(self, who: Hashable, blobs: Collection[str], partials: Collection[str]) -> None:
        """Set the claims of `who`: these blobs and partial blobs, existing or not."""
        with self._lock:
            self._claims[who] = _Claim(dict.fromkeys(blobs, 0), frozenset(partials))

    def add_existing(self, who: Hashable, blobs: Mapping[str, int]) -> None:
        """Add existing blobs, with their sizes in bytes, to the claims of `who`; no effect after `drop`."""
        with self._lock:
            if who in self._claims:
                self._claims[who].blobs.update(blobs)

    def has_claimed(self, who: Hashable) -> bool:
        """Return whether `who` claims anything."""
        with self._lock:
            mine = self._claims.get(who)
            return mine is not None and bool(mine.blobs or mine.partials)

    def drop(self, who: Hashable) -> None:
        """Drop all claims of `who`."""
        with self._lock:
            self._claims.pop(who, None)

    def wait_for_deletion(self) -> None:
        """Wait for the deletion that was decided before a claim was made. Blocking."""
        with self._deciding:
            return

    def is_settled(self) -> bool:
        """Return whether `settle` would not wait: no deletion is in progress. Never waits."""
        settled = self._deciding.acquire(blocking=False)
        if settled:
            self._deciding.release()
        return settled

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Enclose the check of the claims and the deletion; one caller at a time."""
        with self._deciding:
            yield

    def has_blob(self, sha256: str) -> bool:
        """Return whether this blob is claimed, by its digest or by a partial blob that turned out to have it."""
        with self._lock:
            if any(sha256 in claim.blobs for claim in self._claims.values()):
                return True
        return any(self.has_partial(id_) for id_ in self.journal.ids_of(sha256))

    def has_partial(self, id_: str) -> bool:
        """Return whether this partial blob is claimed."""
        with self._lock:
            return any(id_ in claim.partials for claim in self._claims.values())

    def blobs_of(self, who: Hashable) -> dict[str, int]:
        """Return the blobs that `who` claims, with their sizes in bytes."""
        with self._lock:
            mine = self._claims.get(who)
            return {} if mine is None else dict(mine.blobs)

    def partials_of(self, who: Hashable) -> frozenset[str]:
        """Return the partial blobs that `who` claims."""
        with self._lock:
            mine = self._claims.get(who)
            return frozenset() if mine is None else mine.partials

    def partials_alone(self, who: Hashable) -> frozenset[str]:
        """Return the partial blobs that only `who` claims."""
        with self._lock:
            mine = self._claims.get(who)
            others = (claim.partials for key, claim in self._claims.items() if key != who)
            return frozenset() if mine is None else frozenset(mine.partials.difference(*others))
