"""The blobs and partial blobs that version fetches reuse; a deletion leaves them.

Law: in memory and thread-safe; does no I/O. A fetch claims first, then waits for the deletion in progress, and only
then checks which blobs exist: these stay until the claim is dropped. A deletion holds `deleting` while it checks the
claims and deletes.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

from cached.store.blob.digest_journal import DigestJournal


@dataclass(frozen=True, slots=True)
class _Claim:
    blobs: dict[str, int]
    partials: frozenset[str]


_NO_CLAIM = _Claim({}, frozenset())


class Claims:
    """Claimed blobs by sha256 and partial blobs by id, per claimant. A blob's size is 0 until it is known to exist.
    `journal` has the digest that a claimed partial blob of unknown digest turned out to have."""

    def __init__(self, journal: DigestJournal) -> None:
        self.journal = journal
        self.deleting = threading.Lock()  # held during one deletion: only threads that may block wait for it
        self._lock = threading.Lock()  # never held during a blocking call
        self._claims: dict[Hashable, _Claim] = {}

    def claim(self, claimant: Hashable, blobs: Collection[str], partials: Collection[str]) -> None:
        """Set the claims of `claimant`: these blobs and partial blobs, existing or not."""
        with self._lock:
            self._claims[claimant] = _Claim(dict.fromkeys(blobs, 0), frozenset(partials))

    def add_existing(self, claimant: Hashable, blobs: Mapping[str, int]) -> None:
        """Add existing blobs, with their sizes in bytes, to the claims of `claimant`; no effect after `drop`."""
        with self._lock:
            if claimant in self._claims:
                self._claims[claimant].blobs.update(blobs)

    def has_claimed(self, claimant: Hashable) -> bool:
        """Return whether `claimant` claims anything."""
        with self._lock:
            claim = self._claims.get(claimant, _NO_CLAIM)
            return bool(claim.blobs or claim.partials)

    def drop(self, claimant: Hashable) -> None:
        """Drop all claims of `claimant`."""
        with self._lock:
            self._claims.pop(claimant, None)

    def wait_for_deletion(self) -> None:
        """Wait for the deletion that was decided before a claim was made. Blocking."""
        with self.deleting:
            return

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

    def blobs_of(self, claimant: Hashable) -> dict[str, int]:
        """Return the blobs that `claimant` claims, with their sizes in bytes."""
        with self._lock:
            return dict(self._claims.get(claimant, _NO_CLAIM).blobs)

    def partials_of(self, claimant: Hashable) -> frozenset[str]:
        """Return the partial blobs that `claimant` claims."""
        with self._lock:
            return self._claims.get(claimant, _NO_CLAIM).partials

    def partials_alone(self, claimant: Hashable) -> frozenset[str]:
        """Return the partial blobs that only `claimant` claims."""
        with self._lock:
            others = [claim.partials for each, claim in self._claims.items() if each != claimant]
            return self._claims.get(claimant, _NO_CLAIM).partials.difference(*others)
