"""Fixtures for Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from tests.support.fake_wandb import KEY, FakeWandb, fake_wandb


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "http_proxy", "HTTP_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    client = HttpClient(HttpSettings(header_timeout_s=20.0, stall_window_s=20.0))
    yield client
    client.close()


@pytest.fixture
def fake(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """The service, named by the environment with its key."""
    with fake_wandb() as served:
        monkeypatch.setenv("WANDB_BASE_URL", served.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield served
