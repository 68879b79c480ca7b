"""Fixtures for MLflow's servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

_VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_S3_ENDPOINT_URL", "http_proxy", "HTTP_PROXY", "NETRC"),
)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    client = HttpClient(HttpSettings(header_timeout_s=20.0, stall_window_s=20.0))
    yield client
    client.close()
