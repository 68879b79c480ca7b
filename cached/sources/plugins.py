"""Other people's sources: entry points of the group `holdfast.sources`, each named as its scheme.

Law: a plugin that is broken, raises what no source may raise, or gives values that no source may give, is an error of
the versions that use it, and of nothing else: also where it ends the process (`sys.exit`). Its module is imported when
a URI has its scheme.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from cached.contract.digest import is_hex
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import MAX_FILE_BYTES, Manifest, is_size
from cached.core.listing import Checksum, Listing, RemoteFile, Unlisted, WeakValidators
from cached.sources.base import Opener, Revalidating, Source
from cached.transport.connection.cancel import Cancelled
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.git_blob import GIT_OID
from cached.transport.target import HttpTarget, LocalTarget, StreamTarget, Target

if TYPE_CHECKING:
    from cached.transport.client import HttpClient

_log = logging.getLogger(__name__)
GROUP = "holdfast.sources"
_METHODS = ("kind", "display", "resolve", "locate", "aclose")
_LONGEST_OPENING_S = 60.0  # after that long a plugin that still opens a source gets no other thread to block
# What a file of a listing may have, beside what is checked below.
_FILE_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("path", "key", "validator", "object_version"), str),
    "problem": (HoldfastError, type(None)),
    "weak_validators": (WeakValidators, type(None)),
    "sums": tuple,
}
_LISTING_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("files", "unlisted"), tuple),
    "identity": str,
    "manifest": (Manifest, type(None)),
    **dict.fromkeys(("revision", "tag"), (str, type(None))),
    "chains": (RemoteFile, type(None)),
}


def find(scheme: str, uri: str, client: HttpClient, opener: Opener) -> Source | None:
    """Return the source of the plugin for `scheme`, called as `factory(uri, client, opener)`; None without a plugin.
    Raises `Permanent`: `bad_plugin`, or the plugin's own error."""
    found = [each for each in entry_points(group=GROUP) if each.name.lower() == scheme] if scheme else []
    if not found:
        return None
    if len({each.value for each in found}) > 1:
        raise _broken(scheme, f"expected one plugin, found {', '.join(sorted(map(_describe, found)))}")
    where = f"{scheme}: the plugin {_describe(found[0])}"
    try:
        with _opens.counted(scheme, where):
            source = found[0].load()(uri, client, opener)
        return PluginSource(_checked(source, scheme, where), scheme, where)
    except HoldfastError:
        raise
    except (Exception, SystemExit) as error:
        raise _broken(scheme, f"{where} cannot be used: {type(error).__name__}") from error


def _checked(source: object, scheme: str, where: str) -> Source:
    missing = [name for name in _METHODS if not hasattr(source, name)]
    if missing:
        raise _broken(scheme, f"{where}: expected a source, found an object without {', '.join(missing)}")
    found = cast(Source, source)
    if not isinstance(found.display, str):
        raise _broken(scheme, f"{where}: expected `display` as text, found {_name_type(found.display)}")
    return found


