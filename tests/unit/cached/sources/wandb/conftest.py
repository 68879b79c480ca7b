"""Fixtures for Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from tests.support.clients import lone_client
from tests.support.fake_wandb import KEY, FakeWandb, fake_wandb


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    with lone_client(monkeypatch, tmp_path, "WANDB_API_KEY", "WANDB_BASE_URL") as client:
        yield client


@pytest.fixture
def fake(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """The service, named by the environment with its key."""
    with fake_wandb() as served:
        monkeypatch.setenv("WANDB_BASE_URL", served.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield served
