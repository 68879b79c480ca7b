"""Follow the catalog's file: read it after each change and put the catalog in force.

Law: reads in a thread; an unreadable file or an invalid catalog leaves the last good one in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program import limits
from cached.core.catalog import EMPTY_CATALOG, Catalog, parse_catalog
from cached.daemon.file_watch import watch_file

_log = logging.getLogger("holdfast")

_POLL_S = 5.0  # polling, where inotify gives no watch
_SETTLE_S = 0.05  # a catalog is written in several steps
_PATIENCE_S = 2.0  # of a pull, for an edit of the file


class CatalogFile:
    """Calls `use_catalog` with each new catalog. `not_ready_reason`: why there is none yet; None once there is one."""

    def __init__(self, path: Path, use_catalog: Callable[[Catalog], None]) -> None:
        self._path = path
        self._use_catalog = use_catalog
        self.not_ready_reason: str | None = "starting"
        self._catalog = EMPTY_CATALOG
        self._text: str | None = None
        self._trouble: str | None = None
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Read the file when its folder changes, every 5 s, and for each `wait_until_current`."""
        loop = asyncio.get_running_loop()
        with watch_file(self._path, partial(loop.call_soon_threadsafe, self._changed.set), _POLL_S):
            while True:
                self._changed.clear()
                waiting, self._waiting = self._waiting, []
                await self._read()
                for future in waiting:
                    if not future.done():
                        future.set_result(None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await self._changed.wait()
                if not self._waiting:
                    await asyncio.sleep(_SETTLE_S)

    async def wait_until_current(self) -> None:
        """Return once the file's current content is in force, after 2 s at most: a pull may follow an edit at once."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._changed.set()
        await asyncio.wait([future], timeout=_PATIENCE_S)

    async def _read(self) -> None:
        try:
            text = await asyncio.to_thread(_read, self._path)
            if text == self._text:
                return
            self._text = text
            parsed = await asyncio.to_thread(parse_catalog, text, self._catalog)
            for rejection in parsed.rejected:
                _log.error("catalog, line %d: %s: %s", rejection.line, rejection.where, rejection.reason)
            _log.info("catalog: %d models, %d entries rejected", len(parsed.catalog.models), len(parsed.rejected))
            self._catalog = parsed.catalog
            self._trouble = None
            self._use_catalog(self._catalog)
            self.not_ready_reason = None
        except HoldfastError as error:
            if str(error) != self._trouble:
                _log.error("%s", error)
            self._trouble = str(error)
            if self._catalog is EMPTY_CATALOG:
                self.not_ready_reason = f"no catalog: {error}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise limits.find_limit_error(error, f"catalog {path}") or Permanent(
            "no_catalog", f"catalog {path}: {error}", "write the file, or name another with --catalog"
        ) from error
