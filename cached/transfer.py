"""One version, from its source to its name on this node: resolve, fetch what is missing, publish.

Law: the order of publication of the design, section 3. Nothing appears under `models/` before everything under it is
verified and durable. Retries of the whole are the scheduler's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from cached import filters
from cached.attempt import BlobSpec, Verified
from cached.blocking import Blocking
from cached.board import Board, Progress
from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Transient
from cached.contract.layout import Layout, ingest_id
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import State, timestamp
from cached.demand import Want
from cached.flight import Flight, Observer
from cached.flights import Flights
from cached.janitor import Janitor
from cached.ledger import NoSpace, Stake
from cached.sources.base import Listing, RemoteFile, Source, Target, expecting
from cached.store import blobs, fetched
from cached.store.fetched import FetchRecord
from cached.store.ingest import IngestKey
from cached.wire.cancel import Cancellation, Cancelled

_LOCATE_TIMEOUT_S = 120.0
_PROGRESS_S = 1.0
_NEWEST = 0.3  # the weight of the newest second in the rate that is shown


@dataclass(frozen=True, slots=True)
class Published:
    """A version that is on this node now."""

    digest: Digest
    manifest: Manifest
    source: str


@dataclass(frozen=True, slots=True)
class _Cargo:
    """One blob that a version waits for: the files it stands for, its flight, and whether the flight was begun here."""

    file: RemoteFile
    spec: BlobSpec
    flight: Flight
    result: asyncio.Future[Verified]


@dataclass(frozen=True, slots=True)
class TransferParts:
    """What fetching works with. `listing_timeout_s`: how long a source may take to say what it has."""

    layout: Layout
    flights: Flights
    board: Board
    janitor: Janitor
    blocking: Blocking
    observer: Observer
    listing_timeout_s: float


_Starts = Callable[[list[RemoteFile]], tuple[list[_Cargo], list[asyncio.Future[Verified]]]]


class Transfers:
    """Fetches versions; several at a time, sharing blobs."""

    def __init__(self, parts: TransferParts, open_source: Callable[[str], Source]) -> None:
        self._layout = parts.layout
        self._flights = parts.flights
        self._board = parts.board
        self._janitor = parts.janitor
        self._blocking = parts.blocking
        self._observer = parts.observer
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
            listing = await self._resolve(want, source)
            start = partial(self._start, want.ref, source, listing.identity, urgency, got_space)
            entries = await self._bring(want, source.display, listing, start)
            manifest = Manifest.build(entries)
            _check_pin(want, manifest)
            self._board.move(
                want.ref, State.PUBLISHING, Progress(manifest.total_bytes, manifest.total_bytes, None, None)
            )
            notes = [_partial_id(file, listing.identity) for file in listing.files if file.sha256 is None]
            record = FetchRecord(
                digest=manifest.digest,
                request=want.request,
                source=source.display,
                revision=listing.revision,
                resolved_at=resolved_at,
                files=await self._blocking.run(_unpromised, listing.files, manifest, listing.identity),
            )
            digest = await self._janitor.publish(want.ref, manifest, record, partial(self._unshared, want.ref, notes))
            return Published(digest, manifest, source.display)
        except NoSpace as error:
            stake = self.stake(want.ref)
            self._flights.require_capacity(stake.total() + error.needed_bytes)
            raise
        finally:
            await source.aclose()

    async def _resolve(self, want: Want, source: Source) -> Listing:
        """The files of the version; refused early where their promised digests already miss the pin."""
        try:
            listing = await self._listing(source)
            return replace(listing, files=await self._blocking.run(_chosen, listing, want, source.display))
        except HoldfastError as error:
            self._observer.fetch_failed(source.kind, error.code)
            raise

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

    async def _bring(self, want: Want, display: str, listing: Listing, start: _Starts) -> list[FileEntry]:
        """Have every file's blob committed: join what is under way, start what is not, wait for all."""
        files, identity = listing.files, listing.identity
        noted = await self._noted(want.ref, display, listing)
        ids = [_partial_id(file, identity) for file in files]
        promised = [file.sha256 for file in files if file.sha256 is not None]
        self._claims.begin(want.ref, [*promised, *(noted[id_] for id_ in ids if id_ in noted)], ids)
        known = await self._blocking.run(self._already_here, files, identity, noted)
        self._claims.found(want.ref, {verified.sha256: verified.size for verified in known.values()})
        here = sum(verified.size for verified in known.values())
        missing = [file for file in files if file.path not in known]
        total = here + sum(f.size or 0 for f in missing) if all(f.size is not None for f in missing) else None
        if total is not None:
            sizes = {verified.sha256: verified.size for verified in known.values()}
            sizes |= {_partial_id(file, identity): file.size or 0 for file in missing}
            self._flights.require_capacity(sum(sizes.values()))
        self._board.move(want.ref, State.FETCHING, Progress(total, here, None, None))
        cargo, begun = start(missing)
        try:
            await self._wait(want, cargo, here, total)
        except NoSpace as error:
            await self._leave(want.ref, cargo, begun)
            raise self._short_in_all(want.ref, cargo, error) from error
        finally:
            await self._leave(want.ref, cargo, begun)
        verified = known | {each.file.path: each.result.result() for each in cargo}
        return [FileEntry(f.path, verified[f.path].sha256, verified[f.path].size) for f in files]

    async def _noted(self, ref: ModelRef, display: str, listing: Listing) -> Mapping[str, str]:
        """The sha256 of files that were fetched before as they are listed now, by the id of their partial blob.

        A version that an older release published has no record: it is taken for what is listed where its status named
        this source and all paths and sizes agree.
        """
        record = await self._blocking.run(fetched.read, self._layout, ref)
        if record is not None:
            return record.files
        held = self._janitor.held(ref)
        if held is None or held[0].source != display:
            return {}
        return await self._blocking.run(_taken_over, held[1], listing.files, listing.identity)

    async def _leave(self, ref: ModelRef, cargo: list[_Cargo], begun: list[asyncio.Future[Verified]]) -> None:
        down = [self._flights.leave(each.spec, ref) for each in cargo]
        # A flight that others wait for goes on, and needs this source open.
        ending = {result for result in (*down, *begun) if result is not None and not result.done()}
        if ending:
            await asyncio.wait(ending)

    def _short_in_all(self, ref: ModelRef, cargo: list[_Cargo], error: NoSpace) -> NoSpace:
        """What the next try needs, where a stream met the end of the space: the other blobs that are not here too."""
        failed = [each.spec for each in cargo if each.result.done() and each.result.exception() is not None]
        missing = {spec.key.id: spec.key.size or 0 for spec in failed}
        return self._flights.no_space(error.needed_bytes + sum(missing.values()), sum(self.stake(ref).left.values()))

    def _start(
        self,
        ref: ModelRef,
        source: Source,
        identity: str,
        urgency: Callable[[], int],
        got_space: Callable[[], None],
        missing: list[RemoteFile],
    ) -> tuple[list[_Cargo], list[asyncio.Future[Verified]]]:
        specs = [_spec(file, source, identity) for file in missing]
        allotments = self._flights.reserve(specs)
        if all(spec.key.size is not None for spec in specs):  # else it may lack space later yet
            got_space()
        priority, cargo, begun = urgency(), [], []
        for file, spec in zip(missing, specs, strict=True):
            allotment = allotments.pop(spec.key.id, None)
            flight, result = self._flights.join(spec, self._locator(source, file), allotment, ref, priority)
            # At once, not when the wait below looks: a sweep may come first.
            result.add_done_callback(partial(self._note_needed, ref))
            cargo.append(_Cargo(file, spec, flight, result))
            if allotment is not None:
                begun.append(result)
        return cargo, begun

    def _note_needed(self, ref: ModelRef, result: asyncio.Future[Verified]) -> None:
        if result.exception() is None:
            self._claims.found(ref, {result.result().sha256: result.result().size})

    async def _wait(self, want: Want, cargo: list[_Cargo], here: int, total: int | None) -> None:
        """Wait for all flights, telling the board once a second; raises the first error."""
        pending = {each.result for each in cargo}
        flights = [each.flight for each in cargo]  # one that stands for two files counts twice, as in the total
        before, rate = None, None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_PROGRESS_S, return_when=asyncio.FIRST_EXCEPTION)
            for result in done:
                error = result.exception()
                if isinstance(error, Cancelled):
                    raise Transient("interrupted", f"{want.ref}: a flight it had joined was called off", "") from error
                if error is not None:
                    raise error
            now, moved = time.monotonic(), sum(flight.bytes_done for flight in flights)
            if before is not None and now > before[0]:
                newest = max(0.0, (moved - before[1]) / (now - before[0]))
                rate = newest if rate is None else _NEWEST * newest + (1 - _NEWEST) * rate
            before = now, moved
            left = None if total is None else max(0, total - here - moved)
            eta_s = left / rate if left is not None and rate else None
            state = State.FETCHING if any(flight.receiving() for flight in flights) else State.VERIFYING
            trouble = next((f.last_error for f in flights if f.last_error is not None), None)
            self._board.move(want.ref, state, Progress(total, here + moved, rate, eta_s), trouble)

    def _unshared(self, ref: ModelRef, notes: list[str]) -> frozenset[str]:
        """The notes that no other version under way goes on from."""
        return self._claims.partials_alone(ref).intersection(notes)

    def _locator(self, source: Source, file: RemoteFile) -> Callable[[Cancellation], Target]:
        loop = asyncio.get_running_loop()

        def locate(cancellation: Cancellation) -> Target:
            asked = asyncio.run_coroutine_threadsafe(source.locate(file), loop)
            try:
                with cancellation.calling(asked.cancel):
                    return expecting(asked.result(_LOCATE_TIMEOUT_S), file)
            except CancelledError as error:
                raise Cancelled from error
            except TimeoutError as error:
                asked.cancel()
                raise Transient(
                    "locate_timeout",
                    f"{source.display}: no address for {file.path} within {_LOCATE_TIMEOUT_S:.0f} s",
                    "check the source and the way there",
                ) from error

        return locate

    def _already_here(
        self, files: tuple[RemoteFile, ...], identity: str, noted: Mapping[str, str]
    ) -> dict[str, Verified]:
        """Files whose blob is committed already, by path. All are claimed by now."""
        self._claims.settle()
        known = {}
        for file in files:
            sha256 = file.sha256
            if sha256 is None and file.validator:  # without one, nothing says that it is still the same object
                id_ = _partial_id(file, identity)
                sha256 = noted.get(id_) or blobs.committed_before(self._layout, id_)
            size = None if sha256 is None else blobs.size(self._layout, sha256)
            if sha256 is not None and size is not None and file.size in (None, size):
                known[file.path] = Verified(sha256, size, fresh=False)
        return known


