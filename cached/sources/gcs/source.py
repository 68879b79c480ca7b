"""Versions in Google Cloud Storage; `cached.sources.gcs.address` documents the location's parameters.

Law: lists and locates; never reads a model's bytes and never writes. A listed object is read by its generation, which
names one content for ever; its crc32c, which the service computes, is verified on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cached.contract.errors import Permanent
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import identity_of
from cached.sources.gcs.access import READ, GcsAccess
from cached.sources.gcs.address import GcsAddress
from cached.sources.gcs.objects import OBJECT_FIELDS, list_objects, read_object
from cached.sources.manifests import list_published, read_manifest
from cached.sources.objects import StoredObject, file_of, files_of, find_each
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.service.requests import Service
from cached.transport.target import HttpTarget

_NOT_FOUND = 404


class GcsSource:
    """A `Source` over a prefix, or a single object. The caller closes `client`."""

    kind = "gs"

    def __init__(self, uri: str, client: HttpClient) -> None:
        """Raises `Permanent` (`bad_source`)."""
        self._address = GcsAddress.parse(uri)
        self._access = GcsAccess(self._address, client, READ)
        self._identity = identity_of(self.kind, self._address.endpoint, self._address.bucket)

    @property
    def display(self) -> str:
        return self._address.display

    async def resolve(self) -> Listing:
        """List the version from `holdfast.json`, else the prefix, else as the single object with exactly this key."""
        return await call_in_thread(self._resolve)

    async def find(self, paths: Sequence[str]) -> Listing:
        """Describe named objects below the prefix, one request each. Raises as `Describing.find` says."""

        def find(cancellation: Cancellation) -> Listing:
            service, address = self._access.service(cancellation), self._address
            files = find_each(paths, address.prefix, address.uri, lambda key: self._object(service, key))
            return Listing(files, self._identity)

        return await call_in_thread(find)

    async def is_current(self, tag: str) -> bool:
        """Return whether `holdfast.json` still is the generation `tag`."""

        def ask(cancellation: Cancellation) -> bool:
            service = self._access.service(cancellation)
            url = self._address.object_url(self._address.prefix + MANIFEST_NAME, fields="generation")
            response = service.ask(url)
            if response.status == _NOT_FOUND:
                return False
            if response.status != 200:
                raise service.error_of(url, response)
            return f'"{tag}"'.encode() in response.body

        return await call_in_thread(ask)

    async def locate(self, file: RemoteFile) -> HttpTarget:
        """Return the address of the listed generation, or of an object that a manifest promises, with a token."""
        version = {"generation": file.validator} if file.validator else {}
        url = self._address.object_url(file.key, alt="media", **version)
        target = HttpTarget(url, stored_bytes=file.size, names_version=bool(version))
        authorized = self._access.authorize_now(target)
        if authorized is not None:
            return authorized
        return await call_in_thread(lambda cancellation: self._access.authorize(target, cancellation))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _resolve(self, cancellation: Cancellation) -> Listing:
        service = self._access.service(cancellation)
        prefix, key = self._address.prefix, self._address.key
        manifest = self._read(service, prefix + MANIFEST_NAME)
        if manifest is not None:
            return self._published(manifest)
        files = files_of(list_objects(service, self._address, prefix).values(), prefix, self._address.uri)
        if not files and key and not key.endswith("/"):
            found = self._object(service, key)
            files = () if found is None else (file_of(found, key.rpartition("/")[2]),)
        if not files:
            raise Permanent(
                "not_found",
                f"expected {self._address.uri(prefix)}{MANIFEST_NAME}, objects under {self._address.uri(prefix)}, or "
                "one object of that name; found none",
                "check the bucket and the prefix for typing errors",
            )
        return Listing(files, self._identity)

    def _read(self, service: Service, key: str) -> Response | None:
        """Return the answer with a small object's bytes; None if there is no such object."""
        url = self._address.object_url(key, alt="media")
        response = service.ask(url, limit_bytes=MAX_MANIFEST_BYTES)
        if response.status == _NOT_FOUND:
            return None
        if response.status != 200:
            raise service.error_of(url, response)
        return response

    def _published(self, response: Response) -> Listing:
        prefix = self._address.prefix
        manifest = read_manifest(response.body, self._address.uri(prefix + MANIFEST_NAME))
        return list_published(manifest, prefix, self._identity, response.headers.get("X-Goog-Generation"))

    def _object(self, service: Service, key: str) -> StoredObject | None:
        """Return the attributes of an object; None if there is no such object."""
        try:
            document = service.get_json(self._address.object_url(key, fields=OBJECT_FIELDS))
        except Permanent as error:
            if error.code != "not_found":
                raise
            return None
        return replace(read_object(document, self._address.uri(key)), key=key)
