"""Compare a version on this node with what its source lists now, for `--resolve-interval`.

Law: lists and compares; fetches no file, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.core.catalog import CatalogVersion
from cached.core.listing import Listing, RemoteFile
from cached.core.selection.indexes import read_indexes
from cached.core.selection.presets import NO_INDEXES, Indexes
from cached.fetch.resolving.lister import SourceLister
from cached.fetch.resolving.selection import blob_reader, choose_earlier, choose_version, list_indexes, rules_of
from cached.fetch.resolving.wanted_files import partial_id
from cached.node.threads import Blocking
from cached.store.version import fetch_records
from cached.store.version.fetch_records import FetchRecord, ManifestFrom


@dataclass(frozen=True, slots=True)
class SourceComparison:
    """A source's content, compared with the `held` digest; its own `digest` is None if unknown without a fetch. `tag`:
    the listing's, None if only another listing can tell whether this one is still current."""

    held: Digest
    changed: bool
    digest: Digest | None
    tag: str | None


class SourceComparer:
    """Compares versions with their sources. `find_published` returns a version's fetch record and manifest; None where
    this node does not have it."""

    def __init__(
        self,
        layout: Layout,
        blocking: Blocking,
        lister: SourceLister,
        find_published: Callable[[ModelRef], tuple[FetchRecord, Manifest] | None],
    ) -> None:
        self._layout = layout
        self._blocking = blocking
        self._lister = lister
        self._find_published = find_published

    async def compare(self, entry: CatalogVersion, last: SourceComparison | None) -> SourceComparison | None:
        """Compare a version of this node with its source's listing, without fetching files; raises `HoldfastError`.
        `last`: the last comparison of this `entry`, which a conditional request may confirm. Return None if this node
        does not have the version."""
        held = self._find_published(entry.ref)
        if held is None:
            return None
        source = await self._lister.open(entry.source)
        try:
            if last is not None and last.held == held[0].digest and await self._lister.is_current(source, last.tag):
                return last
            listing = await self._lister.list(source)
            record = await self._blocking.run(fetch_records.read, self._layout, entry.ref)
            known = {} if record is None else record.files
            indexes = await self._blocking.run(self._held_indexes, entry, listing, held[1], known)
            compare = partial(
                _compare,
                moved=record is not None and _has_moved(record.revision, listing.revision),
                listed=record is None or record.manifest_from is ManifestFrom.SOURCE,
            )
            return await self._blocking.run(compare, entry, listing, source.display, held[1], known, indexes)
        except HoldfastError as error:
            self._lister.metrics.fetch_failed(source.kind, error.code)
            raise
        finally:
            await source.aclose()

    def _held_indexes(
        self, entry: CatalogVersion, listing: Listing, manifest: Manifest, known: Mapping[str, str]
    ) -> Indexes:
        """Return what the held indexes say, of those that are the listed ones. One that changed is a change anyway."""
        rules = rules_of(entry)
        held = {file.path: file for file in manifest.files}
        same = [
            file.path
            for file in list_indexes(listing, rules)
            if file.path in held
            and held[file.path].sha256 == (file.sha256 or known.get(partial_id(file, listing.identity)))
        ]
        if not same:
            return NO_INDEXES
        reader = blob_reader(self._layout, {path: held[path].sha256 for path in same})
        return read_indexes(rules.preset, {path: held[path].size for path in same}, reader)


def _compare(
    entry: CatalogVersion,
    listing: Listing,
    display: str,
    manifest: Manifest,
    known: Mapping[str, str],
    indexes: Indexes,
    *,
    moved: bool,
    listed: bool,
) -> SourceComparison:
    """Compare a listing with the published manifest. A file without a sha256 is unchanged if its validator is; one
    without a validator too, or of a version that was not `listed` when it was fetched, if its size is, unless the
    source's name `moved` to something else. A version with the files that an earlier release chose stays as it is."""
    files = choose_version(listing, display, rules_of(entry), indexes).files
    here = {file.path: file for file in manifest.files}
    if here.keys() != {file.path for file in files}:
        earlier = choose_earlier(listing, display, rules_of(entry))
        if earlier is not None and here.keys() == {file.path for file in earlier}:
            files = earlier
    sha256s = {file.path: file.sha256 or known.get(partial_id(file, listing.identity)) for file in files}
    changed = here.keys() != sha256s.keys() or any(
        file.size not in (None, here[file.path].size)
        or (
            sha256s[file.path] != here[file.path].sha256
            and (moved or (_tells_changes(file) if listed else file.sha256 is not None))
        )
        for file in files
    )
    digest = None
    if changed and all(file.size is not None and sha256s[file.path] for file in files):
        digest = Manifest.build(FileEntry(f.path, sha256s[f.path] or "", f.size or 0) for f in files).digest
    return SourceComparison(manifest.digest, changed, digest, listing.tag)


def _tells_changes(file: RemoteFile) -> bool:
    return bool(file.sha256 or file.validator)


def _has_moved(before: str | None, now: str | None) -> bool:
    """Return whether a moving name leads to something else than when the version was fetched."""
    return before is not None and now is not None and before != now
