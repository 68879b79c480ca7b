"""Which nodes of the pool have a snapshot: all members are asked, once for all that ask for the same at that time.

Law: bounded in time and number; blocking. What a member says it has is a hint: its bytes are checked by their digest.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from cached.contract.digest import Digest
from cached.peers.messages import MAX_HOLDERS
from cached.peers.trackers import TooMany

_log = logging.getLogger(__name__)

SEARCH_S = 2.0  # a member that has not answered by then does not count
_KEPT_S = 5.0  # an answer: nodes that start together ask for the same
_KEPT_EMPTY_S = 0.5  # one that names no node: the first to have the snapshot may be about to
_ENOUGH = 4 * MAX_HOLDERS  # then no more members are asked
_AT_ONCE = 8
_MAX_KEPT = 256


@dataclass(slots=True)
class _Search:
    began_at: float
    left: int
    found: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def is_fresh(self, now: float) -> bool:
        """Return whether it answers for a question that is asked now; always while it runs."""
        kept_s = _KEPT_S if self.found or not self.ended.is_set() else _KEPT_EMPTY_S
        return now < self.began_at + kept_s


class HolderSearch:
    """Searches the members for snapshots. `ask` returns whether a member has one; it is called on `executor`."""

    def __init__(self, ask: Callable[[str, Digest], bool], executor: Executor) -> None:
        self._ask = ask
        self._executor = executor
        self._lock = threading.Lock()
        self._searches: dict[Digest, _Search] = {}

    def find(self, digest: Digest, members: Iterable[str]) -> tuple[str, ...]:
        """Return some of the members that have the snapshot of this manifest. Raises `TooMany` where too many searches
        run."""
        search = self._join(digest, members)
        search.ended.wait(max(0.0, search.began_at + SEARCH_S - time.monotonic()))
        with self._lock:
            found = list(search.found)
        return tuple(random.sample(found, min(len(found), MAX_HOLDERS)))

    def _join(self, digest: Digest, members: Iterable[str]) -> _Search:
        now = time.monotonic()
        with self._lock:
            search = self._searches.get(digest)
            if search is not None and search.is_fresh(now):
                return search
            self._tidy(now)
            asked = list(members)
            random.shuffle(asked)
            search = self._searches[digest] = _Search(now, len(asked))
        if not asked:
            search.ended.set()
        for member in asked:
            self._executor.submit(self._ask_one, search, member, digest)
        return search

    def _tidy(self, now: float) -> None:
        """Forget old answers; raises `TooMany` where none may be added. Call with the lock held."""
        running = {digest: each for digest, each in self._searches.items() if not each.ended.is_set()}
        fresh = {digest: each for digest, each in self._searches.items() if each.is_fresh(now)}
        self._searches = kept = running | fresh
        if len(running) >= _AT_ONCE or len(kept) >= _MAX_KEPT:
            raise TooMany("too many searches for snapshots at once")

    def _ask_one(self, search: _Search, member: str, digest: Digest) -> None:
        has_it = False
        try:
            is_over = search.ended.is_set() or time.monotonic() > search.began_at + SEARCH_S
            has_it = not is_over and self._ask(member, digest)
        except Exception:  # noqa: BLE001 - the others are asked, and then the origin
            _log.exception("asking %s for snapshot %s", member, digest.hex[:12])
        with self._lock:
            search.left -= 1
            if has_it:
                search.found.append(member)
            if not search.left or len(search.found) >= _ENOUGH:
                search.ended.set()
