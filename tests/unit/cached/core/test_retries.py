"""The pause after a failure, and what ends a download."""

from __future__ import annotations

import pytest

from cached.contract.errors import Permanent, Transient
from cached.core.retries import MAX_BAD_RESPONSES, BlobFailures, failed_s


@pytest.mark.parametrize("code", ["unknown_model", "not_found", "unauthorized"])
def test_what_pods_wait_for_is_tried_again_soon(code: str) -> None:
    """A failure that a correction may end is tried again after a minute while pods wait, later without them."""
    error = Permanent(code, "no", "")
    waiting, alone = (failed_s(error, 1, awaited=awaited) for awaited in (True, False))
    assert waiting < alone


@pytest.mark.parametrize("code", ["digest_mismatch", "bad_response", "too_large"])
def test_what_costs_others_is_tried_again_rarely(code: str) -> None:
    """A failure that was found only after bytes had come, or others had been evicted, is tried as rarely with pods that
    wait as without: each try would evict what others use next."""
    error = Permanent(code, "no", "")
    for failures in (1, 2, 9):
        assert failed_s(error, failures, awaited=True) == failed_s(error, failures, awaited=False)


BROKEN = Transient("reset", "the connection broke", "")


def test_failures_at_the_same_time_count_once() -> None:
    """What fails within the pause after a failure belongs to that one, and does not prolong the pause."""
    failures = BlobFailures()
    assert failures.record(BROKEN, 100.0, 1.0)
    until = failures.paused_until
    assert not failures.record(BROKEN, until - 0.1, 1.0)
    assert (failures.in_a_row, failures.paused_until) == (1, until)
    assert failures.record(BROKEN, until, 1.0)
    assert failures.in_a_row == 2 and failures.paused_until - until > until - 100.0


def test_bytes_that_came_end_the_series_of_failures() -> None:
    """Only wrong responses with no byte in between are hopeless; the pause after progress is short again."""
    failures, strange = BlobFailures(), Transient("bad_response", "not the range", "")
    for _ in range(2):
        for _ in range(MAX_BAD_RESPONSES - 1):
            assert failures.record(strange, failures.paused_until, 1.0)
            assert not failures.is_hopeless
        failures.record_progress()
    began = failures.paused_until
    assert failures.record(strange, began, 1.0) and failures.paused_until == began + 0.5
    for _ in range(MAX_BAD_RESPONSES - 1):
        failures.record(strange, failures.paused_until, 1.0)
    assert failures.is_hopeless


def test_wrong_bytes_are_fetched_once_more() -> None:
    """Progress does not excuse wrong bytes: all of them had come each time."""
    failures = BlobFailures()
    failures.record_wrong_digest()
    failures.record_progress()
    assert failures.may_start_over
    failures.record_wrong_digest()
    assert not failures.may_start_over