class _Opens:
    """The plugins that open a source now, each on its caller's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[object, tuple[str, float]] = {}  # the scheme, and since when

    @contextmanager
    def counted(self, scheme: str, where: str) -> Iterator[None]:
        """Count an opening. Raises `Transient` (`stalled`) where an earlier one of this scheme does not end."""
        now, key = time.monotonic(), object()
        with self._lock:
            since = min((began for other, began in self._running.values() if other == scheme), default=now)
            if now - since > _LONGEST_OPENING_S:
                raise Transient(
                    "stalled",
                    f"{where}: has been opening another source for {now - since:.0f} s",
                    "mend or update that package, and restart the daemon",
                )
            self._running[key] = scheme, now
        try:
            yield
        finally:
            with self._lock:
                del self._running[key]


_opens = _Opens()


class PluginSource:
    """A plugin's source, whose unexpected errors become ours. Its metric label is the scheme, which is bounded."""

    def __init__(self, source: Source, scheme: str, where: str) -> None:
        self._source = source
        self._where = where
        self.kind = scheme
        self.display = source.display

    async def resolve(self) -> Listing:
        """List the version. Raises as `Source.resolve`, and `Permanent` (`bad_plugin`)."""
        async with self._guarded("resolve"):
            listing = await self._source.resolve()
            # On a thread: some listings have 100,000 files.
            problem = await call_in_thread(lambda _cancellation: _find_problem(listing))
        if problem is not None:
            raise _broken(self.kind, f"{self._where}: {problem}")
        return listing

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address of `file`. Raises as `resolve`."""
        async with self._guarded("locate"):
            target = await self._source.locate(file)
        if not isinstance(target, (HttpTarget, LocalTarget, StreamTarget)):
            raise _broken(self.kind, f"{self._where}: expected a target of locate, found {_name_type(target)}")
        return target

    async def is_current(self, tag: str) -> bool:
        """Return what the plugin's `is_current` says, False without one. Raises as `resolve`."""
        async with self._guarded("is_current"):
            return isinstance(self._source, Revalidating) and await self._source.is_current(tag) is True

    async def aclose(self) -> None:
        """Release the plugin's resources; log what it raises."""
        try:
            await self._source.aclose()
        except (Exception, SystemExit):  # noqa: BLE001 - the version has its bytes, or its error
            _log.exception("%s: aclose", self._where)

    @asynccontextmanager
    async def _guarded(self, step: str) -> AsyncIterator[None]:
        try:
            yield
        except (HoldfastError, Cancelled):
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the caller's, not one of the plugin's own tasks
            _log.exception("%s: %s", self._where, step)
            raise _broken(self.kind, f"{self._where} failed in {step}: {type(error).__name__}, see the log") from error


def _find_problem(listing: object) -> str | None:
    """Return how a plugin's listing is none that a source may give; None if it is one."""
    if not isinstance(listing, Listing):
        return f"expected a Listing of resolve, found {_name_type(listing)}"
    for name, types in _LISTING_TYPES.items():
        if not isinstance(value := getattr(listing, name), types):
            return f"expected a listing's `{name}` as {_name_types(types)}, found {_name_type(value)}"
    for file in (*listing.files, *([listing.chains] if listing.chains is not None else [])):
        problem = _find_file_problem(file)
        if problem is not None:
            return problem
    if not all(isinstance(each, Unlisted) for each in listing.unlisted):
        return "expected Unlisted in a listing's `unlisted`"
    if listing.manifest is not None and not _mirrors(listing, listing.manifest):
        return "expected the files of the listing's manifest, found others"
    return None


def _mirrors(listing: Listing, manifest: Manifest) -> bool:
    listed = {file.path: None if file.problem is not None else (file.sha256, file.size) for file in listing.files}
    expected = {file.path: (file.sha256, file.size) for file in manifest.files}
    return listed.keys() == expected.keys() and all(listed[path] in (None, expected[path]) for path in expected)


def _find_file_problem(file: Any) -> str | None:
    if not isinstance(file, RemoteFile):
        return f"expected a RemoteFile in a listing, found {_name_type(file)}"
    for name, types in _FILE_TYPES.items():
        if not isinstance(value := getattr(file, name), types):
            return f"expected a file's `{name}` as {_name_types(types)}, found {_name_type(value)}"
    if file.size is not None and not is_size(file.size):
        return f"{file.path!r:.200}: expected a size of 0 to {MAX_FILE_BYTES} bytes or None, found {file.size!r:.40}"
    if file.sha256 is not None and not (isinstance(file.sha256, str) and is_hex(file.sha256)):
        return f"{file.path!r:.200}: expected a sha256 of 64 lower-case hex digits or None"
    if file.git_oid is not None and not (isinstance(file.git_oid, str) and GIT_OID.fullmatch(file.git_oid)):
        return f"{file.path!r:.200}: expected a git id of 40 lower-case hex digits or None"
    if not all(isinstance(each, Checksum) for each in file.sums):
        return f"{file.path!r:.200}: expected Checksum in its sums"
    return None


def _name_type(value: object) -> str:
    return type(value).__name__


def _name_types(types: type | tuple[type, ...]) -> str:
    named = types if isinstance(types, tuple) else (types,)
    return " or ".join("None" if each is type(None) else each.__name__ for each in named)


def _describe(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version} ({entry.value})" if entry.dist is not None else entry.value


def _broken(scheme: str, problem: str) -> Permanent:
    return Permanent(
        "bad_plugin", problem, f"mend, update or remove the package that offers the source {scheme} to {GROUP}"
    )
