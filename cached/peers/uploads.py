"""Which waiting request is served next: a bounded number at once, the node served longest ago first.

Law: pure. A node that was just served goes behind those that wait: else one node starves while its neighbours finish. A
request that does not fit the queue is refused at once, and its node asks another peer.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Generic, TypeVar

Token = TypeVar("Token")

_REMEMBERED = 4096


class UploadVerdict(Enum):
    """What happens to a request now."""

    SERVE = "serve"
    WAIT = "wait"
    REFUSE = "refuse"


class Uploads(Generic[Token]):
    """The requests of one node's peers. `Token` names a request to the caller."""

    def __init__(self, slots: int, queue: int) -> None:
        """`slots`: served at once; `queue`: requests that may wait."""
        self._slots = slots
        self._queue = queue
        self._waiting: dict[str, deque[Token]] = {}  # by peer
        self._count = 0
        self._served: dict[str, int] = {}  # the turn in which a peer was served last
        self._serving: dict[str, int] = {}  # by peer
        self._served_now = 0
        self._turn = 0

    @property
    def waiting(self) -> int:
        """The requests that wait."""
        return self._count

    @property
    def serving(self) -> int:
        """The requests that are served."""
        return self._served_now

    def ask(self, peer: str, token: Token) -> UploadVerdict:
        """Take a request: serve it now, let it wait until `end` returns it, or refuse it."""
        if self.serving < self._slots and not self._count:
            self._begin(peer)
            return UploadVerdict.SERVE
        if self._count >= self._queue:
            return UploadVerdict.REFUSE
        self._waiting.setdefault(peer, deque()).append(token)
        self._count += 1
        return UploadVerdict.WAIT

    def end(self, peer: str) -> Token | None:
        """End a request that was served; return the one to serve in its place."""
        self._serving[peer] -= 1
        self._served_now -= 1
        if not self._serving[peer]:
            del self._serving[peer]
        if not self._count:
            return None
        following = min(self._waiting, key=self._rank)
        token = self._waiting[following].popleft()
        self._forget_empty(following)
        self._begin(following)
        return token

    def withdraw(self, peer: str, token: Token) -> bool:
        """Remove a request that waits; return whether it did."""
        queue = self._waiting.get(peer)
        if queue is None or token not in queue:
            return False
        queue.remove(token)
        self._forget_empty(peer)
        return True

    def _rank(self, peer: str) -> tuple[int, int]:
        return self._serving.get(peer, 0), self._served.get(peer, 0)

    def _begin(self, peer: str) -> None:
        self._serving[peer] = self._serving.get(peer, 0) + 1
        self._served_now += 1
        self._turn += 1
        self._served.pop(peer, None)
        self._served[peer] = self._turn
        if len(self._served) > _REMEMBERED:
            del self._served[next(iter(self._served))]  # the one served longest ago

    def _forget_empty(self, peer: str) -> None:
        self._count -= 1
        if not self._waiting[peer]:
            del self._waiting[peer]
