"""Fixtures for Git: a host of the module's own, and a client without any credentials of the user who runs the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from tests.support.git_host import GitHost, git_host


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, netrc file or proxy of the user who runs the tests."""
    own = {"NETRC", "http_proxy", "HTTP_PROXY", "GH_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN", "HF_TOKEN"}
    for name in own | {name for name in os.environ if name.startswith("HOLDFAST_GIT_TOKEN_")}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def client(no_credentials: None) -> Iterator[HttpClient]:
    client = HttpClient(HttpSettings(header_timeout_s=20.0, stall_window_s=20.0))
    yield client
    client.close()


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    with git_host(tmp_path_factory.mktemp("git")) as host:
        yield host


@pytest.fixture
def host(shared_host: GitHost) -> Iterator[GitHost]:
    """The module's host, as it was at first."""
    yield shared_host
    shared_host.private, shared_host.public_url, shared_host.lfs_url = False, "", ""
    shared_host.protocol = 2
    shared_host.batch = lambda answer: answer
    shared_host.seen.clear()
