"""The address of one file at its source, cached while it is valid and then renewed.

Law: one address at a time, which one thread renews for all users. Blocking and thread-safe; reads only the given clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from cached.contract.errors import HoldfastError
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget, Target

LONGEST_USE_S = 600.0  # at most, and for an unknown lifetime: the permission to read is checked again periodically
_USED_SHARE = 0.8  # of its lifetime: a request that was sent must arrive in time
_FRESH_S = 5.0
_LOOKS_EXPIRED = frozenset({"expired_signature", "forbidden"})  # some CDNs answer 403 to an expired URL
_REFUSALS = _LOOKS_EXPIRED | {"unauthorized"}


@dataclass(slots=True)
class _Located:
    target: Target
    located_at: float
    good_until: float
    worked: bool = False


class Addresses:
    """The successive addresses of one file."""

    def __init__(self, locate: Callable[[Cancellation], Target], clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._locate = locate
        self._clock = clock
        self._lock = threading.Lock()
        self._locating = threading.Lock()
        self._located: _Located | None = None
        self._failures: list[HoldfastError] = []  # at most one: the last request's error
        self._asked = 0
        self._renewed = False  # after a refusal, and no address was accepted since

    def current(self, cancellation: Cancellation) -> Target:
        """Return the current address. Raises as `Source.locate`, also another thread's error during this call."""
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

    def mark_accepted(self, target: Target) -> None:
        """Note that `target` was accepted: a later refusal means that it has expired."""
        with self._lock:
            if self._located is not None and self._located.target is target:
                self._located.worked = True
                self._renewed = False

    def mark_refused(self, target: Target, code: str) -> bool:
        """Note that `target` was refused with `code`; return whether another address may be accepted. An address that
        worked has expired. One that was never used may have expired while it waited; and a CDN answers 403 both to an
        expired signed URL and to a wrong one. The next address is new: its refusal is final."""
        if code not in _REFUSALS:
            return False
        with self._lock:
            held = self._located
            if held is None or held.target is not target:
                return True  # another connection was refused first
            old = self._clock() >= held.located_at + _FRESH_S
            again = not self._renewed and (held.worked or old or code in _LOOKS_EXPIRED)
            self._renewed = True
            if again:
                self._located = None
            return again

    def drop(self) -> None:
        """Drop the address: the next one may lead to a healthy server."""
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
