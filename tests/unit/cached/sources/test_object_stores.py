"""The conformance suite, asked of Google Cloud Storage and Azure Blob Storage: of stand-ins written from the services'
documentation, with the tokens of a machine's identity, and of the emulators where they are installed."""

from __future__ import annotations

import re
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
from tests.support.fake_azure import ACCOUNT, KEY, fake_azure
from tests.support.fake_gcs import fake_gcs
from tests.support.object_stores import (
    AZURITE_ACCOUNT,
    AZURITE_KEY,
    AzuriteStore,
    FakeAzureStore,
    FakeGcsStore,
    GcsEmulatorStore,
    Store,
)

_PAGE = re.compile(r"max-?results=\d+", re.IGNORECASE)
_PAGE_SIZE = 20


class StorePlace:
    """A store behind a front. A machine's tokens come from `machine`; a key signs where there is none."""

    trust = Trust.CHECKED
    page = _PAGE_SIZE
    refused: Mapping[str, str] = {}

    def __init__(self, client: HttpClient, store: Store, front: Front, endpoint: str) -> None:
        self._client, self._store = client, store
        self.fronts = (front,)
        base, query = store.uri.removesuffix("m/"), f"?endpoint_url={endpoint}"
        self.uri, self.gone = f"{base}m/{query}", f"{base}gone/{query}"
        front.rewrite = lambda path: _PAGE.sub(lambda found: f"{found[0].partition('=')[0]}={_PAGE_SIZE}", path)

    @property
    def secrets(self) -> Sequence[str]:
        return (KEY, AZURITE_KEY)

    def open(self, uri: str) -> Source:
        return open_source(uri, self._client)

    def put(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            self._store.put(path, data)

    def remove(self, path: str) -> None:
        self._store.remove(path)

    def expire(self) -> None:
        body = (
            b"<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>Signature not valid in the specified "
        )
        body += b"time frame</AuthenticationErrorDetail></Error>"
        self.fronts[0].answer(403, body, {"Content-Type": "application/xml"}, choose=self.is_bytes)

    def is_bytes(self, request: ProxiedRequest) -> bool:
        is_listing = "comp=list" in request.path or "prefix=" in request.path
        return request.method == "GET" and ".bin" in request.path and not is_listing


class MachinePlace(StorePlace):
    """A store whose requests carry the tokens of a stand-in's metadata service."""

    def __init__(
        self, client: HttpClient, store: Store, front: Front, endpoint: str, machine: FakeGcsStore | FakeAzureStore
    ) -> None:
        super().__init__(client, store, front, endpoint)
        self._machine, self._takes_any_token = machine.server, store is not machine

    @property
    def secrets(self) -> Sequence[str]:
        return tuple(self._machine.issued)

    def expire(self) -> None:
        self._machine.withdrawn = len(self._machine.issued)
        if self._takes_any_token:
            self.fronts[0].answer(401, b"{}", {"Content-Type": "application/json"}, choose=self.is_bytes)


def at(place: str, request: pytest.FixtureRequest, client: HttpClient, stack: ExitStack) -> StorePlace:
    """The place of that name, behind a front."""
    monkeypatch = request.getfixturevalue("monkeypatch")
    if place in ("gcs", "fake-gcs-server"):
        machine = FakeGcsStore(stack.enter_context(fake_gcs(private=True)))
        store: Store = machine
        if place == "fake-gcs-server":
            store = GcsEmulatorStore(request.getfixturevalue("gcs_emulator_url"))
        front = stack.enter_context(front_of(store.environment["STORAGE_EMULATOR_HOST"]))
        monkeypatch.setenv("GCE_METADATA_HOST", machine.server.host)
        return MachinePlace(client, store, front, front.url, machine)
    if place == "azure":
        account = FakeAzureStore(stack.enter_context(fake_azure(private=True)))
        front = stack.enter_context(front_of(account.server.url))
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", account.server.url)
        return MachinePlace(client, account, front, f"{front.url}/{ACCOUNT}", account)
    url = request.getfixturevalue("azurite_url")
    front = stack.enter_context(front_of(url))
    monkeypatch.setenv("AZURE_STORAGE_KEY", AZURITE_KEY)
    return StorePlace(client, AzuriteStore(url), front, f"{front.url}/{AZURITE_ACCOUNT}")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", ["gcs", "fake-gcs-server", "azure", "azurite"])
async def test_conforms(
    place: str, case: str, request: pytest.FixtureRequest, client: HttpClient, tmp_path: Path
) -> None:
    """Each store's source keeps each promise of `cached/conformance/cases.py`, or its place refuses it by name."""
    with ExitStack() as stack:
        opened = at(place, request, client, stack)
        with puller_in(tmp_path / "root") as puller:
            try:
                await run_case(case, opened, puller)
            except Refused as refused:
                pytest.skip(str(refused))
