"""The pages that promise: what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("page", ["docs/reliability.md", "docs/security.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    """A promise names the test that shows it, and that test exists under its name."""
    named = _TEST.findall((ROOT / page).read_text())
    assert named
    for file, test in named:
        text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        assert text and (not test or re.search(rf"def {test}\b", text)), f"{page}: no {file}::{test}"
