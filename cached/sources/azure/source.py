"""Versions in Azure Blob Storage; `cached.sources.azure.address` documents the location's parameters.

Law: lists and locates; never reads a model's bytes and never writes. A listed blob is read with `If-Match` of its
listed ETag, which changes with every write; its Content-MD5, where it has one, is verified on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

from cached.contract.errors import Permanent
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from cached.core.listing import Listing, RemoteFile
from cached.sources.azure.access import READ, VERSION, AzureAccess, code_of
from cached.sources.azure.address import AzureAddress
from cached.sources.azure.blobs import find_blob, list_blobs
from cached.sources.base import identity_of
from cached.sources.manifests import list_published, read_manifest
from cached.sources.objects import StoredObject, file_of, files_of, find_each
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.response import strong_etag
from cached.transport.target import Headers, HttpTarget

_NOT_FOUND = 404
_NOT_MODIFIED = 304


class AzureSource:
    """A `Source` over a prefix, or a single blob. The caller closes `client`."""

    kind = "az"

    def __init__(self, uri: str, client: HttpClient) -> None:
        """Raises `Permanent` (`bad_source`, `bad_credentials`)."""
        self._address = AzureAddress.parse(uri)
        self._access = AzureAccess(self._address, client, READ)
        self._identity = identity_of(self.kind, self._address.endpoint, self._address.container)

    @property
    def display(self) -> str:
        return self._address.display

    async def resolve(self) -> Listing:
        """List the version from `holdfast.json`, else the prefix, else as the single blob with exactly this name."""
        return await call_in_thread(self._resolve)

    async def find(self, paths: Sequence[str]) -> Listing:
        """Describe named blobs below the prefix, one request each. Raises as `Describing.find` says."""

        def find(cancellation: Cancellation) -> Listing:
            access, address = self._access, self._address

            def find_one(key: str) -> StoredObject | None:
                return find_blob(access, address, key, cancellation)

            return Listing(find_each(paths, address.prefix, address.uri, find_one), self._identity)

        return await call_in_thread(find)

    async def is_current(self, tag: str) -> bool:
        """Return whether `holdfast.json` still has the ETag `tag`."""

        def ask(cancellation: Cancellation) -> bool:
            return self._ask_manifest(cancellation, (("If-None-Match", tag),)).status == _NOT_MODIFIED

        return await call_in_thread(ask)

    async def locate(self, file: RemoteFile) -> HttpTarget:
        """Return the address of a blob, with its listed ETag as a condition, a signature or a token."""
        url = self._address.blob_url(file.key)
        target = HttpTarget(url, VERSION, if_match=file.validator or None, stored_bytes=file.size)
        authorized = self._access.authorize_now(target)
        if authorized is not None:
            return authorized
        return await call_in_thread(lambda cancellation: self._access.authorize(target, cancellation))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _resolve(self, cancellation: Cancellation) -> Listing:
        address, prefix = self._address, self._address.prefix
        manifest = self._ask_manifest(cancellation, ())
        if manifest.status == 200:
            return self._published(manifest)
        files = files_of(list_blobs(self._access, address, prefix, cancellation).values(), prefix, address.uri)
        if not files and address.key and not address.key.endswith("/"):
            found = find_blob(self._access, address, address.key, cancellation)
            files = () if found is None else (file_of(found, address.key.rpartition("/")[2]),)
        if not files:
            raise Permanent(
                "not_found",
                f"expected {address.uri(prefix)}{MANIFEST_NAME}, blobs under {address.uri(prefix)}, or one blob of "
                "that name; found none",
                "check the account, the container and the prefix for typing errors",
            )
        return Listing(files, self._identity)

    def _ask_manifest(self, cancellation: Cancellation, condition: Headers) -> Response:
        """Return the answer to a request for `holdfast.json`: 200, 304 under a condition, or 404 without one. Raises
        for any other."""
        service = self._access.service(cancellation)
        url = self._access.signed(self._address.blob_url(self._address.prefix + MANIFEST_NAME), cancellation)
        response = service.ask(url, (*VERSION, *condition), MAX_MANIFEST_BYTES)
        is_absent = response.status == _NOT_FOUND and code_of(response) != "ContainerNotFound"
        if response.status == 200 or is_absent or (condition and response.status == _NOT_MODIFIED):
            return response
        raise service.error_of(url, response)

    def _published(self, response: Response) -> Listing:
        prefix = self._address.prefix
        manifest = read_manifest(response.body, self._address.uri(prefix + MANIFEST_NAME))
        return list_published(manifest, prefix, self._identity, strong_etag(response.headers))
