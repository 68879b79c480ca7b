"""The conformance suite, asked of Git's own server (`git http-backend`) with a private repository. Large files are in
Git LFS, at a stub written from its specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.front import Front, Request, front_of
from cached.conformance.place import Refused
from cached.conformance.pulling import puller_in
from cached.contract.trust import Trust
from cached.sources.base import Source
from cached.sources.git.access import variable_of
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.urls import Address
from tests.support.git_host import BASIC, TOKEN, USER, GitHost

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

    def is_bytes(self, request: Request) -> bool:
        return request.path.startswith("/lfs-objects/")


@pytest.mark.parametrize("case", CASES)
async def test_conforms(
    case: str, host: GitHost, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Git host keeps each promise of `cached/conformance/cases.py`, or the place refuses the case by name."""
    host.private = True
    with ExitStack() as stack:
        front = stack.enter_context(front_of(host.url))
        host.public_url = front.url
        monkeypatch.setenv(variable_of(Address.parse(front.url).origin), f"{USER}:{TOKEN}")
        puller = stack.enter_context(puller_in(tmp_path / "root"))
        try:
            await run_case(case, Repository(client, host, front), puller)
        except Refused as refused:
            pytest.skip(str(refused))
