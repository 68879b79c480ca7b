"""`cached.transport.git_blob` against Git itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cached.transport.git_blob import git_blob_hasher


@pytest.mark.parametrize("content", [b"", b"{}\n", bytes(range(256)) * 300])
def test_the_id_is_the_one_git_gives(content: bytes, tmp_path: Path) -> None:
    """Bytes hashed in pieces get the id that `git hash-object` prints."""
    (tmp_path / "file").write_bytes(content)
    expected = subprocess.run(
        ["git", "hash-object", "--no-filters", tmp_path / "file"], capture_output=True, text=True, check=True
    ).stdout.strip()
    hasher = git_blob_hasher(len(content))
    for start in range(0, len(content), 1000):
        hasher.update(content[start : start + 1000])
    assert hasher.hexdigest() == expected
