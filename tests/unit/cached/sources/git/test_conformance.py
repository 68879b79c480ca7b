"""The conformance suite, asked of Git's own server (`git http-backend`) with a private repository. Large files are in
Git LFS, at a stub written from its specification, and at giftless where that is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.conformance.place import Refused
from cached.conformance.pulling import puller_in
from cached.contract.trust import Trust
from cached.sources.base import Source
from cached.sources.git.access import variable_of
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.urls import Address
from tests.support.git_host import BASIC, TOKEN, USER, GitHost, giftless


@pytest.fixture(scope="module")
def giftless_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of giftless's objects, and its URL."""
    folder = tmp_path_factory.mktemp("giftless")
    with giftless(folder) as url:
        yield folder, url


ONE_ANSWER = {"pagination": "a commit's folders come in one answer, however many there are"}


class Repository:
    """A private repository; the host's LFS server gives each address a token of its own."""

    trust = Trust.CHECKED
    page = 20
    refused: Mapping[str, str] = ONE_ANSWER

    def __init__(self, client: HttpClient, host: GitHost, front: Front) -> None:
        self._client, self._host = client, host
        self._repository = host.create()
        self._files: dict[str, bytes] = {}
        self.fronts: Sequence[Front] = (front,)
        self.uri, self.gone = (f"git+{front.url}/{host.name_of(self._repository)}@{name}" for name in ("main", "gone"))

    @property
    def secrets(self) -> Sequence[str]:
        return (TOKEN, BASIC, *self._host.issued)

    def open(self, uri: str) -> Source:
        return open_source(uri, self._client)

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files |= files
        self._repository.commit(self._files)

    def remove(self, path: str) -> None:
        del self._files[path]
        self._repository.commit(self._files)

    def expire(self) -> None:
        self._host.expire()

    def is_bytes(self, request: ProxiedRequest) -> bool:
        return request.path.startswith("/lfs-objects/")


class AtGiftless(Repository):
    """The same repository, whose host passes requests for LFS on to giftless, over the files in `storage`."""

    def __init__(self, client: HttpClient, host: GitHost, front: Front, storage: Path) -> None:
        super().__init__(client, host, front)
        self._storage = storage / host.name_of(self._repository)

    def put(self, files: Mapping[str, bytes]) -> None:
        super().put(files)
        self._storage.mkdir(parents=True, exist_ok=True)
        for oid, data in self._repository.lfs.items():
            (self._storage / oid).write_bytes(data)

    def expire(self) -> None:
        self.fronts[0].answer(403, choose=self.is_bytes)

    def is_bytes(self, request: ProxiedRequest) -> bool:
        return "/info/lfs/objects/storage/" in request.path


@pytest.mark.parametrize("server", ["stub", "giftless"])
@pytest.mark.parametrize("case", CASES)
async def test_conforms(
    case: str,
    server: str,
    host: GitHost,
    client: HttpClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """A Git host keeps each promise of `cached/conformance/cases.py`, or the place refuses the case by name."""
    host.private = True
    with ExitStack() as stack:
        front = stack.enter_context(front_of(host.url))
        host.public_url = front.url
        monkeypatch.setenv(variable_of(Address.parse(front.url).origin), f"{USER}:{TOKEN}")
        place = Repository(client, host, front)
        if server == "giftless":
            storage, host.lfs_url = request.getfixturevalue("giftless_server")
            place = AtGiftless(client, host, front, storage)
        puller = stack.enter_context(puller_in(tmp_path / "root"))
        try:
            await run_case(case, place, puller)
        except Refused as refused:
            pytest.skip(str(refused))
