"""The address of one file at its source, cached while it is valid and then renewed.

Law: one address at a time, which one thread renews for all users. Blocking and thread-safe; reads only the given clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from cached.transport.connection.cancel import Cancellation
from cached.transport.service.renewal import Renewal
from cached.transport.target import HttpTarget, Target

LONGEST_USE_S = 600.0  # at most, and for an unknown lifetime: the permission to read is checked again periodically
_USED_SHARE = 0.8  # of its lifetime: a request that was sent must arrive in time
_FRESH_S = 5.0
_MAX_REFUSALS = 3  # in a row, of addresses that may have ended each time
_LOOKS_EXPIRED = frozenset({"expired_signature", "forbidden"})  # some CDNs answer 403 to an expired URL
_REFUSALS = _LOOKS_EXPIRED | {"unauthorized"}


@dataclass(slots=True)
class _Located:
    """An address. `is_shared`: its credentials were issued before it was asked for, perhaps long ago."""

    target: Target
    located_at: float
    good_until: float
    is_shared: bool
    worked: bool = False


class Addresses:
    """The successive addresses of one file."""

    def __init__(self, locate: Callable[[Cancellation], Target], clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds, as `HttpTarget.issued_at`."""
        self._locate = locate
        self._clock = clock
        self._lock = threading.Lock()
        self._located = Renewal(self._ask, lambda held: self._clock() < held.good_until)
        self._refusals = 0  # since an address was accepted

    def current(self, cancellation: Cancellation) -> Target:
        """Return the current address. Raises as `Source.locate`, also another thread's error during this call."""
        return self._located.current(cancellation).target

    def mark_accepted(self, target: Target) -> None:
        """Note that `target` was accepted: a later refusal means that it has expired."""
        held = self._located.last()
        if held is not None and held.target is target:
            held.worked = True
            self._refusals = 0

    def mark_refused(self, target: Target, code: str) -> bool:
        """Note that `target` was refused with `code`; return whether another address may be accepted. An address that
        worked has expired. One that was never used may have expired while it waited, or with credentials that other
        files share; and a CDN answers 403 both to an expired signed URL and to a wrong one. The next address is new:
        its refusal is final, except that of a short-lived token, which may end on its way: that of the third."""
        if code not in _REFUSALS:
            return False
        is_token = False
        if isinstance(target, HttpTarget) and target.issuer is not None:
            target.issuer.refuse(target.headers)
            is_token = code == "unauthorized"
        with self._lock:
            held = self._located.last()
            if held is None or held.target is not target:
                return True  # another connection was refused first
            self._refusals += 1
            first = self._refusals == 1
            old = is_token or held.is_shared or self._clock() >= held.located_at + _FRESH_S
            again = (first and (held.worked or code in _LOOKS_EXPIRED)) or (old and self._refusals < _MAX_REFUSALS)
            if again:
                self._located.drop()
            return again

    def drop(self) -> None:
        """Drop the address: the next one may lead to a healthy server."""
        self._located.drop()

    def _ask(self, cancellation: Cancellation) -> _Located:
        began = self._clock()
        target = self._locate(cancellation)
        lifetime_s, issued_at = (
            (target.lifetime_s, target.issued_at) if isinstance(target, HttpTarget) else (None, None)
        )
        use_s = LONGEST_USE_S if lifetime_s is None else min(LONGEST_USE_S, lifetime_s * _USED_SHARE)
        is_shared = issued_at is not None and issued_at < began
        return _Located(target, began if issued_at is None else issued_at, began + use_s, is_shared)
