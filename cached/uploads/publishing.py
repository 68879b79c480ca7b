"""Decide what a publish has to do at its destination, then do it.

Law: `plan` changes nothing. `run` changes in an order that a crash may cut anywhere: mark, remove a manifest that will
not hold any more, files, the new manifest, files that only the old manifest named, unmark. So a manifest never
describes bytes that are not there, and between the mark and the manifest no source takes the files for a version.
One publisher at a time per version: S3 has no lock to take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cached.contract.digest import Digest
from cached.contract.errors import InvalidManifest, Permanent
from cached.contract.manifest import Manifest
from cached.uploads.base import Destination, Progress, Upload
from cached.uploads.content import Content
from cached.uploads.parallel import in_parallel


@dataclass(frozen=True, slots=True)
class Plan:
    """What is missing at the destination. `replaced`: the digest of another version's manifest there, if any.

    `sealed`: the right manifest is there already. `obsolete`: paths that only the replaced manifest names.
    """

    content: Content
    uploads: tuple[Upload, ...]
    sealed: bool
    replaced: Digest | None = None
    obsolete: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        return self.sealed and not self.uploads

    @property
    def upload_bytes(self) -> int:
        return sum(upload.entry.size for upload in self.uploads)


async def plan(content: Content, destination: Destination, requests: int) -> Plan:
    """Compare the content with what is there. A file there counts as right by size under a manifest that names it,
    else by size and a sha256 that the destination vouches for."""
    there = await destination.manifest()
    sizes = await destination.sizes(content.manifest.files)
    candidates = [u for u in content.uploads if sizes.get(u.entry.path) == u.entry.size]
    if there == content.manifest.canonical():
        return Plan(content, _without(content.uploads, candidates), sealed=True)
    right: list[Upload] = []

    async def compare(upload: Upload) -> None:
        if await destination.sha256(upload.entry.path) == upload.entry.sha256:
            right.append(upload)

    await in_parallel(requests, (partial(compare, upload) for upload in candidates))
    uploads = _without(content.uploads, right)
    if there is None:
        return Plan(content, uploads, sealed=False)
    return Plan(content, uploads, False, Digest.of(there), _obsolete(there, content.manifest))


def refuse_replacing(plan: Plan, display: str) -> None:
    """Raise `Permanent` (`already_published`) if the plan would replace another version."""
    if plan.replaced is not None:
        raise Permanent(
            "already_published",
            f"{display} holds another version: found {plan.replaced}, this folder is {plan.content.manifest.digest}",
            "publish under a new version, or replace what is there with --force",
        )


async def run(
    plan: Plan, destination: Destination, requests: int, progress: Progress, say: Callable[[str], None]
) -> None:
    """Carry the plan out; `say` is told what a person should know though it is no failure."""
    if plan.is_done:
        return
    await destination.mark()
    if plan.replaced is not None:
        await destination.withdraw()
    largest_first = sorted(plan.uploads, key=lambda upload: upload.entry.size, reverse=True)
    await in_parallel(requests, (partial(destination.put, upload, progress) for upload in largest_first))
    if not plan.sealed:
        await destination.seal(plan.content.manifest.canonical())
    await _tidy(plan, destination, requests, say)


async def _tidy(plan: Plan, destination: Destination, requests: int, say: Callable[[str], None]) -> None:
    try:
        await in_parallel(requests, (partial(destination.delete, path) for path in plan.obsolete))
        await destination.unmark()
    except Permanent as error:
        # The version is published: a role that may put but not delete leaves some litter, which no reader minds.
        say(f"published, but not tidied up: {error}")


def _without(uploads: tuple[Upload, ...], done: list[Upload]) -> tuple[Upload, ...]:
    paths = {upload.entry.path for upload in done}
    return tuple(upload for upload in uploads if upload.entry.path not in paths)


def _obsolete(there: bytes, manifest: Manifest) -> tuple[str, ...]:
    try:
        old = Manifest.parse(there)
    except InvalidManifest:
        return ()  # what it named is unknown: nothing is deleted on a guess
    kept = {file.path for file in manifest.files}
    return tuple(file.path for file in old.files if file.path not in kept)
