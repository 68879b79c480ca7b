"""A short soak; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.load.soak.running import any_seed, soak


@pytest.mark.slow
def test_a_busy_node_stays_as_it_was(tmp_path: Path) -> None:
    """Memory, descriptors, threads, metrics, files and log of a daemon in rough weather are level after a warm-up."""
    outcome = soak(tmp_path, 150, any_seed(), lambda sample: None)
    print(outcome.report())
    assert (outcome.growing, outcome.missing, outcome.code) == ({}, [], 0), outcome.report()
