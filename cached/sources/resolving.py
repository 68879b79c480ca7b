"""Resolvers: sources that only know where a version's files are, and end in other sources through the opener.

Law: a resolver names URIs, paths and promises; it neither knows the sources that it ends in nor speaks for them. What
such a source vouches for stays, and the resolver's own promises (a sum in its index) are added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, PUBLISHING_NAME
from cached.core.listing import Checksum, Listing, RemoteFile, is_reserved
from cached.sources.base import Describing, Opener, Source, identity_of
from cached.sources.manifests import list_mirrored, read_manifest, unfinished_publish
from cached.sources.small_files import SmallFiles
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import Target

_MAX_PLACES = 1000  # of one version: each is a source of its own
_AT_ONCE = 16  # listed; each may take a thread and a connection


@dataclass(frozen=True, slots=True)
class Named:
    """One file of a version: `path` in the version, `at`: its path below the URI, and what the resolver's index says of
    it: the size in bytes, a promised sha256 or weaker sums, and the `validator` (an ETag without quotes, a generation)
    that the object had when the index was made, as far as known."""

    path: str
    at: str
    size: int | None = None
    sha256: str | None = None
    sums: tuple[Checksum, ...] = ()
    validator: str = ""


@dataclass(frozen=True, slots=True)
class Referral:
    """A place of files. `uri` may carry credentials; all files below it belong to the version, under the folder `under`
    (empty, or with a `/` at its end), or only those `named`. `chosen_by`: the URL of the service that named `uri`, as
    for `Opener`."""

    uri: str = field(repr=False)
    under: str = ""
    named: tuple[Named, ...] | None = None
    chosen_by: str | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a resolver found: the places, at least one, and the `revision` that a moving name led to."""

    referrals: tuple[Referral, ...]
    revision: str | None = None


@dataclass(slots=True)
class _ResolvedVersion:
    sources: list[Source]
    referrals: tuple[Referral, ...]
    revision: str | None


class ResolvedSource:
    """A `Source` that ends in others. `find` asks the resolver's own service: it blocks, ends with its argument, and
    raises `HoldfastError`; it is called once, at the first use. `client` reads a manifest among named files."""

    def __init__(
        self,
        kind: str,
        display: str,
        client: HttpClient,
        opener: Opener,
        find: Callable[[Cancellation], Resolution],
    ) -> None:
        self.kind = kind
        self.display = display
        self._client = client
        self._opener = opener
        self._find = find
        self._finding = asyncio.Lock()
        self._found: _ResolvedVersion | None = None

    async def resolve(self) -> Listing:
        """List the version at every place that the resolver names. Raises as `Source.resolve`."""
        found = await self._resolved()
        turns = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            parts = zip(found.sources, found.referrals, strict=True)
            listing = [tasks.create_task(self._list(source, referral, turns)) for source, referral in parts]
        listings = []
        for task in listing:
            result = task.result()
            if isinstance(result, HoldfastError):
                raise result
            listings.append(result)
        return await self._as_version(await asyncio.to_thread(_merge, listings, found))  # perhaps 200,000 files

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address that the file's own source gives. Raises as `Source.locate`."""
        found = await self._resolved()
        number, key = 0, file.key
        if len(found.sources) > 1:
            prefix, _, key = file.key.partition(":")
            number = int(prefix) if prefix.isdecimal() and int(prefix) < len(found.sources) else 0
        source = found.sources[number]
        try:
            return await source.locate(replace(file, key=key))
        except HoldfastError as error:
            raise self._about(source, error) from error

    async def aclose(self) -> None:
        """Close the sources that the resolver led to."""
        found, self._found = self._found, None
        for source in () if found is None else found.sources:
            await source.aclose()

    async def _as_version(self, listing: Listing) -> Listing:
        """Return the listing that a `holdfast.json` among the files decides, where their source did not look for one;
        records of ours are no content."""
        if listing.manifest is not None:
            return listing
        ours = await asyncio.to_thread(_ours, listing)
        own = ours.get(MANIFEST_NAME)
        if own is None:
            if PUBLISHING_NAME in ours:
                raise unfinished_publish(f"{self.display}: {PUBLISHING_NAME}")
            return await asyncio.to_thread(_without_ours, listing) if ours else listing
        if own.problem is not None:
            raise own.problem
        where = f"{self.display}: {MANIFEST_NAME}"
        data = await SmallFiles(self, self._client).read(own, MAX_MANIFEST_BYTES)
        return await asyncio.to_thread(lambda: list_mirrored(listing, read_manifest(data, where), where))

    async def _resolved(self) -> _ResolvedVersion:
        async with self._finding:
            if self._found is None:
                self._found = await call_in_thread(self._open)
            return self._found

    def _open(self, cancellation: Cancellation) -> _ResolvedVersion:
        resolution = self._find(cancellation)
        if not resolution.referrals:
            raise Permanent("not_found", f"{self.display}: expected a place of files, found none", "check the version")
        if len(resolution.referrals) > _MAX_PLACES:
            problem = (
                f"{self.display}: expected files in at most {_MAX_PLACES} places, found {len(resolution.referrals)}"
            )
            raise Permanent("too_many_places", problem, "keep the model's files in one store, in few folders")
        sources = []
        for referral in resolution.referrals:
            try:
                sources.append(self._opener(referral.uri, chosen_by=referral.chosen_by))
            except HoldfastError as error:
                problem = f"{self.display} leads to a place that cannot be opened: {error.message}"
                raise Permanent(error.code, problem, error.remedy) from error
        return _ResolvedVersion(sources, resolution.referrals, resolution.revision)

    async def _list(self, source: Source, referral: Referral, turns: asyncio.Semaphore) -> Listing | HoldfastError:
        try:
            async with turns:
                if referral.named is None:
                    return await source.resolve()
                return await _find_named(source, referral.named)
        except HoldfastError as error:
            return self._about(source, error)

    def _about(self, source: Source, error: HoldfastError) -> HoldfastError:
        message = f"{self.display}, which leads to {source.display}: {error.message}"
        about: HoldfastError = Permanent(error.code, message, error.remedy)
        if isinstance(error, Transient):
            about = Transient(error.code, message, error.remedy, retry_after_s=error.retry_after_s)
        about.__cause__ = error
        return about


