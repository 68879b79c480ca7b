"""A service account of the API server that each test module starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_api import FakeApi


@pytest.fixture
def account(api: FakeApi, tmp_path: Path) -> Path:
    """A service account's folder."""
    folder = tmp_path / "account"
    folder.mkdir()
    assert api.certificates is not None
    (folder / "ca.crt").write_bytes(api.certificates.authority.read_bytes())
    (folder / "token").write_text("first\n")
    return folder
