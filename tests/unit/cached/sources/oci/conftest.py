"""Fixtures for registries: a client without anything of the user who runs the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of Docker's configuration, empty at first; no identity of a cloud, no mirrors."""
    names = ("REGISTRY_AUTH_FILE", "NETRC", "HTTP_PROXY", "http_proxy", "HOLDFAST_REGISTRY_HOSTS_DIR")
    for name in (*names, "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


@pytest.fixture
def client() -> Iterator[HttpClient]:
    client = HttpClient(HttpSettings(connect_timeout_s=2.0))
    yield client
    client.close()