async def _find_named(source: Source, named: Sequence[Named]) -> Listing:
    """Return the named files with what their source and the resolver say of them, by the paths of the version."""
    if isinstance(source, Describing):
        listing = await source.find([each.at for each in named])
    else:
        listing = await source.resolve()
    return await asyncio.to_thread(_as_named, listing, named, source.display)


def _as_named(listing: Listing, named: Sequence[Named], where: str) -> Listing:
    by_path = {file.path: file for file in listing.files}
    files = tuple(_promised(each, by_path.get(each.at), where) for each in named)
    return replace(listing, files=files, manifest=None, unlisted=(), tag=None)


def _promised(named: Named, found: RemoteFile | None, where: str) -> RemoteFile:
    """Return a file with the promises of its source and of the resolver; with a `problem` where they contradict."""
    remedy = "check that the store has what the index names, and was not changed since"
    if found is None:
        problem: HoldfastError = Permanent("not_found", f"{where}: expected {named.at[:200]!r}, found none", remedy)
        return RemoteFile(named.path, named.at, named.size, problem=problem)
    file = replace(
        found,
        path=named.path,
        size=named.size if found.size is None else found.size,
        sha256=found.sha256 or named.sha256,
        sums=(*found.sums, *named.sums),
    )
    if file.problem is None and named.size not in (None, file.size):
        expected = f"expected {named.size} bytes of {named.at[:200]!r} as its index says"
        return replace(file, problem=Permanent("size_mismatch", f"{where}: {expected}, found {file.size}", remedy))
    validator = file.validator.partition(" ")[0].strip('"')  # S3's has a version id behind
    if file.problem is None and named.validator and validator not in ("", named.validator):
        shown = f"{where}: expected {named.at[:200]!r} as {named.validator[:80]}, found {validator[:80]}"
        return replace(file, problem=Permanent("source_changed", shown, remedy))
    return file


def _ours(listing: Listing) -> dict[str, RemoteFile]:
    """Return Holdfast's own records among the files: the manifest, and what is below `.holdfast/`."""
    return {file.path: file for file in listing.files if file.path == MANIFEST_NAME or is_reserved(file.path)}


def _without_ours(listing: Listing) -> Listing:
    return replace(listing, files=tuple(file for file in listing.files if not is_reserved(file.path)))


def _merge(listings: Sequence[Listing], found: _ResolvedVersion) -> Listing:
    """Return one listing. The identity of a single place is its own: a file has one partial blob, however it was come
    by."""
    if len(listings) == 1:
        only, under = listings[0], found.referrals[0].under
        files = tuple(replace(file, path=under + file.path) for file in only.files) if under else only.files
        unlisted = tuple(replace(each, path=under + each.path) for each in only.unlisted)
        manifest = None if under else only.manifest
        revision = found.revision or only.revision
        return replace(only, files=files, manifest=manifest, unlisted=unlisted, revision=revision, tag=None)
    pairs = list(zip(listings, found.referrals, strict=True))
    return Listing(
        tuple(
            replace(file, path=referral.under + file.path, key=f"{number}:{file.key}")
            for number, (listing, referral) in enumerate(pairs)
            for file in listing.files
        ),
        identity_of("resolved", *(listing.identity for listing in listings)),
        revision=found.revision,
        unlisted=tuple(
            replace(each, path=referral.under + each.path) for listing, referral in pairs for each in listing.unlisted
        ),
    )
