"""An HTTP client of a process without credentials and without a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings


@contextmanager
def lone_client(monkeypatch: pytest.MonkeyPatch, home: Path, *variables: str) -> Iterator[HttpClient]:
    """A client with no proxy, no `variables` in the environment, and no credentials in its home."""
    for name in (*variables, "http_proxy", "HTTP_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    client = HttpClient(HttpSettings(header_timeout_s=20.0, stall_window_s=20.0))
    try:
        yield client
    finally:
        client.close()
