"""Where one file's bytes are asked for: an address that is used while it is good, and renewed once it is not.

Law: one address at a time, and one thread that asks for the next, however many use it. Blocking and thread-safe; no
clock but the one it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from cached.contract.errors import HoldfastError
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget, Target

LONGEST_USE_S = 600.0  # where nothing is known of its end, and at most: who may read is asked anew now and then
_USED_SHARE = 0.8  # of its lifetime: a request that is on its way must arrive in time
_FRESH_S = 5.0
_LOOKS_EXPIRED = frozenset({"expired_signature", "forbidden"})  # a CDN tells a URL that has run out from no other
_REFUSALS = _LOOKS_EXPIRED | {"unauthorized"}


@dataclass(slots=True)
class _Located:
    target: Target
    located_at: float
    good_until: float
    worked: bool = False


class Addresses:
    """The addresses of one file, one after the other."""

    def __init__(self, locate: Callable[[Cancellation], Target], clock: Callable[[], float]) -> None:
        """`clock`: seconds that never go back."""
        self._locate = locate
        self._clock = clock
        self._lock = threading.Lock()
        self._locating = threading.Lock()
        self._located: _Located | None = None
        self._failures: list[HoldfastError] = []  # at most one: what the last thread that asked was told
        self._asked = 0
        self._renewed = False  # after a refusal, and none has worked since

    def current(self, cancellation: Cancellation) -> Target:
        """The address to use now. Raises as `Source.locate`, also what another thread was told meanwhile."""
        asked = self._asked
        target = self._good()
        if target is not None:
            return target
        with self._locating:
            cancellation.check()
            target = self._good()
            if target is not None:
                return target
            if self._asked != asked and self._failures:
                raise self._failures[0]
            return self._ask(cancellation)

    def worked(self, target: Target) -> None:
        """`target` was accepted: what refuses it from now on is that it has run out."""
        with self._lock:
            if self._located is not None and self._located.target is target:
                self._located.worked = True
                self._renewed = False

    def refused(self, target: Target, code: str) -> bool:
        """`target` was refused with `code`; returns whether another address may be accepted.

        One that worked has run out. One that never did may have, while it waited for its turn; and a CDN says 403 to a
        signed URL that ran out as to one that was never right. The next one is fresh: its refusal holds.
        """
        if code not in _REFUSALS:
            return False
        with self._lock:
            held = self._located
            if held is None or held.target is not target:
                return True  # another connection heard of it first
            old = self._clock() >= held.located_at + _FRESH_S
            again = not self._renewed and (held.worked or old or code in _LOOKS_EXPIRED)
            self._renewed = True
            if again:
                self._located = None
            return again

    def drop(self) -> None:
        """Ask for another address next time: it may lead to a server that is well."""
        with self._lock:
            self._located = None

    def _good(self) -> Target | None:
        with self._lock:
            held = self._located
            return held.target if held is not None and self._clock() < held.good_until else None

    def _ask(self, cancellation: Cancellation) -> Target:
        began = self._clock()
        self._failures = []
        try:
            target = self._locate(cancellation)
        except HoldfastError as error:
            self._failures = [error]
            raise
        finally:
            self._asked += 1
        lifetime_s = target.lifetime_s if isinstance(target, HttpTarget) else None
        use_s = LONGEST_USE_S if lifetime_s is None else min(LONGEST_USE_S, lifetime_s * _USED_SHARE)
        with self._lock:
            self._located = _Located(target, began, began + use_s)
        return target
