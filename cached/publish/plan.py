"""Plan the changes of a publish at its destination, and carry them out.

Law: `make_plan` changes nothing. `carry_out_plan` may be interrupted anywhere by a crash: it marks, deletes an outdated
manifest, writes files and the new manifest, deletes files that only the old manifest lists, and unmarks. So a manifest
never describes missing bytes, and between the mark and the manifest no source accepts the files as a version. The old
manifest is kept beside the mark, so that the next publisher knows its files. The
chaining values, a hint for nodes, are written before the manifest, and fail no publish. One
publisher at a time per version: the mark names it, and before and after the manifest is written every file must be the
one that was checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, InvalidManifest, Permanent
from cached.contract.manifest import CHAINS_NAME, REPLACED_NAME, FileEntry, Manifest
from cached.publish.content import FolderContent
from cached.publish.destination import Destination, Progress, Say, Stored, Upload
from cached.publish.mark import Mark
from cached.publish.parallel import in_parallel, ungrouped

BEAT_S = 5.0
_NO_CHAINS = "published without chaining values (nodes hash twice what they share first)"

# Returns how a file of the right size differs from the upload; None if it does not.
Comparison = Callable[[Destination, Upload, Stored], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The comparisons of files: under the right manifest (`sealed`), and under another or none."""

    sealed: Comparison
    unsealed: Comparison


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """The changes at the destination. `uploads`: files to upload, and how each differs. `sealed`: the right manifest
    exists already. `replaced`: the digest of another version's manifest, if any; `obsolete`: files that only that one
    lists, or the one that a publish withdrew which did not end (`is_resumed`). `writes_chains`, `deletes_chains`:
    whether the file of chaining values is missing or another version's. `manifest` and `listing`: the destination's
    state when the plan was made."""

    content: FolderContent
    uploads: dict[Upload, str]
    sealed: bool
    replaced: Digest | None
    obsolete: tuple[FileEntry, ...]
    is_resumed: bool
    writes_chains: bool
    deletes_chains: bool
    manifest: bytes | None = field(repr=False)
    listing: dict[str, Stored] = field(repr=False)

    @property
    def is_published(self) -> bool:
        """Whether the version is there, whole."""
        return self.sealed and not self.uploads

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        return self.is_published and not self.writes_chains

    def list_in_the_way(self) -> list[FileEntry]:
        """Return the old files that stand where a new one needs a folder, or below where a new one goes: in a folder
        both cannot be, so they go before the new ones come."""
        manifest = self.content.manifest
        files, folders = {file.path for file in manifest.files}, frozenset(manifest.list_folders())
        return [
            each
            for each in self.obsolete
            if each.path in folders or not files.isdisjoint(map(str, PurePosixPath(each.path).parents))
        ]

    def list_beside(self) -> list[str]:
        """Return the paths of the other old files."""
        gone = frozenset(each.path for each in self.list_in_the_way())
        return [each.path for each in self.obsolete if each.path not in gone]

    @property
    def upload_bytes(self) -> int:
        return sum(upload.entry.size for upload in self.uploads)


async def _by_size(_destination: Destination, _upload: Upload, _stored: Stored) -> str | None:
    """Accept the size: the files of the right manifest were checked before it was written."""
    return None


async def _by_checksum(destination: Destination, upload: Upload, stored: Stored) -> str | None:
    """Accept the destination's own checksum."""
    return None if await destination.vouches_for(upload, stored) else "other contents"


async def _by_sha256(destination: Destination, upload: Upload, _stored: Stored) -> str | None:
    """Accept only the sha256."""
    found = await destination.get_sha256(upload.entry.path)
    if found == upload.entry.sha256:
        return None
    return "missing" if found is None else f"other contents: expected sha256 {upload.entry.sha256}, found {found}"


PLAIN = Comparisons(sealed=_by_size, unsealed=_by_checksum)
FORCED = Comparisons(sealed=_by_sha256, unsealed=_by_checksum)
CHECKED = Comparisons(sealed=_by_sha256, unsealed=_by_sha256)


