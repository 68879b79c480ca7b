"""The page on reliability and the harness say the same."""

from __future__ import annotations

import re

from tests.support.crashing.trying import BY_NAME, Trials
from tests.support.daemon import REPOSITORY


def test_the_table_names_every_step(trials: Trials) -> None:
    """Every kind of step that a scenario takes has its row in docs/reliability.md, and no row speaks of another."""
    found = {point.name for scenario in BY_NAME.values() for point in trials.points(scenario)}
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    section = page.partition("## Crash points and power cuts\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall("`([^`]+)`", row)}
    assert named == found
