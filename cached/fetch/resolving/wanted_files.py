"""The files of a version: chosen in the listing of its source, each with its blob, and then hashed into its manifest.

Law: pure. Slow for thousands of files: not for an event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cached.contract.digest import Digest
from cached.contract.layout import ingest_id
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.status import Verdict
from cached.core.demand import Want
from cached.core.listing import Listing, RemoteFile
from cached.core.selection.presets import Indexes
from cached.core.versions.record import PinMismatch
from cached.fetch.blob import BlobSpec, Verified
from cached.fetch.resolving.selection import choose_earlier, choose_version, rules_of
from cached.sources.base import Source
from cached.store.blob.ingest import IngestKey


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file of the version at its source, and its blob."""

    file: RemoteFile
    spec: BlobSpec


WantedFiles = tuple[WantedFile, ...]


def select_wanted(listing: Listing, source: Source, want: Want, indexes: Indexes) -> tuple[Verdict, WantedFiles]:
    """Return the version's files in the listing, and the verdict by their names. Raises as `choose_version`, and
    `PinMismatch` where the digests that the source promises already differ from the pin."""
    chosen = choose_version(listing, source.display, rules_of(want), indexes)
    wanted = as_wanted(listing, source, chosen.files)
    if all(file.sha256 is not None and file.size is not None for file in chosen.files):
        promised = Manifest.build(FileEntry(f.path, f.sha256 or "", f.size or 0) for f in chosen.files)
        if want.pin not in (None, promised.digest):
            wanted = select_earlier(listing, source, want, promised)
    return chosen.verdict, wanted


def select_earlier(listing: Listing, source: Source, want: Want, manifest: Manifest) -> WantedFiles:
    """Return the files that an earlier release would have chosen, where these may be what the pin names. Raises
    `PinMismatch` if they certainly are not. `manifest` is that of the files that this release chooses."""
    files = choose_earlier(listing, source.display, rules_of(want))
    known = {entry.path: entry.sha256 for entry in manifest.files}
    if files is None or known.keys() == {file.path for file in files}:
        check_pin(want, manifest)
        files = ()
    sizes = {entry.path: entry.size for entry in manifest.files}
    sha256s = {file.path: file.sha256 or known.get(file.path) for file in files}
    if all(sha256s.values()) and all((file.size or sizes.get(file.path)) is not None for file in files):
        earlier = Manifest.build(
            FileEntry(f.path, sha256s[f.path] or "", sizes.get(f.path, f.size or 0)) for f in files
        )
        if earlier.digest != want.pin:
            check_pin(want, manifest)
    return as_wanted(listing, source, files)


def as_wanted(listing: Listing, source: Source, files: Iterable[RemoteFile]) -> WantedFiles:
    """Return these files of a listing, each with its blob."""
    return tuple(WantedFile(file, blob_spec(file, source, listing.identity)) for file in files)


def check_pin(want: Want, manifest: Manifest) -> None:
    """Raise `PinMismatch` where the manifest is not the one that the want pins."""
    if want.pin is not None and manifest.digest != want.pin:
        raise PinMismatch(
            f"{want.ref}: the manifest digest",
            f"{want.pin} (the pin)",
            f"{manifest.digest} (at the source)",
            "correct the pin, or publish the content that the pin names; nothing was published",
        )


def compute_promised_digest(wanted: WantedFiles) -> Digest | None:
    """Return the digest of the version's manifest; None if the source does not promise all its files."""
    specs = [each.spec for each in wanted]
    if any(spec.sha256 is None or spec.key.size is None for spec in specs):
        return None
    return Manifest.build(FileEntry(spec.name, spec.sha256 or "", spec.key.size or 0) for spec in specs).digest


def build_manifest(wanted: WantedFiles, verified: Mapping[str, Verified]) -> Manifest:
    """Return the manifest of files whose blobs are committed, by path."""
    blobs_found = ((each.spec.name, verified[each.spec.name]) for each in wanted)
    return Manifest.build(FileEntry(name, blob.sha256, blob.size) for name, blob in blobs_found)


def blob_spec(file: RemoteFile, source: Source, identity: str) -> BlobSpec:
    """Return what a download needs to know of a file. `identity`: the listing's. Connections are limited for each
    `origin` of blobs."""
    origin = source.kind if source.kind == "hf" else f"{source.kind}://{urlsplit(source.display).netloc}"
    return BlobSpec(
        name=file.path,
        key=IngestKey(partial_id(file, identity), file.sha256 or file.validator, file.size),
        sha256=file.sha256,
        git_oid=file.git_oid,
        kind=source.kind,
        origin=origin,
        checksum=file.checksum,
    )


def partial_id(file: RemoteFile, identity: str) -> str:
    """Return the ingest id of a file: its promised sha256, else a hash of the source's object."""
    return file.sha256 or ingest_id(identity, file.key, file.version)


def list_unpromised(wanted: WantedFiles, manifest: Manifest) -> dict[str, str]:
    """Return the sha256 of the files for which the source promised none, by ingest id."""
    sha256s = {entry.path: entry.sha256 for entry in manifest.files}
    return {
        spec.key.id: sha256s[spec.name]
        for spec in (each.spec for each in wanted)
        if spec.sha256 is None and spec.key.validator  # without one, the object may have changed
    }


def assume_digests(manifest: Manifest, wanted: WantedFiles) -> dict[str, str]:
    """Return what `list_unpromised` returns for a version that an older release published, without a record: if the
    listing has its paths and sizes; else nothing."""
    sha256s = {(entry.path, entry.size): entry.sha256 for entry in manifest.files}
    specs = [each.spec for each in wanted]
    if {(spec.name, spec.key.size) for spec in specs} != sha256s.keys():
        return {}
    return {spec.key.id: sha256s[spec.name, spec.key.size or 0] for spec in specs if spec.sha256 is None}
