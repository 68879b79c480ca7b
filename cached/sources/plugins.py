"""Other people's sources: entry points of the group `holdfast.sources`, each named as its scheme.

Law: a plugin that is broken, or raises what no source may raise, is an error of the versions that use it, and of
nothing else. Its module is imported when a URI has its scheme.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import Opener, Revalidating, Source
from cached.transport.connection.cancel import Cancelled
from cached.transport.target import Target

if TYPE_CHECKING:
    from cached.transport.client import HttpClient

_log = logging.getLogger(__name__)
GROUP = "holdfast.sources"
_METHODS = ("kind", "display", "resolve", "locate", "aclose")


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
        source = found[0].load()(uri, client, opener)
    except HoldfastError:
        raise
    except Exception as error:
        raise _broken(scheme, f"{where} cannot be used: {type(error).__name__}") from error
    missing = [name for name in _METHODS if not hasattr(source, name)]
    if missing:
        raise _broken(scheme, f"{where}: expected a source, found an object without {', '.join(missing)}")
    return PluginSource(cast(Source, source), scheme, where)


class PluginSource:
    """A plugin's source, whose unexpected errors become ours. Its metric label is the scheme, which is bounded."""

    def __init__(self, source: Source, scheme: str, where: str) -> None:
        self._source = source
        self._where = where
        self.kind = scheme

    @property
    def display(self) -> str:
        return str(self._source.display)

    async def resolve(self) -> Listing:
        """List the version. Raises as `Source.resolve`, and `Permanent` (`bad_plugin`)."""
        async with self._guarded("resolve"):
            listing = await self._source.resolve()
            if not isinstance(listing, Listing):
                raise TypeError(f"expected a Listing, found {type(listing).__name__}")
            return listing

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address of `file`. Raises as `resolve`."""
        async with self._guarded("locate"):
            return await self._source.locate(file)

    async def is_current(self, tag: str) -> bool:
        """Return what the plugin's `is_current` says, False without one. Raises as `resolve`."""
        async with self._guarded("is_current"):
            return isinstance(self._source, Revalidating) and await self._source.is_current(tag)

    async def aclose(self) -> None:
        """Release the plugin's resources; log what it raises."""
        try:
            await self._source.aclose()
        except Exception:  # noqa: BLE001 - the version has its bytes, or its error
            _log.exception("%s: aclose", self._where)

    @asynccontextmanager
    async def _guarded(self, step: str) -> AsyncIterator[None]:
        try:
            yield
        except (HoldfastError, Cancelled):
            raise
        except Exception as error:
            _log.exception("%s: %s", self._where, step)
            raise _broken(self.kind, f"{self._where} failed in {step}: {type(error).__name__}, see the log") from error


def _describe(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version} ({entry.value})" if entry.dist is not None else entry.value


def _broken(scheme: str, problem: str) -> Permanent:
    return Permanent(
        "bad_plugin", problem, f"mend, update or remove the package that offers the source {scheme} to {GROUP}"
    )
