"""What the catalog's file tells of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from cached.core.catalog import Catalog
from cached.daemon.catalog.catalog_file import CatalogFile

GOOD = "models: {a: {versions: {v1: {source: 'file:///a'}}}}\n"


async def test_the_file_as_it_is_now_is_told(tmp_path: Path) -> None:
    """Trouble is there while the file is not in force, whatever is wrong with it, and gone when it is again, also with
    the text that it had before; rejected entries are those of the catalog in force."""
    path, taken = tmp_path / "catalog.yaml", list[Catalog]()
    file = CatalogFile(path, taken.append)
    running = asyncio.create_task(file.run())
    try:
        await _until(lambda: file.trouble is not None)
        assert file.not_ready_reason is not None
        path.write_text(GOOD)
        await _until(lambda: file.trouble is None)
        for spoil in (path.unlink, lambda: path.write_text("models: [")):
            spoil()
            await _until(lambda: file.trouble is not None)
            assert file.not_ready_reason is None  # the last good one is in force
            path.write_text(GOOD)
            await _until(lambda: file.trouble is None)
        path.write_text("models: {a: {versions: {v1: {source: 'file:///a'}, 'v 2': {source: 'file:///b'}}}}\n")
        await _until(lambda: [each.where for each in file.rejected] != [] and file.trouble is None)
        path.write_text(GOOD)
        await _until(lambda: file.rejected == ())
    finally:
        running.cancel()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not holds():
            await asyncio.sleep(0.01)
