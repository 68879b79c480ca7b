"""Follow the catalog's file: read it after each change and put the catalog in force.

Law: reads in a thread, and where nothing tells of a change only if the file has another size, time or inode; an
unreadable file or an invalid catalog leaves the last good one in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, describe_read_error
from cached.contract.program import limits
from cached.core.catalog import EMPTY_CATALOG, Catalog, Rejection, parse_catalog
from cached.daemon.catalog.file_watch import watch_file

_log = logging.getLogger("holdfast")

_POLL_S = 5.0  # polling, where inotify gives no watch
_SETTLE_S = 0.05  # a catalog is written in several steps
_RACY_NS = 2_000_000_000  # a file that was changed since may change again within the same tick of its clock
_PATIENCE_S = 10.0  # of a pull, for an edit of the file: a busy node takes seconds to read it


@dataclass(frozen=True, slots=True)
class CatalogInForce:
    """The catalog in force: `generation`, its number since the start; the sha256 of its text; `models` and `rejected`
    entries; `since`, in seconds since the epoch."""

    generation: int
    sha256: str
    models: int
    rejected: int
    since: float


class CatalogFile:
    """Calls `use_catalog` with each new catalog. `not_ready_reason`: why there is none yet; None once there is one.
    `in_force`: the last good one."""

    def __init__(self, path: Path, use_catalog: Callable[[Catalog], None]) -> None:
        self._path = path
        self._use_catalog = use_catalog
        self.not_ready_reason: str | None = "starting"
        self.in_force: CatalogInForce | None = None
        self._catalog = EMPTY_CATALOG
        self._text: str | None = None
        self._seen: _Signature | None = None  # of the file with this text
        self.rejected: tuple[Rejection, ...] = ()  # the entries of the catalog in force that were rejected
        self._error: HoldfastError | None = None  # the last one
        self._trouble: str | None = None
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def is_unusable(self) -> bool:
        """Whether the file cannot be read now, or is no catalog."""
        return self._trouble is not None

    async def run(self) -> None:
        """Read the file when its folder changes, for each `wait_until_current`, and when a look every 5 s says so."""
        async with watch_file(self._path, self._changed.set, _POLL_S):
            while True:
                if self._changed.is_set():
                    self._seen = None
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

    @property
    def trouble(self) -> HoldfastError | None:
        """Why the file as it is now is not in force; None where it is."""
        return None if self._trouble is None else self._error

    async def _read(self) -> None:
        try:
            found = await self._read_file()
            if found is None:
                return
            text, self._seen = found
            if text == self._text:
                return
            self._text, sha256 = text, hashlib.sha256(text.encode()).hexdigest()
            if self.in_force is not None and self.in_force.sha256 == sha256:
                self._trouble = None  # what is in force is there again
                return
            parsed = await asyncio.to_thread(parse_catalog, text, self._catalog)
            self.rejected = parsed.rejected
            for rejection in parsed.rejected:
                _log.error("catalog, line %d: %s: %s", rejection.line, rejection.where, rejection.reason)
            _log.info("catalog: %d models, %d entries rejected", len(parsed.catalog.models), len(parsed.rejected))
            self._catalog = parsed.catalog
            self._trouble = None
            generation = 1 if self.in_force is None else self.in_force.generation + 1
            models, rejected = len(parsed.catalog.models), len(parsed.rejected)
            self.in_force = CatalogInForce(generation, sha256, models, rejected, time.time())
            self._use_catalog(self._catalog)
            self.not_ready_reason = None
        except HoldfastError as error:
            self._error = error
            if str(error) != self._trouble:
                _log.error("%s", error)
            self._trouble = str(error)
            self._seen = None  # the next look reads the file, also if it is the one of before
            if self._catalog is EMPTY_CATALOG:
                self.not_ready_reason = f"no catalog: {error}"

    async def _read_file(self) -> tuple[str, _Signature | None] | None:
        """Return what `_read` does; after an error the file counts as new, whatever it is then."""
        try:
            return await asyncio.to_thread(_read, self._path, self._seen)
        except HoldfastError:
            self._text = self._seen = None
            raise


_Signature = tuple[int, ...]


def _read(path: Path, seen: _Signature | None) -> tuple[str, _Signature | None] | None:
    """Return the file's text, and its signature where that tells of each later change; None while it is the one `seen`.
    Raises `HoldfastError`."""
    try:
        found = _sign(path)
        if found is not None and found == seen:
            return None
        return path.read_text(encoding="utf-8"), found
    except (OSError, UnicodeDecodeError) as error:
        raise limits.find_limit_error(error, f"catalog {path}") or Permanent(
            "no_catalog",
            f"catalog {describe_read_error(path, error)}",
            "write the file, or name another with --catalog",
        ) from error


def _sign(path: Path) -> _Signature | None:
    now_ns, found = time.time_ns(), path.stat()
    if max(found.st_mtime_ns, found.st_ctime_ns) >= now_ns - _RACY_NS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
