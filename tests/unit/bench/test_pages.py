"""The page cache, filled and emptied for real, and found so by the kernel's own count."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from bench import pages


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "a", tmp_path / "b"]
    for path in found:
        path.write_bytes(os.urandom(3 << 20))
    return found


def test_what_was_read_is_warm(files: list[Path]) -> None:
    """After `warm` every page is cached, and the share says so."""
    share = pages.warm(files)
    assert pages.is_warm(share)
    assert not pages.is_cold(share)


def test_what_was_dropped_is_cold(files: list[Path]) -> None:
    """After `drop` no page is cached, though the files were written a moment ago."""
    share = pages.drop(files)
    if not pages.is_cold(share):
        pytest.skip("this file system keeps its pages (tmpfs does)")
    assert pages.cached_share(files) == share
    assert pages.is_warm(pages.warm(files))


def test_pages_in_use_are_not_called_cold(files: list[Path]) -> None:
    """Pages that a process maps stay cached, and `drop` says how many."""
    with files[0].open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) >= 0
        share = pages.drop(files)
        assert not pages.is_cold(share)


def test_the_older_call_counts_alike(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no cachestat(2), mincore(2) gives the same share."""
    pages.warm(files)

    def refuse(*_: int) -> int:
        raise OSError(38, "not implemented")

    monkeypatch.setattr(pages, "count_cached", refuse)
    assert pages.is_warm(pages.cached_share(files))
