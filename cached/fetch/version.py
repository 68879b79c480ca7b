"""One version, from its source to its name on this node: resolve, fetch what is missing, publish.

Law: the order of publication of the design, section 3. Nothing appears under `models/` before everything under it is
verified and durable. Retries of the whole are the scheduler's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import Layout, ingest_id
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import State, timestamp
from cached.core import filters
from cached.core.catalog import CatalogVersion
from cached.core.demand import Want
from cached.core.listing import Listing, RemoteFile
from cached.core.space import NoSpace, Stake
from cached.core.versions.record import PinMismatch
from cached.fetch.attempt import BlobSpec, Verified
from cached.fetch.download import Flight, Observer
from cached.fetch.downloads import Flights
from cached.fetch.locator import Locator
from cached.fetch.reservation import Allotment
from cached.fetch.small_attempt import is_small
from cached.node.publisher import Janitor
from cached.node.status_files import Board, Progress
from cached.node.threads import Blocking
from cached.sources.base import Source
from cached.store import blobs, fetched
from cached.store.digest_journal import DigestJournal
from cached.store.fetched import FetchRecord
from cached.store.ingest import IngestKey
from cached.transport.connection.cancel import Cancelled

P = ParamSpec("P")
T = TypeVar("T")

_PROGRESS_S = 1.0
_FEW_FILES = 64
_AT_A_TIME = 256  # flights begun, or left, in one turn of the event loop
_NEWEST = 0.3  # the weight of the newest second in the rate that is shown


@dataclass(frozen=True, slots=True)
class Published:
    """A version that is on this node now."""

    digest: Digest
    manifest: Manifest
    source: str


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One try at a version: `urgency` gives its priority now, `got_space` is called once all its space is reserved."""

    want: Want
    source: Source
    urgency: Callable[[], int]
    got_space: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A file of the version at its source, and what fetching it asks for."""

    file: RemoteFile
    spec: BlobSpec


@dataclass(frozen=True, slots=True)
class _Cargo:
    """One blob that a version waits for: its flight, and whether that was begun here."""

    spec: BlobSpec
    flight: Flight
    result: asyncio.Future[Verified]
    begun: bool


@dataclass(frozen=True, slots=True)
class TransferParts:
    """What fetching works with. `listing_timeout_s`: how long a source may take to say what it has."""

    layout: Layout
    flights: Flights
    board: Board
    janitor: Janitor
    blocking: Blocking
    observer: Observer
    journal: DigestJournal
    listing_timeout_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What a source has beside the content `held` here: whether it is other content, and its digest, None where that is
    not known without a fetch."""

    held: Digest
    changed: bool
    digest: Digest | None


