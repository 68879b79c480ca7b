"""Versions in a model repository of ModelScope, or of the site at MODELSCOPE_ENDPOINT.

Law: lists and locates. Every file has a sha256 in the site's listing, so a version is known before its first byte, and
a branch that moves between the list and the bytes is a wrong digest, never other weights.
"""

from __future__ import annotations

import hashlib

from cached.contract.errors import Permanent, Transient
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from cached.core.listing import Listing, RemoteFile, split_chains
from cached.sources.base import identity_of
from cached.sources.manifests import list_mirrored, read_manifest
from cached.sources.modelscope.address import ModelScopeAddress
from cached.sources.modelscope.site import Site
from cached.sources.streams import BytesStream
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import HttpTarget, StreamTarget, Target


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
            return StreamTarget(lambda _cancellation: BytesStream())  # HTTP has no range of no bytes
        return await call_in_thread(lambda cancellation: self._target(file, cancellation))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _target(self, file: RemoteFile, cancellation: Cancellation) -> HttpTarget:
        return Site(self._address, self._client, cancellation).target(file)

    def _resolve(self, cancellation: Cancellation) -> Listing:
        site = Site(self._address, self._client, cancellation)
        tree = site.tree()
        files, chains = split_chains(sorted(tree.files, key=lambda file: file.path))
        by_path = {file.path: file for file in files}
        if not files:
            remedy = "look at the repository's files on the site; a folder is named after the revision"
            raise Permanent("not_found", f"{self.display}: expected files, found none", remedy)
        if len(by_path) != len(files):
            problem = f"{self.display}: expected each file once in ModelScope's listing, found one twice"
            raise Transient("bad_response", problem, "check MODELSCOPE_ENDPOINT, and a proxy before it")
        listing = Listing(files, identity_of(self.kind, *site.identity), revision=tree.commit, chains=chains)
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
        return list_mirrored(listing, read_manifest(data, where), where)
