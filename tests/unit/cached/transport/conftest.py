"""An origin, clients, and certificates; the environment names no proxy, netrc or authority."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from tests.support.certificates import Certificates, make_certificates
from tests.support.origin import HostileOrigin
from tests.support.reading import HASTY, MakeClient


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def origin() -> Iterator[HostileOrigin]:
    with HostileOrigin() as origin:
        yield origin


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """Make clients, after the environment is as the test wants it; they are closed at its end."""
    made: list[HttpClient] = []

    def make(settings: HttpSettings) -> HttpClient:
        made.append(HttpClient(settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: MakeClient) -> HttpClient:
    """A client as the daemon has it."""
    return make_client(HttpSettings())


@pytest.fixture
def hasty_client(make_client: MakeClient) -> HttpClient:
    """A client that loses patience soon."""
    return make_client(HASTY)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))
