"""The parsing of a source's `holdfast.json`, and the error where a publish has not written it yet. Law: pure."""

from __future__ import annotations

from cached.contract.errors import InvalidManifest, Transient
from cached.contract.manifest import MANIFEST_NAME, Manifest
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
    return Listing(files, identity, manifest, tag=tag)


def unfinished_publish(mark: str) -> Transient:
    """Return the error of a version whose publish has left its `mark` (an address) and no manifest yet."""
    return Transient(
        "publishing",
        f"{mark}: a publish is under way, or was interrupted before its manifest",
        "let it finish, or run `holdfast publish` again",
    )