def _chosen(listing: Listing, want: Want, display: str) -> tuple[RemoteFile, ...]:
    """The files of the listing that belong to the version. Takes a second for 100,000 names: not for the event loop."""
    files = filters.choose(listing, display, want.include, want.exclude)
    if all(file.sha256 is not None and file.size is not None for file in files):
        promised = Manifest.build(FileEntry(f.path, f.sha256 or "", f.size or 0) for f in files)
        _check_pin(want, promised)
    return files


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
    return file.sha256 or ingest_id(identity, file.key, file.validator)


def _unpromised(files: tuple[RemoteFile, ...], manifest: Manifest, identity: str) -> dict[str, str]:
    """The sha256 of the files that the source promised none for, by the id of their partial blob."""
    sha256s = {entry.path: entry.sha256 for entry in manifest.files}
    return {
        _partial_id(file, identity): sha256s[file.path]
        for file in files
        if file.sha256 is None and file.validator  # without one, nothing says that it is still the same object
    }


def _taken_over(manifest: Manifest, files: tuple[RemoteFile, ...], identity: str) -> dict[str, str]:
    """The same of a version without a record, where the listing agrees with what it has; else nothing."""
    sha256s = {(entry.path, entry.size): entry.sha256 for entry in manifest.files}
    if {(file.path, file.size) for file in files} != sha256s.keys():
        return {}
    return {_partial_id(file, identity): sha256s[file.path, file.size or 0] for file in files if file.sha256 is None}


class PinMismatch(DigestMismatch):
    """The source has another content than the pin asks for."""


def _check_pin(want: Want, manifest: Manifest) -> None:
    if want.pin is not None and manifest.digest != want.pin:
        raise PinMismatch(
            f"{want.ref}: the manifest digest",
            f"{want.pin} (the pin)",
            f"{manifest.digest} (at the source)",
            "correct the pin, or publish the content that the pin names; nothing was published",
        )
