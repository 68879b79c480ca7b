"""The conformance suite, run by every source of this repository at its place in `tests/support/places.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.place import Refused
from cached.conformance.pulling import puller_in
from cached.transport.client import HttpClient
from tests.support.clients import lone_client
from tests.support.places import PLACES, Folder, Hub, Moto, Rclone, Web


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    with lone_client(monkeypatch, tmp_path) as client:
        yield client


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", PLACES)
async def test_conforms(
    place: str, case: str, request: pytest.FixtureRequest, client: HttpClient, tmp_path: Path
) -> None:
    """Each source keeps each promise of `cached/conformance/cases.py`, or its place refuses the case by name."""
    with ExitStack() as stack:
        at = PLACES[place](request, client, tmp_path, stack)
        with puller_in(tmp_path / "root") as puller:
            try:
                await run_case(case, at, puller)
            except Refused as refused:
                assert case in at.refused
                pytest.skip(str(refused))


def test_a_place_refuses_known_cases_only() -> None:
    """A case that is refused exists: none is left out under a name that no suite runs."""
    for kind in (Folder, Web, Moto, Rclone, Hub):
        assert set(kind.refused) <= set(CASES)
        assert all(kind.refused.values())
