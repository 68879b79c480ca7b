"""The parsing of a source's `holdfast.json`, and the error where a publish has not written it yet. Law: pure."""

from __future__ import annotations

from dataclasses import replace

from cached.contract.errors import InvalidManifest, Transient
from cached.contract.manifest import CHAINS_NAME, MANIFEST_NAME, FileEntry, Manifest
from cached.core.listing import Listing, RemoteFile
from cached.transport.pages import page_error, page_in


def read_manifest(data: bytes, where: str) -> Manifest:
    """Parse the bytes of `holdfast.json` from `where` (an address without credentials). Raises `Transient`
    (`bad_response`) for a web page, `InvalidManifest` for anything else that is no manifest."""
    page = page_in(data)
    if page is not None:
        raise page_error(MANIFEST_NAME, where, page)
    try:
        return Manifest.parse(data)
    except InvalidManifest as error:
        raise InvalidManifest(f"{where}: {error.message}", error.remedy) from error


def list_published(manifest: Manifest, prefix: str, identity: str, tag: str | None) -> Listing:
    """Return the listing of a version under `prefix` of an object store, by its manifest; `identity` and `tag` as in
    `Listing`. The files have no validator: the sha256 decides, also after a copy of the objects."""
    files = tuple(RemoteFile(f.path, prefix + f.path, f.size, sha256=f.sha256) for f in manifest.files)
    return Listing(files, identity, manifest, tag=tag, chains=RemoteFile(CHAINS_NAME, prefix + CHAINS_NAME, None))


def list_mirrored(listing: Listing, manifest: Manifest, where: str) -> Listing:
    """Return the version that `manifest` (found at `where`, for messages) says is in a repository's `listing`: each of
    its files is one of the listing with its sha256, or has a problem where that has none, or another one."""
    by_path = {file.path: file for file in listing.files}
    files = tuple(_confirmed(entry, by_path.get(entry.path), where) for entry in manifest.files)
    return replace(listing, files=files, manifest=manifest, unlisted=())


def _confirmed(entry: FileEntry, found: RemoteFile | None, where: str) -> RemoteFile:
    remedy = "publish the version again with `holdfast publish`, and bring the whole of it there in one commit"
    if found is None:
        problem = InvalidManifest(f"{where} lists {entry.path!r}, which is not there", remedy)
        return RemoteFile(entry.path, "", entry.size, problem=problem)
    if found.size in (None, entry.size) and found.sha256 in (None, entry.sha256):
        return replace(found, size=entry.size, sha256=entry.sha256)
    listed = f"{where} lists {entry.path!r} with {entry.size} bytes, sha256 {entry.sha256}"
    has = f"found {found.size} bytes, sha256 {found.sha256 or 'not listed'}"
    return replace(found, problem=found.problem or InvalidManifest(f"{listed}; {has}", remedy))


def unfinished_publish(mark: str) -> Transient:
    """Return the error of a version whose publish has left its `mark` (an address) and no manifest yet."""
    return Transient(
        "publishing",
        f"{mark}: a publish is under way, or was interrupted before its manifest",
        "let it finish, or run `holdfast publish` again",
    )
