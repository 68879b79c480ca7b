"""Fixtures for the sources: a client, a Hub of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from cached.transport.client import HttpClient
from tests.support.clients import lone_client
from tests.support.fake_hub import FakeHub
from tests.support.hub_cases import CONFIG, WEIGHTS, write
from tests.support.object_stores import ENVIRONMENT


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    """A client of a process without credentials for object stores and without a proxy."""
    with lone_client(monkeypatch, tmp_path, *ENVIRONMENT) as client:
        yield client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub that this process uses, without any token of the user who runs the tests."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with FakeHub(page_size=2) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder: weights for Git LFS, small files, a folder inside."""
    return write(
        tmp_path / "model",
        {
            "config.json": CONFIG,
            "model.safetensors": WEIGHTS,
            "onnx/model.bin": WEIGHTS[:1000],
            "onnx/ä b#c?.json": b"[]",
            "empty.txt": b"",
        },
    )