class Transfers:
    """Fetches versions; several at a time, sharing blobs."""

    def __init__(self, parts: TransferParts, open_source: Callable[[str], Source]) -> None:
        self._layout = parts.layout
        self._flights = parts.flights
        self._board = parts.board
        self._janitor = parts.janitor
        self._blocking = parts.blocking
        self._observer = parts.observer
        self._journal = parts.journal
        self._listing_timeout_s = parts.listing_timeout_s
        self._open_source = open_source
        self._claims = parts.janitor.claims

    def stake(self, ref: ModelRef) -> Stake:
        """What the space holds for `ref` while it is under way."""
        left = self._claims.partials_of(ref) - self._flights.busy()
        return Stake(
            blobs=self._claims.blobs_of(ref),
            reserved=self._flights.reserved_for(ref),
            left=self._flights.left_by(left),
        )

    def forget(self, ref: ModelRef) -> None:
        """Nobody tries to fetch `ref` any more: what it left behind may be deleted."""
        self._claims.drop(ref)

    async def fetch(self, want: Want, urgency: Callable[[], int], got_space: Callable[[], None]) -> Published:
        """Bring `want` onto this node; raises `HoldfastError`. Cancelled, it keeps what is durable.

        `urgency` is the priority it has by the time its bytes are asked for. `got_space` is called once the space for
        all of them is reserved. What an earlier try brought stays claimed until `forget`.
        """
        source = await self._blocking.run(self._open_source, want.source)
        try:
            self._board.resolve(want.ref, source.display, want.pin)
            resolved_at = timestamp(time.time())
            listing, asked = await self._resolve(want, source)
            verified = await self._bring(_Fetch(want, source, urgency, got_space), asked)
            manifest = await self._compute(len(asked), _manifest_of, asked, verified)
            _check_pin(want, manifest)
            self._board.move(
                want.ref, State.PUBLISHING, Progress(manifest.total_bytes, manifest.total_bytes, None, None)
            )
            found_out = [each.spec.key.id for each in asked if each.spec.sha256 is None]
            record = FetchRecord(
                digest=manifest.digest,
                request=want.request,
                source=source.display,
                revision=listing.revision,
                resolved_at=resolved_at,
                files=await self._compute(len(asked), _unpromised, asked, manifest),
            )
            unshared = partial(self._unshared, want.ref, found_out)
            digest = await self._janitor.publish(want.ref, manifest, record, unshared)
            return Published(digest, manifest, source.display)
        except NoSpace as error:
            stake = self.stake(want.ref)
            self._flights.require_capacity(stake.total() + error.needed_bytes)
            raise
        finally:
            await source.aclose()

    async def _resolve(self, want: Want, source: Source) -> tuple[Listing, tuple[_Asked, ...]]:
        """What the source lists, and the files of it that belong to the version; refused early where their promised
        digests already miss the pin."""
        try:
            listing = await self._listing(source)
            return listing, await self._compute(len(listing.files), _select, listing, want, source)
        except HoldfastError as error:
            self._observer.fetch_failed(source.kind, error.code)
            raise

    async def look(self, entry: CatalogVersion) -> Seen | None:
        """Ask the source of a version that is here what it has now, without a byte of its files; raises
        `HoldfastError`. None where the version went meanwhile."""
        held = self._janitor.held(entry.ref)
        if held is None:
            return None
        source = await self._blocking.run(self._open_source, entry.source)
        try:
            listing = await self._listing(source)
            record = await self._blocking.run(fetched.read, self._layout, entry.ref)
            known = {} if record is None else record.files
            return await self._blocking.run(_compare, entry, listing, source.display, held[1], known)
        except HoldfastError as error:
            self._observer.fetch_failed(source.kind, error.code)
            raise
        finally:
            await source.aclose()

    async def _compute(self, files: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a pure function of so many files: on a thread, unless the way there would cost more than the work."""
        if files <= _FEW_FILES:
            return function(*args, **kwargs)
        return await self._blocking.run(function, *args, **kwargs)

    async def _listing(self, source: Source) -> Listing:
        try:
            async with asyncio.timeout(self._listing_timeout_s):
                return await source.resolve()
        except TimeoutError as error:
            raise Transient(
                "stalled",
                f"{source.display}: not listed within {self._listing_timeout_s:g} s",
                "it is tried again; if it goes on, look at the source's server, or raise --stall-timeout",
            ) from error

    async def _bring(self, fetch: _Fetch, asked: tuple[_Asked, ...]) -> dict[str, Verified]:
        """Have every file's blob committed: join what is under way, start what is not, wait for all. By path."""
        ref = fetch.want.ref
        noted = await self._noted(fetch, asked)
        ids = [each.spec.key.id for each in asked]
        promised = [each.spec.sha256 for each in asked if each.spec.sha256 is not None]
        self._claims.begin(ref, [*promised, *(noted[id_] for id_ in ids if id_ in noted)], ids)
        known = await self._blocking.run(self._already_here, asked, noted)
        self._claims.found(ref, {verified.sha256: verified.size for verified in known.values()})
        here = sum(verified.size for verified in known.values())
        missing = [each for each in asked if each.spec.name not in known]
        sized = all(each.spec.key.size is not None for each in missing)
        total = here + sum(each.spec.key.size or 0 for each in missing) if sized else None
        if sized:
            sizes = {verified.sha256: verified.size for verified in known.values()}
            sizes |= {each.spec.key.id: each.spec.key.size or 0 for each in missing}
            self._flights.require_capacity(sum(sizes.values()))
        self._board.move(ref, State.FETCHING, Progress(total, here, None, None))
        cargo: list[_Cargo] = []
        try:
            await self._start(fetch, missing, cargo)
            await self._wait(ref, cargo, here, total)
        except NoSpace as error:
            await self._leave(ref, cargo)
            raise self._short_in_all(ref, cargo, error) from error
        finally:
            await self._leave(ref, cargo)
        return known | {each.spec.name: each.result.result() for each in cargo}

    async def _noted(self, fetch: _Fetch, asked: tuple[_Asked, ...]) -> Mapping[str, str]:
        """The sha256 of files that were fetched before as they are listed now, by the id of their partial blob.

        A version that an older release published has no record: it is taken for what is listed where its status named
        this source and all paths and sizes agree. Not from a web server where a query or a user may decide what it
        answers: a status shows neither.
        """
        ref = fetch.want.ref
        record = await self._blocking.run(fetched.read, self._layout, ref)
        if record is not None:
            return record.files
        held = self._janitor.held(ref)
        if held is None or held[0].source != fetch.source.display:
            return {}
        if fetch.source.kind == "http" and not set("?@").isdisjoint(fetch.want.source):
            return {}
        return await self._blocking.run(_taken_over, held[1], asked)

    async def _leave(self, ref: ModelRef, cargo: list[_Cargo]) -> None:
        ending: set[asyncio.Future[Verified]] = set()
        for number, each in enumerate(cargo, 1):
            down = self._flights.leave(each.spec, ref)
            # A flight that others wait for goes on, and needs this source open.
            ending.update(result for result in (down, each.result if each.begun else None) if result is not None)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        ending = {result for result in ending if not result.done()}
        if ending:
            await asyncio.wait(ending)

    def _short_in_all(self, ref: ModelRef, cargo: list[_Cargo], error: NoSpace) -> NoSpace:
        """What the next try needs, where a stream met the end of the space: the other blobs that are not here too."""
        failed = [each.spec for each in cargo if each.result.done() and each.result.exception() is not None]
        missing = {spec.key.id: spec.key.size or 0 for spec in failed}
        return self._flights.no_space(error.needed_bytes + sum(missing.values()), sum(self.stake(ref).left.values()))

    async def _start(self, fetch: _Fetch, missing: Sequence[_Asked], cargo: list[_Cargo]) -> None:
        """Join or begin the flights of all that is missing, a bounded number in each turn of the event loop; `cargo`
        grows with each."""
        ref, allotments = fetch.want.ref, dict[str, Allotment]()
        async with self._flights.starting:
            new: dict[str, list[_Asked]] = {}  # two files may have the same content
            for each in missing:
                joined = self._flights.join(each.spec, ref, fetch.urgency())
                if joined is None:
                    new.setdefault(each.spec.key.id, []).append(each)
                else:
                    self._load(ref, cargo, _Cargo(each.spec, *joined, begun=False))
            try:
                await self._blocking.run(self._flights.reserve, [files[0].spec for files in new.values()], allotments)
                if all(each.spec.key.size is not None for each in missing):  # else it may lack space later yet
                    fetch.got_space()
                locator = Locator(fetch.source, [files[0].file for files in new.values() if is_small(files[0].spec)])
                for number, (id_, files) in enumerate(new.items(), 1):
                    locate = partial(locator.locate, files[0].file)
                    started = self._flights.start(files[0].spec, locate, allotments.pop(id_), ref, fetch.urgency())
                    for each in files:
                        self._load(ref, cargo, _Cargo(each.spec, *started, begun=True))
                    if number % _AT_A_TIME == 0:
                        await asyncio.sleep(0)
            finally:
                for allotment in allotments.values():
                    allotment.give_back()

    def _load(self, ref: ModelRef, cargo: list[_Cargo], one: _Cargo) -> None:
        # At once, not when the wait looks: a sweep may come first.
        one.result.add_done_callback(partial(self._note_needed, ref))
        cargo.append(one)

    def _note_needed(self, ref: ModelRef, result: asyncio.Future[Verified]) -> None:
        if result.exception() is None:
            self._claims.found(ref, {result.result().sha256: result.result().size})

    async def _wait(self, ref: ModelRef, cargo: list[_Cargo], here: int, total: int | None) -> None:
        """Wait for all flights, telling the board once a second; raises the first error."""
        pending = {each.result for each in cargo}
        flights = [each.flight for each in cargo]  # one that stands for two files counts twice, as in the total
        before, rate = None, None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_PROGRESS_S, return_when=asyncio.FIRST_EXCEPTION)
            for result in done:
                error = result.exception()
                if isinstance(error, Cancelled):
                    raise Transient("interrupted", f"{ref}: a flight it had joined was called off", "") from error
                if error is not None:
                    raise _own_error(ref, error, [each for each in cargo if each.result is result])
            now, moved = time.monotonic(), sum(flight.bytes_done for flight in flights)
            if before is not None and now > before[0]:
                newest = max(0.0, (moved - before[1]) / (now - before[0]))
                rate = newest if rate is None else _NEWEST * newest + (1 - _NEWEST) * rate
            before = now, moved
            left = None if total is None else max(0, total - here - moved)
            eta_s = left / rate if left is not None and rate else None
            state = State.FETCHING if any(flight.receiving() for flight in flights) else State.VERIFYING
            trouble = next((f.last_error for f in flights if f.last_error is not None), None)
            self._board.move(ref, state, Progress(total, here + moved, rate, eta_s), trouble)

    def _unshared(self, ref: ModelRef, notes: list[str]) -> frozenset[str]:
        """The notes that no other version under way goes on from."""
        return self._claims.partials_alone(ref).intersection(notes)

    def _already_here(self, asked: tuple[_Asked, ...], noted: Mapping[str, str]) -> dict[str, Verified]:
        """Files whose blob is committed already, by path. All are claimed by now."""
        self._claims.settle()
        known = {}
        for spec in (each.spec for each in asked):
            sha256 = spec.sha256
            if sha256 is None and spec.key.validator:  # without one, nothing says that it is still the same object
                sha256 = noted.get(spec.key.id) or self._journal.find(spec.key.id)
            size = None if sha256 is None else blobs.size(self._layout, sha256)
            if sha256 is not None and size is not None and spec.key.size in (None, size):
                known[spec.name] = Verified(sha256, size, fresh=False)
        return known


