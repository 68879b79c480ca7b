"""The catalog, and each of its sources: is it reached, and do the credentials suffice.

Law: one listing of one version an origin, with the credentials of this process's environment; no file's bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog, CatalogVersion, parse_catalog
from cached.doctor.findings import Finding, failed, of_error, ok, skipped, warning
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

_AT_ONCE = 8
_SHOWN = 5
_MOST_ORIGINS = 64
_BY_HOST = frozenset({"http", "s3", "gs"})


def read_catalog(path: Path | None) -> tuple[Catalog, list[Finding]]:
    """Return the catalog, empty without one, and what is found about its file. Blocking."""
    area = "catalog"
    if path is None:
        return EMPTY_CATALOG, [skipped(area, "not looked at", "name it with --catalog or HOLDFAST_CATALOG")]
    try:
        parsed = parse_catalog(path.read_text(encoding="utf-8"), EMPTY_CATALOG)
    except HoldfastError as error:
        return EMPTY_CATALOG, [of_error(area, error)]
    except (OSError, UnicodeDecodeError) as error:
        return EMPTY_CATALOG, [failed(area, f"{path}: {error}", "write the file, or name another with --catalog")]
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
        found.append(ok(area, f"{path}: {len(models)} models, {versions} versions listed"))
    return parsed.catalog, found


async def check_sources(catalog: Catalog, timeout_s: float) -> AsyncIterator[Finding]:
    """Yield what is found about each origin, in the catalog's order."""
    with closing(HttpClient(HttpSettings(header_timeout_s=timeout_s, stall_window_s=timeout_s))) as client:
        turns = asyncio.Semaphore(_AT_ONCE)
        opened, problems = await _choose(catalog, client)
        for problem in problems:
            yield problem
        tasks = [asyncio.ensure_future(_check(turns, *each, timeout_s)) for each in opened[:_MOST_ORIGINS]]
        for task in tasks:
            yield await task
        for _, source, _ in opened[_MOST_ORIGINS:]:
            await source.aclose()
        if len(opened) > _MOST_ORIGINS:
            left = f"{len(opened) - _MOST_ORIGINS} more places are not looked at"
            yield skipped("source", left, "`holdfast inspect URI` looks at one")
        if not opened and not problems and catalog is not EMPTY_CATALOG:
            yield skipped("source", "the catalog lists no version: templates name none to look at")


async def _choose(
    catalog: Catalog, client: HttpClient
) -> tuple[list[tuple[CatalogVersion, Source, int]], list[Finding]]:
    """Return for each origin one version, its source, and how many versions the origin has; and the sources that cannot
    be opened."""
    chosen: dict[str, tuple[CatalogVersion, Source]] = {}
    counts: dict[str, int] = {}
    problems: list[Finding] = []
    for entry in _list_versions(catalog):
        try:
            source = open_source(entry.source, client)
        except HoldfastError as error:
            problems.append(failed("source", f"{entry.ref}: {error.message}", error.remedy))
            continue
        origin = _origin_of(source)
        counts[origin] = counts.get(origin, 0) + 1
        if origin in chosen:
            await source.aclose()
        else:
            chosen[origin] = entry, source
    return [(*each, counts[origin]) for origin, each in chosen.items()], problems


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


async def _check(
    turns: asyncio.Semaphore, entry: CatalogVersion, source: Source, versions: int, timeout_s: float
) -> Finding:
    of_all = f", one of {versions} versions there" if versions > 1 else ""
    where = f"{source.display} ({entry.ref}{of_all})"
    try:
        async with turns, asyncio.timeout(timeout_s):
            listing = await source.resolve()
    except TimeoutError:
        return failed("source", f"{where}: not listed within {timeout_s:g} s", "look at its server and the network")
    except HoldfastError as error:
        return failed("source", f"{where}: {_without(error.message, source.display)}", error.remedy)
    except Exception as error:  # noqa: BLE001 - a bug in one source must not hide the others' findings
        return failed("source", f"{where}: {error!r}", "report this")
    finally:
        await source.aclose()
    usable = [file for file in listing.files if file.problem is None]
    if not usable:
        return warning("source", f"{where}: it lists no file", "check the location in the catalog")
    published = ", published with a manifest" if listing.manifest is not None else ""
    return ok("source", f"{where}: {len(usable)} files{published}")


def _without(message: str, display: str) -> str:
    return message.removeprefix(f"{display}: ")
