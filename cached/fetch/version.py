"""One version fetch: resolve the source, download missing blobs, publish.

Law: the order of publication of the design, section 3. A name appears under `models/` after all its files are verified
and durable. The reconciler retries the whole fetch.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import ParamSpec, Protocol, TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.program import limits
from cached.contract.reference import ModelRef
from cached.contract.status import State, Verdict, timestamp
from cached.core.demand import Want
from cached.core.listing import Listing, RemoteFile
from cached.core.selection.indexes import read_indexes
from cached.core.selection.presets import NO_INDEXES, Indexes
from cached.core.space import FetchSpace, Ledger, NoSpace
from cached.fetch.blob import BlobSpec, Verified
from cached.fetch.download import Download, DownloadMetrics
from cached.fetch.downloads import Downloads, DownloadSpace
from cached.fetch.peers import Peers
from cached.fetch.pool.held_version import Holders, VersionAtPeers
from cached.fetch.pool.version import VersionPool
from cached.fetch.resolving.lister import ListingMetrics, SourceLister
from cached.fetch.resolving.locator import Locator
from cached.fetch.resolving.pinned import PinnedSource
from cached.fetch.resolving.selection import (
    blob_reader,
    check_trust,
    choose_pinned,
    judge_blobs,
    list_indexes,
    report_left_out,
    report_verdict,
    rules_of,
)
from cached.fetch.resolving.wanted_files import (
    WantedFile,
    WantedFiles,
    as_wanted,
    assume_digests,
    build_manifest,
    check_pin,
    compute_promised_digest,
    list_unpromised,
    select_earlier,
    select_wanted,
)
from cached.fetch.sharing import share_files
from cached.fetch.small_attempt import is_small
from cached.fetch.trace import FetchTrace, record_downloads, recorded
from cached.node.publisher import Publisher
from cached.node.status_files import FetchProgress, StatusFiles
from cached.node.threads import Blocking
from cached.sources.base import Source
from cached.store.blob import blobs
from cached.store.disk.durable import disk_error
from cached.store.version import fetch_records
from cached.store.version.fetch_records import FetchRecord, ManifestFrom
from cached.store.version.publication import Publication
from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.target import LocalTarget, StreamTarget, Target

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_PROGRESS_S = 1.0
_FEW_FILES = 64
_AT_A_TIME = 256  # downloads started, or left, in one turn of the event loop
_NEWEST = 0.3  # the weight of the newest second in the displayed rate


class FetchMetrics(DownloadMetrics, ListingMetrics, Protocol):
    """The metrics of version fetches: of their listings and their downloads."""


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a version fetch."""

    digest: Digest
    manifest: Manifest
    source: str


@dataclass(frozen=True, slots=True)
class _VersionFetch:
    """One version fetch: `before` is the record of the version that has the name now, `urgency` returns its priority
    now, `got_space` is called with the bytes and the files to fetch once all their space is reserved; `holders`: the
    nodes that told what the version is, in place of its source; `digest`: of its manifest, where the listing promises
    it and other nodes may be asked; `chains`: the chaining values at its source, if they are there."""

    want: Want
    source: Source
    before: FetchRecord | None
    urgency: Callable[[], int]
    got_space: Callable[[int, int], None]
    holders: Holders | None = None
    digest: Digest | None = None
    chains: RemoteFile | None = None


