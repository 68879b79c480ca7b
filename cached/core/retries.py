"""The time of the next try after a failure, and the number of tries.

Law: pure. Times are seconds; `jitter` is a factor that the caller draws, so that many nodes do not try at once.
"""

from __future__ import annotations

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.core.space import NoInodes, NoSpace

MAX_BAD_RESPONSES = 3
MAX_WRONG_DIGESTS = 2
_MOST_DOUBLINGS = 20  # far beyond any cap
_BLOB_S, _BLOB_CAP_S = 0.5, 60.0
_TRY_S, _TRY_CAP_S = 1.0, 60.0
_SHORT_S = 300.0
_FAILED_S, _FAILED_CAP_S = 300.0, 3600.0
_AWAITED_S, _AWAITED_CAP_S = 60.0, 300.0
# Found when others had been evicted for the version, or all of its bytes had come.
_COSTLY_CODES = frozenset({"digest_mismatch", "bad_response", "too_large"})


def backoff_s(first_s: float, cap_s: float, failures: int) -> float:
    """Return the pause after `failures` in a row: `first_s`, doubled with each further one, up to `cap_s`."""
    return min(cap_s, first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))


class BlobFailures:
    """The failures of one blob's download in a row, and its attempts with wrong bytes. Not thread-safe."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.paused_until = 0.0  # of the origin, in monotonic seconds
        self._bad_responses = self._wrong_digests = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether there were too many wrong responses in a row."""
        return self._bad_responses >= MAX_BAD_RESPONSES

    def record(self, error: HoldfastError, now: float, jitter: float) -> bool:
        """Record a failure and set the end of the pause; return False where it counts as an earlier one: many
        connections fail at the same time."""
        if now < self.paused_until:
            return False
        self.in_a_row += 1
        self._bad_responses += error.code == "bad_response"
        self.paused_until = now + _blob_pause_s(error, self.in_a_row, jitter)
        return True

    def record_progress(self) -> None:
        """Begin the count anew: bytes came, and stay."""
        self.in_a_row = self._bad_responses = 0

    def record_wrong_digest(self) -> None:
        """Record that all bytes came from the source, and were wrong."""
        self._wrong_digests += 1

    @property
    def may_start_over(self) -> bool:
        """Whether another attempt after wrong bytes may bring the right ones."""
        return self._wrong_digests < MAX_WRONG_DIGESTS


def _blob_pause_s(error: HoldfastError, failures: int, jitter: float) -> float:
    """Return the pause between two tries of one blob: with backoff, and at least as long as the source asks."""
    asked_s = error.retry_after_s if isinstance(error, Transient) else None
    return max(asked_s or 0.0, backoff_s(_BLOB_S, _BLOB_CAP_S, failures) * jitter)


def pause_s(error: Transient, failures: int, jitter: float) -> float:
    """Return the pause between two tries of a version: with backoff, and at least as long as the source asks.

    A fetch blocked on space is retried when space is free, and rarely without that: each try receives a stream anew.
    """
    short = isinstance(error, NoSpace | NoInodes)
    own_s = _SHORT_S if short else backoff_s(_TRY_S, _TRY_CAP_S, failures) * jitter
    return max(own_s, error.retry_after_s or 0.0)


def failed_s(error: HoldfastError, failures: int, *, awaited: bool) -> float:
    """Return the pause after a permanent failure: the version may be published or allowed by then, but a try may fetch
    all of it, and evict others for that. While pods wait for the version (`awaited`), whose gates may wait for nothing
    but a correction, it is short, unless another try would fetch the same bytes, or evict others, in vain again."""
    if awaited and error.code not in _COSTLY_CODES:
        return backoff_s(_AWAITED_S, _AWAITED_CAP_S, failures)
    return backoff_s(_FAILED_S, _FAILED_CAP_S, failures)


def hopeless(error: HoldfastError) -> Permanent:
    """Return the permanent error after `MAX_BAD_RESPONSES` wrong responses in a row."""
    return Permanent(
        error.code,
        f"{error.message} (after {MAX_BAD_RESPONSES} attempts)",
        error.remedy or "check the origin and any proxy before it",
    )
