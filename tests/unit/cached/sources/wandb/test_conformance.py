"""The conformance suite, asked of artifacts of Weights & Biases: a stub that follows their client's own requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.conformance.place import Refused
from cached.conformance.pulling import puller_in
from cached.contract.trust import Trust
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from tests.support.fake_wandb import BASIC, KEY, FakeWandb

NAME = "acme/models/tiny:latest"


class LoggedArtifact:
    """An artifact that is logged anew with each change; `fronts`: the service's and its store's."""

    trust, page = Trust.CHECKED, 20
    secrets: Sequence[str] = (KEY, BASIC)
    refused: Mapping[str, str] = {}

    def __init__(self, client: HttpClient, fake: FakeWandb, fronts: Sequence[Front]) -> None:
        self._client, self._fake, self.fronts = client, fake, fronts
        self._files: dict[str, bytes] = {}
        self.uri, self.gone = "wandb://acme/models/tiny", "wandb://acme/models/tiny:gone"

    def open(self, uri: str) -> Source:
        return open_source(uri, self._client)

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files |= files
        self._fake.add(NAME, self._files)

    def remove(self, path: str) -> None:
        """Delete the file's bytes, as the deletion of the artifact does."""
        data = self._files.pop(path)
        self._fake.files = {key: each for key, each in self._fake.files.items() if each is not data}

    def is_bytes(self, request: ProxiedRequest) -> bool:
        key = request.path.partition("?")[0].rpartition("/")[2]
        return request.path.startswith("/store/") and len(self._fake.files.get(key, b"")) > 100_000

    def expire(self) -> None:
        self._fake.withdrawn = self._fake.signed


@pytest.mark.parametrize("case", CASES)
async def test_conforms(
    case: str, fake: FakeWandb, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact keeps each promise of `cached/conformance/cases.py`, or refuses the case by name."""
    with ExitStack() as stack, puller_in(tmp_path / "root") as puller:
        fronts = [stack.enter_context(front_of(fake.url)) for _ in range(2)]
        monkeypatch.setenv("WANDB_BASE_URL", fronts[0].url)
        fake.store_url = fronts[1].url
        place = LoggedArtifact(client, fake, fronts)
        try:
            await run_case(case, place, puller)
        except Refused as refused:
            assert case in place.refused
            pytest.skip(str(refused))