async def make_plan(
    content: FolderContent, destination: Destination, requests: int, comparisons: Comparisons
) -> PublishPlan:
    """Compare the content with the destination, with `requests` comparisons at once; return the changes."""
    stored_manifest = await destination.read_manifest()
    listing = await destination.list_files(content.manifest.files)
    sealed = stored_manifest == content.manifest.canonical()
    comparison = comparisons.sealed if sealed else comparisons.unsealed
    uploads: dict[Upload, str] = {}

    async def compare(upload: Upload) -> None:
        stored = listing.get(upload.entry.path)
        if stored is None:
            difference: str | None = "missing"
        elif stored.size != upload.entry.size:
            difference = f"expected {upload.entry.size} bytes, found {stored.size}"
        else:
            difference = await comparison(destination, upload, stored)
        if difference is not None:
            uploads[upload] = difference

    await in_parallel(requests, compare, content.uploads)
    other = None if sealed else stored_manifest
    replaced = None if other is None else Digest.of(other)
    withdrawn = await destination.read_replaced() if await destination.is_marked() else None
    obsolete = _obsolete([each for each in (other, withdrawn) if each is not None], content.manifest)
    chains = None if sealed and content.chains is None else await _read_chains(destination)
    writes = destination.keeps_chains and content.chains not in (None, chains)
    deletes = content.chains is None and chains is not None and not sealed
    return PublishPlan(
        content=content,
        uploads=uploads,
        sealed=sealed,
        replaced=replaced,
        obsolete=obsolete,
        is_resumed=withdrawn is not None,
        writes_chains=writes,
        deletes_chains=deletes,
        manifest=stored_manifest,
        listing=listing,
    )


async def _read_chains(destination: Destination) -> bytes | None:
    """Return the stored file of chaining values. One that cannot be read, or is too large, counts as other bytes: it
    fails no publish."""
    try:
        return await destination.read_chains()
    except HoldfastError:
        return b""


def refuse_replacing(plan: PublishPlan, display: str) -> None:
    """Raise `Permanent` (`already_published`) if the plan would replace another version."""
    if plan.replaced is not None:
        raise Permanent(
            "already_published",
            f"{display} holds another version: found {plan.replaced}, this folder is {plan.content.manifest.digest}",
            "publish under a new version, or replace what is there with --force",
        )


async def carry_out_plan(
    decided: PublishPlan,
    decide: Callable[[], Awaitable[PublishPlan]],
    destination: Destination,
    requests: int,
    progress: Progress,
    say: Say,
) -> PublishPlan:
    """Carry out the plan as the only publisher; return the plan that was carried out. `decide` plans again, and may
    refuse, if the destination changed before the mark was written. `say` is called with messages for people that are no
    failures. Where only the chaining values of a published version are missing, a failure is one of these."""
    if decided.is_done:
        return decided
    try:
        await destination.claim(Mark.new(decided.content.manifest.digest), say)
        with ungrouped():
            async with asyncio.TaskGroup() as tasks:
                ended = asyncio.Event()
                tasks.create_task(_renew_claim(destination, ended))
                found = await destination.read_manifest(), await destination.list_files(decided.content.manifest.files)
                plan = decided if found == (decided.manifest, decided.listing) else await decide()
                await _carry_out(plan, destination, requests, progress, say)
                ended.set()
        await _tidy(plan, destination, requests, say)
    except BaseException as error:
        await _end_claim(destination, error)
        if decided.is_published and isinstance(error, HoldfastError) and error.code != "already_published":
            say(f"{_NO_CHAINS}: {error}")
            return replace(decided, writes_chains=False)
        raise
    return plan


async def clear_mark(plan: PublishPlan, destination: Destination, requests: int, say: Say) -> None:
    """Remove the mark, and the old files, that a publisher left which was killed after the manifest of this plan's
    version; leave those of a living one. A failure is a message: the version is there."""
    if not await destination.is_marked():
        return
    try:
        await destination.claim(Mark.new(plan.content.manifest.digest), say)
        if plan.is_resumed and await destination.read_manifest() == plan.manifest:  # none has been published since
            await in_parallel(requests, destination.delete, plan.list_beside())
            await destination.delete(REPLACED_NAME)
        await destination.unmark()
    except HoldfastError as error:
        if error.code != "another_publisher":
            say(f"the mark of a publish that did not end stays: {error}")


