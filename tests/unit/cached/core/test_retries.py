"""The pause after a permanent failure."""

from __future__ import annotations

import pytest

from cached.contract.errors import Permanent
from cached.core.retries import failed_s


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
