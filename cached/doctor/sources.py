"""The catalog, and each of its sources: is it reached, and do the credentials suffice.

Law: one listing of one version an origin, of a few where the first is not published there, with the credentials of this
process's environment; no file's bytes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from cached.contract.errors import HoldfastError, describe_read_error
from cached.contract.program.units import format_count
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog, CatalogVersion, parse_catalog
from cached.doctor.findings import CheckResult, CheckVerdict, failed, of_error, ok, skipped, warning
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.urls import Origin

_AT_ONCE = 8
_SHOWN = 5
_MOST_ORIGINS = 64
_BY_HOST = frozenset({"http", "s3", "gs"})
_MOST_TRIES = 3  # versions of one origin, while those before are not there
# The origin answered, and took the credentials: only this version is not there, or not released.
_UNPUBLISHED = frozenset({"not_found", "not_ready", "not_approved"})


def read_catalog(path: Path | None) -> tuple[Catalog, list[CheckResult]]:
    """Return the catalog, empty without one, and what is found about its file. Blocking."""
    area = "catalog"
    if path is None:
        return EMPTY_CATALOG, [skipped(area, "not looked at", "name it with --catalog or HOLDFAST_CATALOG")]
    try:
        parsed = parse_catalog(path.read_text(encoding="utf-8"), EMPTY_CATALOG)
    except HoldfastError as error:
        return EMPTY_CATALOG, [of_error(area, error)]
    except (OSError, UnicodeDecodeError) as error:
        return EMPTY_CATALOG, [
            failed(area, describe_read_error(path, error), "write the file, or name another with --catalog")
        ]
    found = [
        failed(area, f"{path}, line {each.line}: {each.where}: {each.reason}", "correct the entry: it is not in force")
        for each in parsed.rejected[:_SHOWN]
    ]
    if len(parsed.rejected) > _SHOWN:
        more = f"{len(parsed.rejected) - _SHOWN} more entries are rejected"
        found.append(failed(area, more, "the daemon's log names each"))
    models = parsed.catalog.models
    versions = sum(len(model.versions) for model in models.values())
    if not found:
        found.append(
            ok(area, f"{path}: {format_count(len(models), 'model')}, {format_count(versions, 'version')} listed")
        )
    return parsed.catalog, found


def check_origin_proxy(address: Origin, timeout_s: float) -> Iterator[CheckResult]:
    """Yield whether the proxy of `--origin-proxy` takes connections: where it does not, origins are asked directly.
    Blocking."""
    area, where = "dragonfly", address.authority
    try:
        socket.create_connection((address.host, address.port), timeout_s).close()
    except OSError as error:
        reason = error.strerror or "no answer in time"
        remedy = "see whether dfdaemon runs on this node, and the port of its proxy; until then origins are asked"
        yield warning(area, f"nothing answers at {where}, the address of --origin-proxy: {reason}", remedy)
    else:
        yield ok(area, f"something answers at {where}, the address of --origin-proxy")


async def check_sources(catalog: Catalog, timeout_s: float) -> AsyncIterator[CheckResult]:
    """Yield what is found about each origin, in the catalog's order."""
    with closing(HttpClient(HttpSettings(header_timeout_s=timeout_s, stall_window_s=timeout_s))) as client:
        turns = asyncio.Semaphore(_AT_ONCE)
        origins, problems = await _choose(catalog, client)
        for problem in problems:
            yield problem
        tasks = [
            asyncio.ensure_future(_check_origin(turns, entries, client, timeout_s))
            for entries in origins[:_MOST_ORIGINS]
        ]
        for task in tasks:
            yield await task
        if len(origins) > _MOST_ORIGINS:
            left = f"{len(origins) - _MOST_ORIGINS} more places are not looked at"
            yield skipped("source", left, "`holdfast inspect URI` looks at one")
        if not origins and not problems and catalog is not EMPTY_CATALOG:
            yield skipped("source", "the catalog lists no version: templates name none to look at")


async def _choose(catalog: Catalog, client: HttpClient) -> tuple[list[list[CatalogVersion]], list[CheckResult]]:
    """Return the versions of each origin, and the sources that cannot be opened."""
    origins: dict[str, list[CatalogVersion]] = {}
    problems: list[CheckResult] = []
    for entry in _list_versions(catalog):
        try:
            source = open_source(entry.source, client)
        except HoldfastError as error:
            problems.append(failed("source", f"{entry.ref}: {error.message}", error.remedy))
            continue
        origins.setdefault(_origin_of(source), []).append(entry)
        await source.aclose()
    return list(origins.values()), problems


def _list_versions(catalog: Catalog) -> Iterator[CatalogVersion]:
    """Yield the listed and the prefetched versions."""
    for model in catalog.models.values():
        yield from model.versions.values()
        templated = (catalog.find(ModelRef(model.name, version)) for version in model.prefetch)
        yield from (entry for entry in templated if entry is not None and entry.ref.version not in model.versions)


def _origin_of(source: Source) -> str:
    """Return what has its own reach and credentials: a host, a bucket or a container; a repository, where rights may
    differ from one to the next."""
    split = urlsplit(source.display)
    place = f"{split.scheme}://{split.netloc}"
    if source.kind in _BY_HOST:
        return place
    if source.kind == "az":
        return f"{place}/{split.path.lstrip('/').partition('/')[0]}"
    repository = source.display.partition("@")[0].partition("#")[0]
    head, _, last = repository.rpartition("/")
    return f"{head}/{last.partition(':')[0]}" if source.kind == "oci" else repository


async def _check_origin(
    turns: asyncio.Semaphore, entries: Sequence[CatalogVersion], client: HttpClient, timeout_s: float
) -> CheckResult:
    """Return what is found about an origin by the first of its versions that is published there."""
    absent: list[CheckResult] = []
    async with turns:
        for entry in entries[:_MOST_TRIES]:
            found = await _check(entry, open_source(entry.source, client), len(entries), timeout_s)
            if found.verdict is not CheckVerdict.WARNING:
                return found
            absent.append(found)
    return absent[0]


async def _check(entry: CatalogVersion, source: Source, versions: int, timeout_s: float) -> CheckResult:
    of_all = f", one of {versions} versions there" if versions > 1 else ""
    where = f"{source.display} ({entry.ref}{of_all})"
    try:
        async with asyncio.timeout(timeout_s):
            listing = await source.resolve()
    except TimeoutError:
        return failed("source", f"{where}: not listed within {timeout_s:g} s", "look at its server and the network")
    except HoldfastError as error:
        if error.code in _UNPUBLISHED:
            text = f"{where}: its origin answers, but has not got it: {_without(error.message, source.display)}"
            return warning("source", text, error.remedy)
        return failed("source", f"{where}: {_without(error.message, source.display)}", error.remedy)
    except Exception as error:  # noqa: BLE001 - a bug in one source must not hide the others' findings
        return failed("source", f"{where}: {error!r}", "report this")
    finally:
        await source.aclose()
    usable = [file for file in listing.files if file.problem is None]
    if not usable:
        return warning("source", f"{where}: it lists no file", "check the location in the catalog")
    published = ", published with a manifest" if listing.manifest is not None else ""
    return ok("source", f"{where}: {format_count(len(usable), 'file')}{published}")


def _without(message: str, display: str) -> str:
    return message.removeprefix(f"{display}: ")
