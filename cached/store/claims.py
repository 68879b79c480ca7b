"""What versions under way go on from, so that no deletion takes it from under them.

Law: in memory and thread-safe; does no I/O. Whoever wants something claims it first, then waits out (`settle`) the
deletion that is being decided, and only then looks whether it is there: from then on it stays until the claim is
dropped. Whoever deletes asks and deletes each thing within one `deciding`.
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
    """Blobs by sha256, partial blobs by id, and who claims them. A blob's size is 0 until it is known to be here.

    `journal` tells what a claimed partial blob of unknown digest became.
    """

    def __init__(self, journal: DigestJournal) -> None:
        self.journal = journal
        self._lock = threading.Lock()  # never held while anybody waits
        self._deciding = threading.Lock()  # held while one thing is deleted: only threads that may wait take it
        self._claims: dict[Hashable, _Claim] = {}

    def begin(self, who: Hashable, blobs: Collection[str], partials: Collection[str]) -> None:
        """`who` goes on from these, where they are there, and from nothing else."""
        with self._lock:
            self._claims[who] = _Claim(dict.fromkeys(blobs, 0), frozenset(partials))

    def found(self, who: Hashable, blobs: Mapping[str, int]) -> None:
        """These are here, and `who` goes on from them; nothing happens where it is over."""
        with self._lock:
            if who in self._claims:
                self._claims[who].blobs.update(blobs)

    def has_claimed(self, who: Hashable) -> bool:
        """Tell whether `who` has said what it goes on from."""
        with self._lock:
            mine = self._claims.get(who)
            return mine is not None and bool(mine.blobs or mine.partials)

    def drop(self, who: Hashable) -> None:
        """`who` is over: what it left behind may be deleted."""
        with self._lock:
            self._claims.pop(who, None)

    def settle(self) -> None:
        """Wait until whatever deletion was decided before a claim was made is carried out. Blocking."""
        with self._deciding:
            return

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Ask for a claim and delete within this block; one at a time."""
        with self._deciding:
            yield

    def has_blob(self, sha256: str) -> bool:
        """Tell whether anybody claims this blob, by its digest or as what a partial blob became."""
        with self._lock:
            if any(sha256 in claim.blobs for claim in self._claims.values()):
                return True
        return any(self.has_partial(id_) for id_ in self.journal.ids_of(sha256))

    def has_partial(self, id_: str) -> bool:
        """Tell whether anybody claims this partial blob."""
        with self._lock:
            return any(id_ in claim.partials for claim in self._claims.values())

    def blobs_of(self, who: Hashable) -> dict[str, int]:
        """The blobs that `who` claims, with their sizes."""
        with self._lock:
            mine = self._claims.get(who)
            return {} if mine is None else dict(mine.blobs)

    def partials_of(self, who: Hashable) -> frozenset[str]:
        """The partial blobs that `who` claims."""
        with self._lock:
            mine = self._claims.get(who)
            return frozenset() if mine is None else mine.partials

    def partials_alone(self, who: Hashable) -> frozenset[str]:
        """The partial blobs that `who` claims and nobody else does."""
        with self._lock:
            mine = self._claims.get(who)
            others = (claim.partials for key, claim in self._claims.items() if key != who)
            return frozenset() if mine is None else frozenset(mine.partials.difference(*others))