def _own_error(ref: ModelRef, error: BaseException, cargo: list[_Cargo]) -> BaseException:
    """What the end of a flight means for `ref`: what another version's source will never give, its own source may."""
    if any(each.begun for each in cargo) or not isinstance(error, Permanent):
        return error
    own = Transient("interrupted", f"{ref}: a fetch that it had joined failed: {error.message}", "it fetches by itself")
    own.__cause__ = error
    return own


def _select(listing: Listing, want: Want, source: Source) -> tuple[_Asked, ...]:
    """The files of the listing that belong to the version, and what fetching each asks for. Takes a while for
    thousands of files: not for an event loop."""
    files = filters.choose(listing, source.display, want.include, want.exclude)
    if all(file.sha256 is not None and file.size is not None for file in files):
        promised = Manifest.build(FileEntry(f.path, f.sha256 or "", f.size or 0) for f in files)
        _check_pin(want, promised)
    return tuple(_Asked(file, _spec(file, source, listing.identity)) for file in files)


def _manifest_of(asked: tuple[_Asked, ...], verified: dict[str, Verified]) -> Manifest:
    return Manifest.build(
        FileEntry(name, verified[name].sha256, verified[name].size) for name in (each.spec.name for each in asked)
    )


def _spec(file: RemoteFile, source: Source, identity: str) -> BlobSpec:
    origin = source.kind if source.kind == "hf" else f"{source.kind}://{urlsplit(source.display).netloc}"
    return BlobSpec(
        name=file.path,
        key=IngestKey(_partial_id(file, identity), file.sha256 or file.validator, file.size),
        sha256=file.sha256,
        git_oid=file.git_oid,
        kind=source.kind,
        origin=origin,
    )


