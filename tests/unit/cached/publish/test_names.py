"""What a publish does where a name server stays silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import ModuleType

import pytest

from cached.contract.errors import Transient
from cached.publish import requests
from cached.publish.oci import uploads
from cached.publish.oci.uploads import RegistryUploads
from cached.publish.requests import Authorization, StoreRequests
from cached.sources.oci.access.auth import RegistryAuth
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from tests.support.silent_names import silent_name

URL = "http://store.invalid:9000"


async def ask_store() -> None:
    store = StoreRequests(Authorization(lambda url, _cancellation: (url, ()), lambda _headers: False), 1)
    try:
        await store.send_once("GET", URL, ())
    finally:
        await store.aclose()


async def ask_registry() -> None:
    client = HttpClient(HttpSettings())
    auth = RegistryAuth(URL, "team/tiny", client, lambda _cancellation: None)
    registry = RegistryUploads(URL, "team/tiny", auth, asyncio.Semaphore(1))
    try:
        await registry.has_blob("sha256:" + "0" * 64)
    finally:
        await registry.aclose()
        client.close()


@pytest.mark.parametrize(("ask", "module"), [(ask_store, requests), (ask_registry, uploads)], ids=["store", "registry"])
async def test_a_silent_name_server_is_told_as_an_unreachable_host(
    ask: Callable[[], Awaitable[None]], module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is never resolved counts as no connection after the limit, however long the C library waits, and the
    error says that no name server answers."""
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(uploads, "_WAIT_S", 0.0)
    with silent_name("store.invalid", monkeypatch) as lookups, pytest.raises(Transient) as raised:
        await ask()
    assert lookups.asked and not lookups.waited_out
    assert raised.value.code == "connect"
    assert "no answer of a name server for store.invalid" in raised.value.message