@dataclass(frozen=True, slots=True)
class _Resolved:
    """What a version consists of: the listing, the verdict by names, and its files; `fetch` goes on with these."""

    fetch: _VersionFetch
    listing: Listing
    verdict: Verdict
    wanted: WantedFiles


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A blob that a version waits for: its download, and whether this fetch started that."""

    spec: BlobSpec
    download: Download
    result: asyncio.Future[Verified]
    started: bool


@dataclass(frozen=True, slots=True)
class _Begun:
    """A fetch that has looked for committed blobs, after `committed` downloads of this node had ended with one: the
    blobs that it waits for so far, its pool, and the digests that it knows of an earlier fetch, by ingest id."""

    fetch: _VersionFetch
    awaited: list[_Awaited]
    pool: VersionPool | None
    known_digests: Mapping[str, str]
    committed: int


@dataclass(frozen=True, slots=True)
class FileProgress:
    """A file of a running fetch: its size in bytes, None if unknown, and what is received of it; `is_done`: committed,
    or failed."""

    path: str
    size: int | None
    received: int
    is_done: bool


class VersionFetches:
    """The version fetches of this node; concurrent ones share downloads."""

    def __init__(
        self,
        *,
        layout: Layout,
        ledger: Ledger,
        downloads: Downloads,
        status_files: StatusFiles,
        publisher: Publisher,
        blocking: Blocking,
        metrics: FetchMetrics,
        trace: FetchTrace,
        lister: SourceLister,
        peers: Peers,
    ) -> None:
        self._peers = peers
        self._layout = layout
        self._ledger = ledger
        self._downloads = downloads
        self._status_files = status_files
        self._publisher = publisher
        self._claims = publisher.claims
        self._blocking = blocking
        self._metrics = metrics
        self._trace = trace
        self._lister = lister
        self._running: dict[ModelRef, list[_Awaited]] = {}  # what each fetch waits for

    def list_files(self, ref: ModelRef) -> list[FileProgress]:
        """Return the files that a running fetch of `ref` receives or has received, in the listing's order; empty
        without one."""
        return [
            FileProgress(
                each.spec.name, each.spec.key.size, each.download.progress.count_received(), each.result.done()
            )
            for each in self._running.get(ref, ())
        ]

    def compute_space(self, ref: ModelRef) -> FetchSpace:
        """Return the disk space of a running fetch of `ref`: committed, reserved, and left by earlier attempts."""
        left = self._claims.partials_of(ref) - self._downloads.busy()
        return FetchSpace(
            blobs=self._claims.blobs_of(ref),
            reserved=self._downloads.reserved_for(ref),
            left={id_: self._ledger.partial_bytes(id_) for id_ in left},
        )

    def forget(self, ref: ModelRef) -> None:
        """Drop the claims of `ref`, which is no longer fetched: its partial blobs may be deleted."""
        self._claims.drop(ref)

    async def try_fetch(
        self, want: Want, urgency: Callable[[], int], got_space: Callable[[int, int], None]
    ) -> Published | HoldfastError:
        """Fetch and publish `want`; return the error of a failure, `Transient` where another try may succeed. Raises
        only its own cancellation, and keeps durable bytes then. `urgency` returns its priority, when its downloads
        start. `got_space` is called once the space for all of them is reserved, with their bytes and their number. The
        bytes of an earlier attempt stay claimed until `forget`."""
        try:
            return await self._fetch(want, urgency, got_space)
        except HoldfastError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a bug that one version brings out must not end the others
            step = f"fetching {want.ref}"
            failure = disk_error(error, step) if isinstance(error, OSError) else limits.find_limit_error(error, step)
            if failure is None:
                _log.exception("%s", want.ref)
                failure = Permanent("internal", f"{want.ref}: {error!r}", "report this with the daemon's log")
            failure.__cause__ = error
            return failure

    async def _fetch(self, want: Want, urgency: Callable[[], int], got_space: Callable[[int, int], None]) -> Published:
        source = await self._lister.open(want.source)
        try:
            before = await self._blocking.run(fetch_records.read, self._layout, want.ref)
            self._status_files.resolve(want.ref, source.display, want.pin)
            resolved_at = timestamp(time.time())
            fetch = _VersionFetch(want, source, before, urgency, got_space)
            with recorded(self._trace, want.ref, "resolve", source.display):
                resolved = await self._resolve(fetch)
            fetch, listing, wanted = resolved.fetch, resolved.listing, resolved.wanted
            if self._peers.is_pooled:
                digest = await self._compute(len(wanted), compute_promised_digest, wanted)
                fetch = replace(fetch, digest=digest, chains=listing.chains)
            verified = await self._fetch_blobs(fetch, wanted)
            manifest = await self._compute(len(wanted), build_manifest, wanted, verified)
            if want.pin not in (None, manifest.digest):
                wanted = await self._compute(len(listing.files), select_earlier, listing, fetch.source, want, manifest)
                verified = await self._fetch_blobs(fetch, wanted)
                manifest = await self._compute(len(wanted), build_manifest, wanted, verified)
            check_pin(want, manifest)
            size = manifest.total_bytes
            self._status_files.set_progress(want.ref, State.PUBLISHING, FetchProgress(size, size))
            ids = [each.spec.key.id for each in wanted if each.spec.sha256 is None]
            record = FetchRecord(
                digest=manifest.digest,
                request=want.request,
                source=source.display,
                revision=listing.revision,
                resolved_at=resolved_at,
                files=await self._compute(len(wanted), list_unpromised, wanted, manifest),
                verdict=resolved.verdict,
                manifest_from=ManifestFrom.SOURCE if fetch.holders is None else ManifestFrom.PEERS,
            )
            judge = partial(judge_blobs, self._layout, want)
            with recorded(self._trace, want.ref, "publish", source.display):
                digest = await self._publisher.publish(
                    Publication(want.ref, manifest, record, judge),
                    lambda: self._claims.partials_alone(want.ref).intersection(ids),
                )
            return Published(digest, manifest, source.display)
        except NoSpace as error:
            self._ledger.require_capacity(self.compute_space(want.ref).total() + error.needed_bytes)
            raise
        finally:
            await source.aclose()

    async def _resolve(self, fetch: _VersionFetch) -> _Resolved:
        """Return what the version consists of; raises `PinMismatch` if the promised digests of its source already
        differ from the pin, and as `Source.resolve`."""
        source = fetch.source
        try:
            # Local files that are shared cost nothing: no node is asked first.
            held = None if fetch.want.link else await self._peers.find_version(fetch.want)
            if held is not None:
                return await self._resolve_held(fetch, held)
            try:
                listing = await self._lister.list(source)
            except Transient:
                held = await self._peers.search_version(fetch.want)
                if held is None:
                    raise
                return await self._resolve_held(fetch, held)
            indexes = await self._read_indexes(fetch, listing)
            verdict, wanted = await self._compute(
                len(listing.files), select_wanted, listing, source, fetch.want, indexes
            )
            check_trust(fetch.want, source.display, [each.file for each in wanted])
            self._status_files.set_verdict(fetch.want.ref, verdict)
            report_verdict(fetch.want, verdict)
            report_left_out(fetch.want, verdict.left_out)
            return _Resolved(fetch, listing, verdict, wanted)
        except HoldfastError as error:
            self._metrics.fetch_failed(source.kind, error.code)
            raise

    async def _resolve_held(self, fetch: _VersionFetch, held: VersionAtPeers) -> _Resolved:
        """Return what a version consists of whose manifest another node sent. Its source is listed only if a file is to
        come from there."""
        want, source = fetch.want, fetch.source
        _log.info("%s: pinned: its manifest came from %s, not from %s", want.ref, held.given_by, source.display)
        pinned = PinnedSource(source, held.manifest, partial(self._lister.list, source))
        fetch = replace(fetch, source=pinned, holders=held.holders)
        listing = await pinned.resolve()
        chosen = await self._compute(len(listing.files), choose_pinned, listing)
        wanted = await self._compute(len(listing.files), as_wanted, listing, pinned, chosen.files)
        self._status_files.set_verdict(want.ref, chosen.verdict)
        report_verdict(want, chosen.verdict)
        return _Resolved(fetch, listing, chosen.verdict, wanted)

    async def _read_indexes(self, fetch: _VersionFetch, listing: Listing) -> Indexes:
        """Fetch the small files whose content decides what the entry's preset picks, and return what they say."""
        rules = rules_of(fetch.want)
        first = await self._compute(len(listing.files), list_indexes, listing, rules)
        if not first:
            return NO_INDEXES
        check_trust(fetch.want, fetch.source.display, first)
        wanted = as_wanted(listing, fetch.source, first)
        found = await self._fetch_blobs(replace(fetch, got_space=_do_nothing), wanted)
        reader = blob_reader(self._layout, {path: blob.sha256 for path, blob in found.items()})
        sizes = {path: blob.size for path, blob in found.items()}
        return await self._blocking.run(read_indexes, rules.preset, sizes, reader)

    async def _compute(self, files: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function of so many files that waits for nothing: on a thread, unless the thread call would cost more
        than the work."""
        if files <= _FEW_FILES:
            return function(*args, **kwargs)
        return await self._blocking.run(function, *args, **kwargs)

    async def _fetch_blobs(self, fetch: _VersionFetch, wanted: WantedFiles) -> dict[str, Verified]:
        """Join or start the download of each missing blob, and wait for all; return every file's blob, by path."""
        ref = fetch.want.ref
        known_digests = await self._find_known_digests(fetch, wanted)
        ids = [each.spec.key.id for each in wanted]
        promised = [each.spec.sha256 for each in wanted if each.spec.sha256 is not None]
        self._claims.claim(ref, [*promised, *(known_digests[id_] for id_ in ids if id_ in known_digests)], ids)
        committed = self._downloads.committed  # of others, before the look
        known = await self._find_committed(wanted, known_digests)
        sizes = {verified.sha256: verified.size for verified in known.values()}
        self._claims.add_existing(ref, sizes)
        here = sum(verified.size for verified in known.values())
        missing = [each for each in wanted if each.spec.name not in known]
        sized = all(each.spec.key.size is not None for each in missing)
        total = here + sum(each.spec.key.size or 0 for each in missing) if sized else None
        if sized:
            sizes |= {each.spec.key.id: each.spec.key.size or 0 for each in missing}
            self._ledger.require_capacity(sum(sizes.values()))
        self._status_files.set_progress(ref, State.FETCHING, FetchProgress(total, here))
        pool = await self._compute(len(wanted), self._peers.join, wanted, known, fetch.holders) if missing else None
        awaited = self._running[ref] = []
        failure: str | None = None
        try:
            if pool is not None and fetch.chains is not None:
                await self._peers.take_published(ref, fetch.source, fetch.chains, pool, missing)
            is_known = fetch.digest is not None or fetch.holders is not None
            together = self._peers.choose_bundled(missing) if is_known and not fetch.want.link else []
            names = {each.spec.name for each in together}
            alone = [each for each in missing if each.spec.name not in names]
            begun = _Begun(fetch, awaited, pool, known_digests, committed)
            late = await self._start(begun, alone, {})  # its shortage excludes the bytes on the disk
            if sized:  # else it may still run out of space
                fetch.got_space(sum(each.spec.key.size or 0 for each in missing), len(missing))
            if together:
                received = await self._peers.receive_small(ref, together, fetch.holders, fetch.digest)
                late |= await self._start(begun, together, received)
            try:
                await self._wait(ref, awaited, here + sum(verified.size for verified in late.values()), total)
            except NoSpace as error:
                await self._leave(ref, awaited)
                raise self._total_shortage(ref, awaited, error) from error
        except HoldfastError as error:
            failure = error.code
            raise
        finally:
            self._running.pop(ref, None)
            record_downloads(self._trace, ref, [each.download for each in awaited], failure)
            await self._leave(ref, awaited)
            if pool is not None:
                pool.leave()
        return known | late | {each.spec.name: each.result.result() for each in awaited}

    async def _find_known_digests(self, fetch: _VersionFetch, wanted: WantedFiles) -> Mapping[str, str]:
        """Return the known sha256 of listed files that were fetched before, by ingest id. A version that an older
        release published has no record: it counts as the listed one if its status has this source and all paths and
        sizes agree. Not from a web server whose content may depend on a query or a user: a status shows neither."""
        ref = fetch.want.ref
        if fetch.before is not None:
            return fetch.before.files
        held = self._publisher.find_published(ref)
        if held is None or held[0].source != fetch.source.display:
            return {}
        if fetch.source.kind == "http" and not set("?@").isdisjoint(fetch.want.source):
            return {}
        return await self._blocking.run(assume_digests, held[1], wanted)

    async def _leave(self, ref: ModelRef, awaited: list[_Awaited]) -> None:
        ending: set[asyncio.Future[Verified]] = set()
        for number, each in enumerate(awaited, 1):
            down = self._downloads.leave(each.spec, ref)
            # A download that others wait for continues, and needs this source open.
            ending.update(result for result in (down, each.result if each.started else None) if result is not None)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        ending = {result for result in ending if not result.done()}
        if ending:
            await asyncio.wait(ending)

    def _total_shortage(self, ref: ModelRef, awaited: list[_Awaited], error: NoSpace) -> NoSpace:
        """Return the error of a stream that ran out of space, with the bytes of the other missing blobs added."""
        failed = [each.spec.key for each in awaited if each.result.done() and each.result.exception() is not None]
        needed = error.needed_bytes + sum({key.id: key.size or 0 for key in failed}.values())
        return NoSpace(needed, min(needed, sum(self.compute_space(ref).left.values())), self._ledger.compute_use())

    async def _start(
        self, begun: _Begun, missing: Sequence[WantedFile], received: Mapping[str, bytes]
    ) -> dict[str, Verified]:
        """Join or start the downloads of missing blobs, in bounded turns of the event loop; add all to those that the
        fetch awaits. `received`: blobs that other nodes sent already, by sha256. Return, by path, the blobs that
        another version's download committed since the fetch looked for them: they are here."""
        fetch, awaited, pool = begun.fetch, begun.awaited, begun.pool
        ref, allotments = fetch.want.ref, dict[str, DownloadSpace]()
        async with self._downloads.starting:
            new: dict[str, list[WantedFile]] = {}  # two files may have the same content
            for each in missing:
                joined = self._downloads.join(each.spec, ref, fetch.urgency())
                if joined is None:
                    new.setdefault(each.spec.key.id, []).append(each)
                else:
                    self._await_download(ref, awaited, _Awaited(each.spec, *joined, started=False))
            here: dict[str, Verified] = {}
            if new and self._downloads.committed != begun.committed:
                here = await self._find_committed(tuple(chain.from_iterable(new.values())), begun.known_digests)
                self._claims.add_existing(ref, {verified.sha256: verified.size for verified in here.values()})
                new = {id_: files for id_, files in new.items() if files[0].spec.name not in here}
                if pool is not None:
                    for verified in here.values():
                        pool.end_supply(verified.sha256, is_committed=True)
            try:
                specs = [files[0].spec for files in new.values()]
                await self._compute(len(specs), self._downloads.reserve, specs, allotments)
                if fetch.want.link:
                    await self._share_files(fetch.source, [files[0] for files in new.values()])
                locator = Locator(fetch.source, [files[0].file for files in new.values() if is_small(files[0].spec)])
                for number, (id_, files) in enumerate(new.items(), 1):
                    locate = partial(locator.locate, files[0].file)
                    spec = files[0].spec
                    if (content := received.get(spec.sha256 or "")) is not None:
                        spec, locate = _of_peer(spec), partial(_locate_content, content)
                    supply = None if content is not None else self._peers.make_supply(spec, pool, fetch.holders)
                    started = self._downloads.start(spec, locate, allotments.pop(id_), ref, fetch.urgency(), supply)
                    if pool is not None and spec.sha256 is not None:
                        started[1].add_done_callback(partial(_mark_committed, pool, spec.sha256))
                    for each in files:
                        self._await_download(ref, awaited, _Awaited(each.spec, *started, started=True))
                    if number % _AT_A_TIME == 0:
                        await asyncio.sleep(0)
            finally:
                for allotment in allotments.values():
                    allotment.give_back()
        return here

    async def _share_files(self, source: Source, wanted: Sequence[WantedFile]) -> None:
        """Share the bytes of the local files among `wanted`, whose space is reserved, before their downloads start."""
        local = []
        for each in wanted:
            try:
                target = await source.locate(each.file)
            except HoldfastError:
                continue  # its download says it
            if isinstance(target, LocalTarget):
                local.append((each.spec, target))
        if local:
            await self._blocking.run(share_files, self._layout, local)

    def _await_download(self, ref: ModelRef, awaited: list[_Awaited], one: _Awaited) -> None:
        # In a callback, not in `_wait`: a sweep may come first.
        one.result.add_done_callback(partial(self._claim_result, ref))
        awaited.append(one)

    def _claim_result(self, ref: ModelRef, result: asyncio.Future[Verified]) -> None:
        if result.exception() is None:
            self._claims.add_existing(ref, {result.result().sha256: result.result().size})

    async def _wait(self, ref: ModelRef, awaited: list[_Awaited], here: int, total: int | None) -> None:
        """Wait for all downloads, updating the status once a second; raises the first error."""
        pending = {each.result for each in awaited}
        downloads = [each.download for each in awaited]  # one of two files counts twice, as in the total
        before, rate = None, None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_PROGRESS_S, return_when=asyncio.FIRST_EXCEPTION)
            for result in done:
                error = result.exception()
                if isinstance(error, Cancelled):
                    raise Transient("interrupted", f"{ref}: a download that it had joined was cancelled", "") from error
                if error is not None:
                    raise _error_for(ref, error, [each for each in awaited if each.result is result])
            now, moved = time.monotonic(), sum(download.progress.count_received() for download in downloads)
            if before is not None and now > before[0]:
                newest = max(0.0, (moved - before[1]) / (now - before[0]))
                rate = newest if rate is None else _NEWEST * newest + (1 - _NEWEST) * rate
            before = now, moved
            left = None if total is None else max(0, total - here - moved)
            eta_s = left / rate if left is not None and rate else None
            state = State.FETCHING if any(download.receiving() for download in downloads) else State.VERIFYING
            trouble = next((f.last_error for f in downloads if f.last_error is not None), None)
            from_peers = sum(download.bytes_from_peers for download in downloads)
            progress = FetchProgress(total, here + moved, rate, eta_s, from_peers)
            self._status_files.set_progress(ref, state, progress, trouble)

    async def _find_committed(self, wanted: WantedFiles, known_digests: Mapping[str, str]) -> dict[str, Verified]:
        """Return the committed blobs of these files, by path. All must be claimed."""
        specs = [each.spec for each in wanted]
        is_quick = len(specs) <= _FEW_FILES and not self._claims.deleting.locked()
        if is_quick and not any(self._known_digest(spec, known_digests) for spec in specs):
            return {}  # there is nothing to look for, and no deletion to wait for: no thread call
        return await self._blocking.run(self._look_for_committed, specs, known_digests)

    def _look_for_committed(self, specs: Sequence[BlobSpec], known_digests: Mapping[str, str]) -> dict[str, Verified]:
        self._claims.wait_for_deletion()
        found = {}
        for spec in specs:
            sha256 = self._known_digest(spec, known_digests)
            size = None if sha256 is None else blobs.size(self._layout, sha256)
            if sha256 is not None and size is not None and spec.key.size in (None, size):
                found[spec.name] = Verified(sha256, size, fresh=False)
        return found

    def _known_digest(self, spec: BlobSpec, known_digests: Mapping[str, str]) -> str | None:
        """Return the sha256 of a file that its source promises or an earlier fetch found, None if unknown."""
        if spec.sha256 is not None or not spec.key.validator:  # without one, the object may have changed
            return spec.sha256
        return known_digests.get(spec.key.id) or self._claims.journal.find(spec.key.id)


def _mark_committed(pool: VersionPool, sha256: str, result: asyncio.Future[Verified]) -> None:
    """Tell the pool of a blob that is committed, or not fetched any more."""
    pool.end_supply(sha256, is_committed=not result.cancelled() and result.exception() is None)


def _error_for(ref: ModelRef, error: BaseException, awaited: list[_Awaited]) -> BaseException:
    """Return the error for `ref` of a failed download: a permanent error of another version's source is transient."""
    if any(each.started for each in awaited) or not isinstance(error, Permanent):
        return error
    own = Transient("interrupted", f"{ref}: a fetch that it had joined failed: {error.message}", "it fetches by itself")
    own.__cause__ = error
    return own


def _do_nothing(_size_bytes: int, _files: int) -> None:
    """Say nothing of the space of an index: that of the whole version is reserved later."""


def _of_peer(spec: BlobSpec) -> BlobSpec:
    """Return the same blob, counted as received from another node."""
    return replace(spec, kind="peer", origin="peer")


def _locate_content(content: bytes, _cancellation: Cancellation) -> Target:
    return StreamTarget(lambda _: io.BytesIO(content))
