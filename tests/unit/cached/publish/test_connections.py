"""What a publish says of connections that it cannot open, to an object store and to a registry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cached.contract.errors import Permanent, Transient
from cached.publish import connections
from cached.publish.oci import uploads
from cached.publish.oci.uploads import RegistryUploads
from cached.publish.requests import Authorization, StoreRequests
from cached.sources.oci.access.auth import RegistryAuth
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from tests.support.certificates import make_certificates
from tests.support.origin import HostileOrigin
from tests.support.silent_names import silent_name


async def ask_store(url: str) -> None:
    store = StoreRequests(Authorization(lambda url, _cancellation: (url, ()), lambda _headers: False), 1)
    try:
        await store.send_once("GET", url, ())
    finally:
        await store.aclose()


async def ask_registry(url: str) -> None:
    client = HttpClient(HttpSettings())
    auth = RegistryAuth(url, "team/tiny", client, lambda _cancellation: None)
    registry = RegistryUploads(url, "team/tiny", auth, asyncio.Semaphore(1))
    try:
        await registry.has_blob("sha256:" + "0" * 64)
    finally:
        await registry.aclose()
        client.close()


each_way = pytest.mark.parametrize("ask", [ask_store, ask_registry], ids=["store", "registry"])
Ask = Callable[[str], Awaitable[None]]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(uploads, "_WAIT_S", 0.0)


@each_way
async def test_a_silent_name_server_is_told_as_an_unreachable_host(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is never resolved counts as no connection after the limit, however long the C library waits, and the
    error says that no name server answers."""
    monkeypatch.setattr(connections, "_CONNECT_TIMEOUT_S", 0.05)
    with silent_name("store.invalid", monkeypatch) as lookups, pytest.raises(Transient) as raised:
        await ask("http://store.invalid:9000")
    assert lookups.asked and not lookups.waited_out
    assert raised.value.code == "connect"
    assert "no answer of a name server for store.invalid" in raised.value.message


@each_way
async def test_a_certificate_that_is_not_trusted_ends_the_publish(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another try does not help: the error is permanent, and names the variable that a person sets."""
    certificates = make_certificates(tmp_path)
    with HostileOrigin(tls=certificates.server_context()) as origin:
        with pytest.raises(Permanent) as raised:
            await ask(origin.url(""))
        assert raised.value.code == "tls_verification"
        assert "SSL_CERT_FILE" in raised.value.remedy
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        await ask(origin.url(""))
