"""Versions in a model repository of ModelScope, or of the site at MODELSCOPE_ENDPOINT.

Law: lists and locates. Every file has a sha256 in the site's listing, so a version is known before its first byte, and
a branch that moves meanwhile is a wrong digest, never other weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cached.contract.errors import HoldfastError, InvalidManifest, Permanent, Transient
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import identity_of
from cached.sources.manifests import read_manifest
from cached.sources.modelscope.address import ModelScopeAddress
from cached.sources.modelscope.site import Site
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import HttpTarget, StreamTarget, Target

_PUBLISH_AGAIN = "publish the version again with `holdfast publish`, and upload the whole of it in one commit"


class ModelScopeSource:
    """A `Source` over a repository, or a folder of it, at one revision. The caller closes `client`."""

    kind = "ms"

    def __init__(self, uri: str, client: HttpClient) -> None:
        """Raises `Permanent` (`invalid_source`)."""
        self._address = ModelScopeAddress.parse(uri)
        self._client = client

    @property
    def display(self) -> str:
        return str(self._address)

    async def resolve(self) -> Listing:
        """List the files of the revision. Raises as `Source.resolve` says."""
        return await call_in_thread(self._resolve)

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address of a listed file: at the site with the token, or a signed URL elsewhere without it."""
        if file.size == 0 and file.sha256 is not None:
            return StreamTarget(lambda _cancellation: _NoBytes())  # HTTP has no range of no bytes
        return await call_in_thread(lambda cancellation: self._target(file, cancellation))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _target(self, file: RemoteFile, cancellation: Cancellation) -> HttpTarget:
        return Site(self._address, self._client, cancellation).target(file)

    def _resolve(self, cancellation: Cancellation) -> Listing:
        site = Site(self._address, self._client, cancellation)
        tree = site.tree()
        files = tuple(sorted(tree.files, key=lambda file: file.path))
        by_path = {file.path: file for file in files}
        if not files:
            remedy = "look at the repository's files on the site; a folder is named after the revision"
            raise Permanent("not_found", f"{self.display}: expected files, found none", remedy)
        if len(by_path) != len(files):
            problem = f"{self.display}: expected each file once in ModelScope's listing, found one twice"
            raise Transient("bad_response", problem, "check MODELSCOPE_ENDPOINT, and a proxy before it")
        listing = Listing(files, identity_of(self.kind, *site.identity), revision=tree.commit)
        own = by_path.get(MANIFEST_NAME)
        if own is None:
            return listing
        if own.problem is not None:
            raise own.problem
        where = f"{self.display}: {MANIFEST_NAME}"
        data = site.read(own, MAX_MANIFEST_BYTES)
        if own.sha256 not in (None, hashlib.sha256(data).hexdigest()):
            problem = f"{where}: expected the bytes of the listing, found others"
            raise Transient("source_changed", problem, "it is listed and read again")
        manifest = read_manifest(data, where)
        mirrored = tuple(_confirmed(entry, by_path.get(entry.path), where) for entry in manifest.files)
        return replace(listing, files=mirrored, manifest=manifest)


class _NoBytes:
    """The stream of an empty file."""

    def readinto(self, view: memoryview) -> int:  # noqa: ARG002 - as the Protocol
        """Return 0."""
        return 0

    def close(self) -> None:
        """Do nothing."""


def _confirmed(entry: FileEntry, found: RemoteFile | None, where: str) -> RemoteFile:
    """Return a file of a manifest, with a problem where the repository has none, or another one."""
    if found is None:
        problem: HoldfastError = InvalidManifest(f"{where} lists {entry.path!r}, which is not there", _PUBLISH_AGAIN)
        return RemoteFile(entry.path, "", entry.size, problem=problem)
    if found.size == entry.size and found.sha256 in (None, entry.sha256):
        return replace(found, sha256=entry.sha256)
    listed = f"{where} lists {entry.path!r} with {entry.size} bytes, sha256 {entry.sha256}"
    has = f"the repository has {found.size} bytes, sha256 {found.sha256 or 'not listed'}"
    return replace(found, problem=found.problem or InvalidManifest(f"{listed}; {has}", _PUBLISH_AGAIN))
