"""Publish to a registry: each file a blob, then the manifest that names them.

Law: nothing is visible before the manifest: a reader of the tag sees the version before, or the whole new one. So there
is no mark and nothing to withdraw. The tag is looked at before and after the manifest is written: a publisher whose tag
is another one's says so.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from cached.publish.destination import Progress, Say, Stored, Upload
from cached.publish.mark import Mark, another_publisher
from cached.publish.oci.layers import (
    MOST_LAYERS,
    LayerBytes,
    PackedLayer,
    build_config,
    build_index,
    build_manifest,
    choose_shared,
)
from cached.publish.oci.uploads import RegistryUploads
from cached.publish.parallel import in_parallel
from cached.sources.oci.access.hosts import find_endpoints
from cached.sources.oci.address import OciAddress, OciPlatform
from cached.sources.oci.manifest import (
    MAX_DOCUMENT_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    OciArtifact,
    digest_of,
    parse_manifest,
)
from cached.sources.oci.published import Placed, read_published
from cached.sources.oci.registry import FoundManifest, Registry, registry_auth
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import Part

_SHARED_NAME = "more-files"
_READ_BYTES = 1024 * 1024


class OciDestination:
    """A `Destination` at a tag; at most `requests` requests send at once."""

    def __init__(self, uri: str, requests: int) -> None:
        """Raises `Permanent` (`bad_source`, `bad_hosts`)."""
        address = OciAddress.parse(uri)
        if address.digest is not None:
            raise Permanent(
                "bad_source",
                f"{address.display}: expected a tag to publish to, found a digest, which names what is there already",
                f"write it as oci://{address.host}/{address.repository}:tag",
            )
        origin = replace(find_endpoints(address.host)[-1], pulls=True, resolves=True)
        self._address = address
        self._requests = requests
        self._client = HttpClient(HttpSettings())
        self._registry = Registry(address, self._client, endpoints=(origin,))
        auth = registry_auth(address, origin, self._client, "pull,push")
        self._uploads = RegistryUploads(origin.base, address.repository, auth, asyncio.Semaphore(requests))
        self._shared: frozenset[str] = frozenset()
        self._waiting: dict[str, Upload] = {}  # files that share a layer
        self._layers: dict[str, PackedLayer] = {}  # of the files that were checked, by path
        self._there: dict[str, Placed] = {}  # the files of the tag's version when they were listed
        self._damaged: set[str] = set()  # digests whose bytes at the registry are others
        self._seen: str | None = None  # the digest of the tag's manifest when it was looked at

    @property
    def display(self) -> str:
        return self._address.display

    async def read_manifest(self) -> bytes | None:
        """Return the version's manifest, or that of another artifact, which counts as another version."""
        found = await self._tagged()
        self._seen = None if found is None else found.digest
        published = None if found is None else await self._published(found)
        return None if found is None else found.data if published is None else published[1].canonical()

    async def list_files(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        self._shared = choose_shared(files, MOST_LAYERS)
        there = self._there = await self._files()
        found = {f.path: _stored(there[f.path][0]) for f in files if f.path in there}
        put = [f for f in files if f.path in self._layers or f.path in self._waiting]
        found |= {f.path: _stored(self._entry(f.path)) for f in put}
        missing = set()

        async def check(path: str) -> None:
            if not await self._uploads.has_blob(self._layers[path].digest):
                missing.add(path)

        await in_parallel(self._requests, check, [f.path for f in put if f.path in self._layers])
        return {path: stored for path, stored in found.items() if path not in missing}

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        """Return whether the tag's version has the file in the very layer that it would have now. One that shares a
        layer is packed anew."""
        path = upload.entry.path
        there = self._there.get(path)
        if path in self._layers:
            return stored == _stored(upload.entry)
        if there is None or path in self._shared or stored != _stored(upload.entry):
            return False
        layer = LayerBytes([upload])
        digest = await asyncio.to_thread(layer.digest)
        if digest != there[1] or not await self._uploads.has_blob(digest):
            return False
        self._layers[path] = PackedLayer(digest, layer.size, ((upload.entry, layer.starts[path]),))
        return True

    async def get_sha256(self, path: str) -> str | None:
        """Read the file's part of its layer from the registry, and hash it."""
        if path in self._layers:
            layer = self._layers[path]
            entry, start = next((entry, start) for entry, start in layer.files if entry.path == path)
            return await self._read_sha256(layer.digest, entry, start)
        there = (await self._files()).get(path)
        if there is None:
            return None
        entry, digest, start = there
        return await self._read_sha256(digest, entry, start)

    keeps_chains = False  # a layer of them would be a file in the image's volume

    async def read_chains(self) -> bytes | None:
        """Return None: there is no place for them."""
        return None

    async def write_chains(self, data: bytes) -> None:
        """Do nothing, as `read_chains`."""

    async def claim(self, mark: Mark, say: Say) -> None:
        """Do nothing: a version is invisible until its manifest is there."""

    async def is_marked(self) -> bool:
        """Return False: the tag moves in one step."""
        return False

    async def keep_claim(self) -> None:
        """Do nothing, as `claim`."""

    async def read_replaced(self) -> bytes | None:
        """Return None, as `withdraw`."""
        return None

    async def keep_replaced(self, manifest: bytes) -> None:
        """Do nothing, as `withdraw`."""

    async def withdraw(self) -> None:
        """Do nothing: the tag names the version before until `seal` moves it, and its blobs stay as they are."""

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        """Store one file as a layer; one of the smallest waits for the layer that they share."""
        path = upload.entry.path
        layer = LayerBytes([upload])
        digest = await asyncio.to_thread(layer.digest)
        if path in self._shared:
            self._waiting[path] = upload
            progress(upload.entry.size)
        else:
            await self._put(digest, layer, _file_progress(progress, upload.entry.size))
            self._layers[path] = PackedLayer(digest, layer.size, ((upload.entry, layer.starts[path]),))
        return _stored(upload.entry)

    async def seal(self, manifest: bytes) -> None:
        """Write the manifest, last; raises `another_publisher` where the tag was moved by another one."""
        version = Manifest.parse(manifest)
        described = await self._describe(version, manifest)
        platforms = self._address.platforms or (OciPlatform.of_this_machine(),)
        images = [(platform, await self._image(platform, version, described)) for platform in platforms]
        data, kind = images[0][1], OCI_MANIFEST
        if len(images) > 1:
            for _, image in images:
                await self._uploads.put_manifest(digest_of(image), image, OCI_MANIFEST)
            data, kind = build_index(images), OCI_INDEX
        before = await self._tagged()
        if before is not None and before.digest != self._seen and before.data != data:
            raise another_publisher(self.display, None)
        await self._uploads.put_manifest(self._address.tag, data, kind)
        after = await self._tagged()
        if after is None or after.data != data:
            raise another_publisher(self.display, None)
        self._seen = after.digest

    async def delete(self, path: str) -> None:
        """Do nothing: no manifest of the tag names the file any more, and the registry collects what none names."""

    async def unmark(self) -> None:
        """Do nothing, as `claim`."""

    async def give_up(self) -> None:
        """Do nothing, as `claim`."""

    async def aclose(self) -> None:
        await self._uploads.aclose()
        self._client.close()

    async def _describe(self, version: Manifest, manifest: bytes) -> list[dict[str, Any]]:
        """Return the descriptors of all layers, in the order of their files; those not there yet are stored."""
        shared = [self._waiting[file.path] for file in version.files if file.path in self._waiting]
        if shared:
            layer = LayerBytes(shared)
            digest = await asyncio.to_thread(layer.digest)
            await self._put(digest, layer, _ignore)
            starts = tuple((upload.entry, layer.starts[upload.entry.path]) for upload in shared)
            packed = PackedLayer(digest, layer.size, starts)
            self._layers |= dict.fromkeys((upload.entry.path for upload in shared), packed)
        own = LayerBytes([(MANIFEST_NAME, manifest)])
        digest = await asyncio.to_thread(own.digest)
        await self._put(digest, own, _ignore)
        described = []
        for layer_of_file in dict.fromkeys(self._layers[file.path] for file in version.files):
            only = layer_of_file.files[0][0].path if len(layer_of_file.files) == 1 else _SHARED_NAME
            described.append(layer_of_file.descriptor(only))
        return [*described, PackedLayer(digest, own.size, ()).descriptor(MANIFEST_NAME)]

    async def _image(self, platform: OciPlatform, version: Manifest, described: Sequence[dict[str, Any]]) -> bytes:
        """Store the config of an image for a platform; return its manifest."""
        diff_ids = [each["digest"] for each in described]
        config = build_config(self._address, platform, diff_ids, [file.path for file in version.files])
        data = build_manifest(config, described, version.digest)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise Permanent(
                "too_large",
                f"{self.display}: the manifest of {len(version.files)} files has {len(data)} bytes; registries accept "
                f"{MAX_DOCUMENT_BYTES}",
                "pack the small files into archives, or publish to s3:// or a folder",
            )
        await self._put_bytes(config)
        return data

    async def _put(self, digest: str, layer: LayerBytes, progress: Progress) -> None:
        if await self._uploads.put_blob(digest, layer, progress):
            return
        if digest in self._damaged:
            files = ", ".join(segment.upload.entry.path for segment in layer.segments if segment.upload is not None)
            raise Permanent(
                "stored_wrong",
                f"{self.display}: {files[:500]}: the registry has other bytes under the digest {digest}, and takes no "
                "new ones for a blob that it has",
                "delete the damaged blob at the registry (its garbage collection does after the tag is deleted), then "
                "publish again",
            )
        progress(layer.size)

    async def _put_bytes(self, data: bytes) -> None:
        await self._uploads.put_blob(f"sha256:{hashlib.sha256(data).hexdigest()}", GivenBytes(data), _ignore)

    async def _read_sha256(self, digest: str, entry: FileEntry, start: int) -> str:
        found = await call_in_thread(lambda cancelled: self._hash(digest, start, entry.size, cancelled))
        if found != entry.sha256:
            self._damaged.add(digest)
        return found

    async def _tagged(self) -> FoundManifest | None:
        """Return what the tag names, None where there is nothing."""
        try:
            return await call_in_thread(lambda cancelled: self._registry.manifest(self._address.tag, cancelled))
        except HoldfastError as error:
            if error.code == "not_found":
                return None
            raise

    async def _files(self) -> dict[str, Placed]:
        """Return the files of the version at the tag, each with its layer's digest and where it begins there."""
        found = await self._tagged()
        published = None if found is None else await self._published(found)
        return {} if published is None else {placed[0].path: placed for placed in published[0]}

    async def _published(self, found: FoundManifest) -> tuple[list[Placed], Manifest] | None:
        """Return the files of a version of ours, and its manifest; None for another artifact, which counts as another
        version. The images of an index of ours have the same files."""
        try:
            document = parse_manifest(found.data, found.content_type, self.display)
            if isinstance(document, Index) and document.manifests:
                digest = document.manifests[0].digest
                found = await call_in_thread(lambda cancelled: self._registry.manifest(digest, cancelled))
                document = parse_manifest(found.data, found.content_type, self.display)
            return read_published(document.layers, self.display) if isinstance(document, OciArtifact) else None
        except Permanent:
            return None

    def _entry(self, path: str) -> FileEntry:
        if path in self._waiting:
            return self._waiting[path].entry
        return next(entry for entry, _ in self._layers[path].files if entry.path == path)

    def _hash(self, digest: str, start: int, size: int, cancellation: Cancellation) -> str:
        sha = hashlib.sha256()
        if size:
            target = replace(self._registry.blob_target(digest, cancellation), part=Part(start, size))
            buffer = memoryview(bytearray(_READ_BYTES))
            with self._client.get(target, 0, None, cancellation) as body:
                while count := body.readinto(buffer):
                    sha.update(buffer[:count])
        return sha.hexdigest()


class GivenBytes(LayerBytes):
    """A blob of given bytes, which is no archive."""

    def __init__(self, data: bytes) -> None:
        super().__init__([])
        self._given, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes [offset, offset + length), fewer at the end."""
        return self._given[offset : offset + length]


def _stored(entry: FileEntry) -> Stored:
    return Stored(entry.size, entry.sha256)


def _file_progress(progress: Progress, size: int) -> Progress:
    """Return a function that counts a layer's bytes as at most the file's."""
    left = [size]

    def count(done: int) -> None:
        counted = min(done, left[0])
        left[0] -= counted
        progress(counted)

    return count


def _ignore(_size: int) -> None:
    """Count nothing: the bytes were counted with their files, or are no file's."""
