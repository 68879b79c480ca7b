"""What became of wants that came to nothing, and for how long that holds.

Law: remembers; decides nothing and tells nobody. What failed is tried again after five minutes, since it may have been
published or allowed meanwhile, then after twice as long each time, up to an hour: a try may fetch all of it, and evict
others for that.
"""

from __future__ import annotations

import time

from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.demand import Want

_KEPT_S, _KEPT_CAP_S = 300.0, 3600.0


class Settled:
    """Failures and refusals. `outcomes`: the want that failed for good, or the refusal that was told."""

    def __init__(self) -> None:
        self.outcomes: dict[ModelRef, Want | Permanent] = {}
        self._until: dict[ModelRef, float] = {}  # on the monotonic clock
        self._patience_s: dict[ModelRef, float] = {}

    def failed(self, want: Want) -> None:
        """This could not be fetched."""
        patience_s = self._patience_s.get(want.ref, _KEPT_S)
        self.outcomes[want.ref] = want
        self._until[want.ref] = time.monotonic() + patience_s
        self._patience_s[want.ref] = min(2 * patience_s, _KEPT_CAP_S)

    def refused(self, ref: ModelRef, error: Permanent) -> None:
        """This was refused, and whoever asks was told."""
        self.outcomes[ref] = error

    def begun(self, ref: ModelRef) -> None:
        """It is tried again; should it fail again, the next try comes later."""
        self.outcomes.pop(ref, None)
        self._until.pop(ref, None)

    def forget(self, ref: ModelRef) -> bool:
        """It is here, nobody wants it any more, or somebody asks anew; tells whether there was anything."""
        self._until.pop(ref, None)
        self._patience_s.pop(ref, None)
        return self.outcomes.pop(ref, None) is not None

    def expire(self) -> None:
        """What failed long enough ago is settled no more."""
        now = time.monotonic()
        for ref in [ref for ref, until in self._until.items() if now >= until]:
            self.begun(ref)
