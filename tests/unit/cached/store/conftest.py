"""An empty root, prepared as the daemon does."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.store.start import recovery


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    return layout
