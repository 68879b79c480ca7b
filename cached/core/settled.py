"""What became of wants that came to nothing, and for how long that holds.

Law: remembers; decides nothing and tells nobody. What failed is tried again after five minutes, since it may have been
published or allowed meanwhile, then after twice as long each time, up to an hour: a try may fetch all of it, and evict
others for that.
"""

from __future__ import annotations

import math
import time

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.demand import Want

_Key = ModelRef | tuple[ModelRef, Digest]
_KEPT_S, _KEPT_CAP_S = 300.0, 3600.0


class Settled:
    """Failures and refusals. `outcomes`: the want that failed for good, or the refusal that was told. `pins`: the
    verdicts on pins that are not the catalog's, which concern whoever pins so and nobody else."""

    def __init__(self) -> None:
        self.outcomes: dict[ModelRef, Want | Permanent] = {}
        self.pins: dict[tuple[ModelRef, Digest], Permanent] = {}
        self._pins_of: dict[ModelRef, set[Digest]] = {}
        self._pins_changed: set[ModelRef] = set()
        self._until: dict[_Key, float] = {}  # on the monotonic clock
        self._next = math.inf  # no earlier than this does one of them end
        self._patience_s: dict[_Key, float] = {}

    def failed(self, want: Want) -> None:
        """This could not be fetched."""
        self.outcomes[want.ref] = want
        self._keep(want.ref)

    def pin_failed(self, ref: ModelRef, pin: Digest, error: Permanent) -> None:
        """The source has another content than this pin, which the catalog does not promise, asks for."""
        self.pins[ref, pin] = error
        self._pins_of.setdefault(ref, set()).add(pin)
        self._pins_changed.add(ref)
        self._keep((ref, pin))

    def take_changed_pins(self) -> set[ModelRef]:
        """The versions for which `pins` changed since the last call."""
        changed, self._pins_changed = self._pins_changed, set()
        return changed

    def refused(self, ref: ModelRef, error: Permanent) -> None:
        """This was refused, and whoever asks was told."""
        self.outcomes[ref] = error

    def begun(self, ref: ModelRef) -> None:
        """It is tried again; should it fail again, the next try comes later."""
        self.outcomes.pop(ref, None)
        self._until.pop(ref, None)

    def asked_anew(self, ref: ModelRef) -> bool:
        """A pod or a pull came: all of it is tried again, pins too; tells whether it had come to nothing."""
        for pin in list(self._pins_of.get(ref, ())):
            self._forget_pin(ref, pin)
        return self.forget(ref)

    def published(self, ref: ModelRef, digest: Digest | None) -> None:
        """It came, as `digest` (None: it went again). Other pins are as wrong as before: to try them again would fetch
        it again."""
        if digest is not None and (ref, digest) in self.pins:
            self._forget_pin(ref, digest)
        self.forget(ref)

    def forget(self, ref: ModelRef) -> bool:
        """It is here, or nobody wants it any more; tells whether it had come to nothing. Verdicts on pins stay."""
        self._until.pop(ref, None)
        self._patience_s.pop(ref, None)
        return self.outcomes.pop(ref, None) is not None

    def expire(self) -> list[ModelRef]:
        """What failed long enough ago is settled no more; returns which versions."""
        now = time.monotonic()
        if now < self._next:
            return []
        over = [key for key, until in self._until.items() if now >= until]
        for key in over:
            if isinstance(key, ModelRef):
                self.begun(key)
            else:
                self._drop_pin(*key)
        self._next = min(self._until.values(), default=math.inf)
        return [key for key in over if isinstance(key, ModelRef)]

    def _keep(self, key: _Key) -> None:
        patience_s = self._patience_s.get(key, _KEPT_S)
        self._until[key] = until = time.monotonic() + patience_s
        self._next = min(self._next, until)
        self._patience_s[key] = min(2 * patience_s, _KEPT_CAP_S)

    def _forget_pin(self, ref: ModelRef, pin: Digest) -> None:
        self._drop_pin(ref, pin)
        self._patience_s.pop((ref, pin), None)

    def _drop_pin(self, ref: ModelRef, pin: Digest) -> None:
        del self.pins[ref, pin], self._until[ref, pin]
        self._pins_of[ref].discard(pin)
        if not self._pins_of[ref]:
            del self._pins_of[ref]
        self._pins_changed.add(ref)
