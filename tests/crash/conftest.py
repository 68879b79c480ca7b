"""One warm parent and the roots that scenarios begin with, for all crash tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.trying import Trials
from tests.support.crashing.warm import WarmParent


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """Every scenario, ready to be cut short."""
    with WarmParent() as parent:
        yield Trials(parent, tmp_path_factory.mktemp("trials"))
