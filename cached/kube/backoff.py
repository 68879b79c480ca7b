"""How long to wait before the next try: doubling, with jitter, up to a cap; or as long as the other side asked.

Law: computes seconds; sleeps nowhere.
"""

from __future__ import annotations

import random

from cached.contract.errors import HoldfastError, Transient


class Backoff:
    """The pauses between the tries at one thing. Full jitter: a thousand daemons that lost the API at once come back
    spread out."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s, self._cap_s = first_s, cap_s
        self._next_s = first_s

    def reset(self) -> None:
        """It worked."""
        self._next_s = self._first_s

    def pause_s(self, error: HoldfastError | None = None) -> float:
        """It did not: seconds to wait now."""
        ceiling, self._next_s = self._next_s, min(self._cap_s, self._next_s * 2)
        asked = error.retry_after_s if isinstance(error, Transient) else None
        if asked is not None:
            return min(asked, self._cap_s) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
