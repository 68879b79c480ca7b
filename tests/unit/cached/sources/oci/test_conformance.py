"""The conformance suite, asked of a real registry with token authentication: raw layers, and an image's plain tar."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.conformance.pulling import puller_in
from cached.contract.trust import Trust
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from tests.support.registry import RunningRegistry, archive, docker_registry
from tests.support.registry_tokens import PASSWORD, USER, registry_tokens

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_SMALL_BYTES = 1000
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
INVALID = {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:9/",service="x",error="invalid_token"'}


class Repository:
    """A repository that a test fills past the registry's authentication: both registries have one storage."""

    secrets: Sequence[str] = (PASSWORD, BASIC)
    fronts: Sequence[Front] = ()
    page = 20
    refused: Mapping[str, str] = {}

    def __init__(self, client: HttpClient, storage: RunningRegistry, front: Front, pack: str) -> None:
        self._client, self._storage, self._pack = client, storage, pack
        self._repository, self._files = f"team/{uuid4().hex[:12]}", dict[str, bytes]()
        self.fronts = (front,)
        self.trust = Trust.KNOWN if pack == "raw" else Trust.VERSIONED
        place = f"oci://{front.url.removeprefix('http://')}/{self._repository}"
        self.uri, self.gone = f"{place}:v1", f"{place}:gone"

    def open(self, uri: str) -> Source:
        return open_source(uri, self._client)

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files |= files
        if self._pack == "raw":
            self._storage.put_raw(self._repository, "v1", self._files)
        else:
            packed = archive({f"models/{path}": data for path, data in self._files.items()})
            self._storage.put_image(self._repository, "v1", [packed])

    def remove(self, path: str) -> None:
        del self._files[path]
        self.put({})

    def expire(self) -> None:
        self.fronts[0].answer(401, b"{}", INVALID, choose=self.is_bytes)

    def is_bytes(self, request: ProxiedRequest) -> bool:
        """A request for a few bytes is for a small file, or only looks whether the registry redirects."""
        match = _RANGE.fullmatch(request.headers.get("range", ""))
        return "/blobs/" in request.path and (match is None or int(match[2]) - int(match[1]) >= _SMALL_BYTES)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningRegistry, RunningRegistry]]:
    """A registry without and one with authentication, over the same files."""
    folder = tmp_path_factory.mktemp("guarded")
    with (
        registry_tokens(folder) as tokens,
        docker_registry(folder / "r") as storage,
        docker_registry(folder / "r", more=tokens.settings) as registry,
    ):
        yield storage, registry


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pack", ["raw", "image"])
async def test_conforms(
    pack: str,
    case: str,
    guarded: tuple[RunningRegistry, RunningRegistry],
    config: Path,
    client: HttpClient,
    tmp_path: Path,
) -> None:
    """A registry keeps each promise of `cached/conformance/cases.py`; none is refused."""
    storage, registry = guarded
    with front_of(f"http://{registry.host}") as front, puller_in(tmp_path / "root") as puller:
        host = front.url.removeprefix("http://")
        (config / "config.json").write_text(json.dumps({"auths": {host: {"auth": BASIC}}}))
        await run_case(case, Repository(client, storage, front, pack), puller)