def _partial_id(file: RemoteFile, identity: str) -> str:
    """What names a file's flight and its partial blob: its content where that is promised, else the very object."""
    return file.sha256 or ingest_id(identity, file.key, file.version)


def _unpromised(asked: tuple[_Asked, ...], manifest: Manifest) -> dict[str, str]:
    """The sha256 of the files that the source promised none for, by the id of their partial blob."""
    sha256s = {entry.path: entry.sha256 for entry in manifest.files}
    return {
        spec.key.id: sha256s[spec.name]
        for spec in (each.spec for each in asked)
        if spec.sha256 is None and spec.key.validator  # without one, nothing says that it is still the same object
    }


def _taken_over(manifest: Manifest, asked: tuple[_Asked, ...]) -> dict[str, str]:
    """The same of a version without a record, where the listing agrees with what it has; else nothing."""
    sha256s = {(entry.path, entry.size): entry.sha256 for entry in manifest.files}
    specs = [each.spec for each in asked]
    if {(spec.name, spec.key.size) for spec in specs} != sha256s.keys():
        return {}
    return {spec.key.id: sha256s[spec.name, spec.key.size or 0] for spec in specs if spec.sha256 is None}


def _compare(
    entry: CatalogVersion, listing: Listing, display: str, manifest: Manifest, known: Mapping[str, str]
) -> Seen:
    """Compare a listing with what is here. A file without a sha256 is the one that was fetched where its validator is;
    one without a validator either counts as unchanged where its size is."""
    files = filters.choose(listing, display, entry.include, entry.exclude)
    here = {file.path: file for file in manifest.files}
    sha256s = {file.path: file.sha256 or known.get(_partial_id(file, listing.identity)) for file in files}
    changed = here.keys() != sha256s.keys() or any(
        file.size not in (None, here[file.path].size)
        or (sha256s[file.path] != here[file.path].sha256 and bool(file.sha256 or file.validator))
        for file in files
    )
    digest = None
    if changed and all(file.size is not None and sha256s[file.path] for file in files):
        digest = Manifest.build(FileEntry(f.path, sha256s[f.path] or "", f.size or 0) for f in files).digest
    return Seen(manifest.digest, changed, digest)


def _check_pin(want: Want, manifest: Manifest) -> None:
    if want.pin is not None and manifest.digest != want.pin:
        raise PinMismatch(
            f"{want.ref}: the manifest digest",
            f"{want.pin} (the pin)",
            f"{manifest.digest} (at the source)",
            "correct the pin, or publish the content that the pin names; nothing was published",
        )
