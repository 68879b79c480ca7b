"""A value that ends after a while, and that one thread renews for all its users.

Law: one renewal at a time; who waits for it shares its result, or its error. Blocking and thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cached.contract.errors import HoldfastError
from cached.transport.connection.cancel import Cancellation

T = TypeVar("T")


class Renewal(Generic[T]):
    """The successive values. `renew` returns the next one or raises `HoldfastError`; `is_good` returns whether one may
    still be used."""

    def __init__(self, renew: Callable[[Cancellation], T], is_good: Callable[[T], bool]) -> None:
        self._renew = renew
        self._is_good = is_good
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._value: T | None = None
        self._failures: list[HoldfastError] = []  # at most one: the last renewal's error
        self._renewals = 0

    def current(self, cancellation: Cancellation) -> T:
        """Return the value, renewed if it is not good. Raises as `renew`, also another thread's error during this call;
        `Cancelled` before a renewal."""
        seen = self._renewals
        value = self.good()
        if value is not None:
            return value
        with self._renewing:
            cancellation.check()
            value = self.good()
            if value is not None:
                return value
            if self._renewals != seen and self._failures:
                raise self._failures[0]
            return self._next(cancellation)

    def good(self) -> T | None:
        """Return the value if it may still be used, without waiting."""
        with self._lock:
            return self._value if self._value is not None and self._is_good(self._value) else None

    def last(self) -> T | None:
        """Return the last value unless it was dropped, good or not."""
        with self._lock:
            return self._value

    def drop(self) -> None:
        """Forget the value: the next user renews it."""
        with self._lock:
            self._value = None

    def drop_if(self, is_meant: Callable[[T], bool]) -> None:
        """Forget the value if it is the one that is meant, and not a later one."""
        with self._lock:
            if self._value is not None and is_meant(self._value):
                self._value = None

    def _next(self, cancellation: Cancellation) -> T:
        self._failures = []
        try:
            value = self._renew(cancellation)
        except HoldfastError as error:
            self._failures = [error]
            raise
        finally:
            self._renewals += 1
        with self._lock:
            self._value = value
        return value
