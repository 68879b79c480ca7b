"""Fixtures for MLflow's servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from tests.support.clients import lone_client

_VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_S3_ENDPOINT_URL", "http_proxy", "HTTP_PROXY", "NETRC"),
)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    with lone_client(monkeypatch, tmp_path, *_VARIABLES) as client:
        yield client