async def _renew_claim(destination: Destination, ended: asyncio.Event) -> None:
    """Renew the mark until `ended`; a renewal is never interrupted, or it could arrive after the mark is deleted."""
    while not ended.is_set():
        try:
            await asyncio.wait_for(ended.wait(), BEAT_S)
        except TimeoutError:
            await destination.keep_claim()


async def _end_claim(destination: Destination, error: BaseException) -> None:
    """Let the next publisher start at once; a refusal has changed nothing, so it leaves no mark."""
    try:
        if isinstance(error, HoldfastError) and error.code == "already_published":
            await destination.unmark()
        else:
            await destination.give_up()
    except HoldfastError as second:
        error.add_note(f"the mark of this publish stays as it is: {second.message}")


async def _carry_out(plan: PublishPlan, destination: Destination, requests: int, progress: Progress, say: Say) -> None:
    if plan.is_done:
        return
    await destination.keep_claim()
    if plan.replaced is not None:
        assert plan.manifest is not None
        await destination.keep_replaced(plan.manifest)
        await destination.withdraw()
    if old := plan.list_in_the_way():  # as far as they are there: a publish that was killed may have gone further
        await in_parallel(requests, destination.delete, await destination.list_files(old))
    checked = dict(plan.listing)

    async def put(upload: Upload) -> None:
        checked[upload.entry.path] = await destination.put(upload, progress)

    largest_first = sorted(plan.uploads, key=lambda upload: upload.entry.size, reverse=True)
    await in_parallel(requests, put, largest_first)
    await destination.keep_claim()
    await _check_untouched(plan.content.manifest, checked, destination)
    await _write_chains(plan, destination, say)
    if not plan.sealed:
        await _seal(plan.content.manifest, checked, destination)
    await destination.keep_claim()


async def _write_chains(plan: PublishPlan, destination: Destination, say: Say) -> None:
    """Write the file of chaining values, without which the version is whole, too."""
    if not plan.writes_chains or plan.content.chains is None:
        return
    try:
        await destination.write_chains(plan.content.chains)
    except HoldfastError as error:
        if error.code == "another_publisher" or plan.is_published:
            raise
        say(f"{_NO_CHAINS}: {error}")


async def _seal(manifest: Manifest, checked: dict[str, Stored], destination: Destination) -> None:
    """Write the manifest; delete one that describes other bytes than the stored ones."""
    try:
        await destination.seal(manifest.canonical())
    except Permanent as error:
        if error.code == "another_publisher":
            # Another publisher, which had lost its mark to this one, wrote it; this one has changed files since.
            await destination.keep_claim()
            await destination.withdraw()
        raise
    try:
        await _check_untouched(manifest, checked, destination)
    except Permanent:
        if await destination.read_manifest() == manifest.canonical():
            await destination.withdraw()
        raise


async def _check_untouched(manifest: Manifest, checked: dict[str, Stored], destination: Destination) -> None:
    """Raise unless every file is the one that was checked."""
    found = await destination.list_files(manifest.files)
    for file in manifest.files:
        if found.get(file.path) != checked[file.path]:
            raise Permanent(
                "another_publisher",
                f"{destination.display}: {file.path} was written or removed by another program during this publish",
                "publish again once nothing else writes there",
            )


async def _tidy(plan: PublishPlan, destination: Destination, requests: int, say: Say) -> None:
    try:
        chains = (CHAINS_NAME,) if plan.deletes_chains else ()
        await in_parallel(requests, destination.delete, (*plan.list_beside(), *chains))
        if plan.is_resumed or plan.replaced is not None:  # after the files that it names
            await destination.delete(REPLACED_NAME)
        await destination.unmark()
    except Permanent as error:
        # The version is published: a role without the right to delete leaves files that no reader uses.
        say(f"published, but not tidied up: {error}")
        await destination.give_up()


def _obsolete(old_manifests: Sequence[bytes], manifest: Manifest) -> tuple[FileEntry, ...]:
    kept = {file.path for file in manifest.files}
    found: dict[str, FileEntry] = {}
    for data in old_manifests:
        try:
            old = Manifest.parse(data)
        except InvalidManifest:
            continue  # its files are unknown: none is deleted
        found |= {file.path: file for file in old.files if file.path not in kept}
    return tuple(found.values())
