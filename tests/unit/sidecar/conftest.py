"""An empty public folder, and gates over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.layout import PublicLayout
from tests.support.gates import Gates
from tests.support.snapshots import make_public


@pytest.fixture
def public(tmp_path: Path) -> PublicLayout:
    """An empty public folder."""
    return make_public(tmp_path / "public")


@pytest.fixture
def gates(public: PublicLayout, tmp_path: Path) -> Iterator[Gates]:
    """Starts gates over `public`."""
    gates = Gates(public, tmp_path)
    yield gates
    gates.end()
