"""`oci://`: a version in a registry, whose manifest says what its files are before the first byte of one.

Law: resolves and locates; of a plain tar it reads the headers only. A raw layer's digest is the sha256 of the file. A
file in a plain tar is a range of the layer: its address has the layer's digest, so all of its bytes are of one layer,
but no sum vouches for them unless `holdfast publish` wrote one into the manifest. A compressed layer is read whole when
it is listed, since nothing says sooner what is in it; its digest and diff id then vouch for each file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

from cached.contract.archive.tar import TarEntry, read_all_entries
from cached.contract.errors import InvalidManifest, Permanent
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest
from cached.contract.program.thread_pool import start_pool
from cached.core.listing import Listing, RemoteFile, is_reserved
from cached.sources.base import identity_of
from cached.sources.manifests import read_manifest
from cached.sources.oci.address import OciAddress
from cached.sources.oci.layers import FileTree, PackedFile
from cached.sources.oci.manifest import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    Index,
    Layer,
    OciArtifact,
    Packing,
    bad_artifact,
    choose_manifest,
    diff_ids,
    parse_manifest,
)
from cached.sources.oci.published import read_published
from cached.sources.oci.ranges import LayerReader
from cached.sources.oci.registry import Registry
from cached.sources.oci.unpacking import FileStream, Unpacked, Unpacker
from cached.sources.streams import BytesStream
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import HttpTarget, Part, StreamTarget, Target

_LAYERS_AT_ONCE = 8
_PUBLISH_AGAIN = "publish the version again with `holdfast publish`"
_KEY = re.compile(r"(sha256:[0-9a-f]{64})(?:\+(\d+)\+(\d+)(?:\+(\d+)\+(.+))?)?")


class OciSource:
    """A `Source` over one artifact or image. The caller closes `client`."""

    kind = "oci"

    def __init__(self, uri: str, client: HttpClient) -> None:
        """Raises `Permanent` (`bad_source`)."""
        self._address = OciAddress.parse(uri)
        self._platform = self._address.platform
        self._client = client
        self._registry = Registry(self._address, client)
        self._unpacker = Unpacker(client, self._registry)
        self._unpacked: dict[str, Unpacked] = {}  # the compressed layers that were read, by digest

    @property
    def display(self) -> str:
        return self._address.display

    async def resolve(self) -> Listing:
        """Resolve the tag and list the files of its manifest. Raises as `Source.resolve` says."""
        return await call_in_thread(self._resolve)

    async def is_current(self, tag: str) -> bool:
        """Return whether the reference still names the manifest of the digest `tag`."""
        if self._address.digest is not None:
            return self._address.digest == tag
        found = await call_in_thread(lambda cancelled: self._registry.manifest(self._address.reference, cancelled))
        return found.digest == tag

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address of a file's bytes: its blob, or its part of one."""
        match = _KEY.fullmatch(file.key)
        if match is None:
            raise Permanent("not_found", f"{self.display}: {file.path}: listed by another source", "list it again")
        if file.size == 0:
            return StreamTarget(lambda _cancellation: BytesStream())  # HTTP has no range of no bytes
        if match[5] is not None:
            return StreamTarget(lambda cancellation: self._open(match, cancellation))
        return await call_in_thread(lambda cancellation: self._target(file, match, cancellation))

    async def aclose(self) -> None:
        """Do nothing: the source holds no resources."""

    def _target(self, file: RemoteFile, key: re.Match[str], cancellation: Cancellation) -> HttpTarget:
        target = self._registry.blob_target(key[1], cancellation)
        if key[2] is None:
            return replace(target, stored_bytes=file.size)
        return replace(target, part=Part(int(key[2]), int(key[3])))

    def _open(self, key: re.Match[str], cancellation: Cancellation) -> FileStream:
        """Return the bytes of a file in a compressed layer."""
        blob = Descriptor(key[5], key[1], int(key[4]))
        found = self._unpacked.get(key[1]) or Unpacked(blob)
        return self._unpacker.open(found, int(key[2]), int(key[3]), self._name_of(blob), cancellation)

    def _name_of(self, blob: Descriptor) -> str:
        return f"{self.display}: the layer {blob.digest}"

    def _resolve(self, cancellation: Cancellation) -> Listing:
        found = self._registry.manifest(self._address.reference, cancellation)
        document, top = parse_manifest(found.data, found.content_type, self.display), found.digest
        if isinstance(document, Index):
            chosen = choose_manifest(document, self._platform, self.display)
            found = self._registry.manifest(chosen.digest, cancellation)
            document = parse_manifest(found.data, found.content_type, f"{self.display}: {chosen.digest}")
            if isinstance(document, Index):
                raise bad_artifact(self.display, "expected manifests in its index, found an index of indexes")
        files, manifest = self._files(document, cancellation)
        if not files:
            raise Permanent("not_found", f"{self.display}: expected files, found none in its layers", "push it again")
        return Listing(files, self._identity(), manifest, revision=top, tag=top)

    def _identity(self) -> str:
        return identity_of(self.kind, self._address.host, self._address.repository)

    def _files(
        self, artifact: OciArtifact, cancellation: Cancellation
    ) -> tuple[tuple[RemoteFile, ...], Manifest | None]:
        """Return the files, and the manifest of a version that `holdfast publish` wrote."""
        published = read_published(artifact.layers, self.display)
        if published is not None:
            placed, manifest = published
            return tuple(_at(entry, digest, start) for entry, digest, start in placed), manifest
        files = [_raw_file(layer) for layer in artifact.layers if layer.packing is Packing.RAW]
        files += self._unpack_all(artifact, cancellation)
        listed = tuple(file for file in files if not is_reserved(file.path))
        own = next((file for file in listed if file.path == MANIFEST_NAME), None)
        return (listed, None) if own is None else self._mirrored(own, listed, cancellation)

    def _mirrored(
        self, own: RemoteFile, listed: Sequence[RemoteFile], cancellation: Cancellation
    ) -> tuple[tuple[RemoteFile, ...], Manifest]:
        """Return what a `holdfast.json` among the files lists, as far as the artifact has it."""
        where = f"{self.display}: {MANIFEST_NAME}"
        key = _KEY.fullmatch(own.key)
        if own.problem is not None or key is None or not own.size:
            raise own.problem or InvalidManifest(f"{where}: expected a manifest, found no bytes", _PUBLISH_AGAIN)
        data = self._read(own, key, cancellation)
        if own.sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise bad_artifact(where, "the registry sent other bytes than its digest says")
        manifest, by_path = read_manifest(data, where), {file.path: file for file in listed}
        return tuple(_confirmed(entry, by_path.get(entry.path), where) for entry in manifest.files), manifest

    def _read(self, own: RemoteFile, key: re.Match[str], cancellation: Cancellation) -> bytes:
        """Return the bytes of a small file."""
        if key[5] is None:
            return self._client.fetch(self._target(own, key, cancellation), MAX_MANIFEST_BYTES, cancellation).body
        data = bytearray(min(own.size or 0, MAX_MANIFEST_BYTES))
        stream = self._open(key, cancellation)
        try:
            return bytes(data[: stream.readinto(memoryview(data))])
        finally:
            stream.close()

    def _unpack_all(self, artifact: OciArtifact, cancellation: Cancellation) -> list[RemoteFile]:
        """Return the files in the archives among the layers, the later ones over the earlier ones."""
        ids: Sequence[str | None] = [None] * len(artifact.layers)
        if any(layer.packing is Packing.COMPRESSED for layer in artifact.layers):
            config = self._registry.small_blob(artifact.config.digest, MAX_DOCUMENT_BYTES, cancellation)
            ids = diff_ids(config, artifact, self.display)
        pairs = zip(artifact.layers, ids, strict=True)
        archives = [(layer, diff_id) for layer, diff_id in pairs if layer.packing in (Packing.TAR, Packing.COMPRESSED)]
        if not archives:
            return []  # as most artifacts of models: a pool of threads would take as long as all of the rest
        tree = FileTree(self.display, has_whiteouts=artifact.is_image)
        pool = start_pool(min(_LAYERS_AT_ONCE, len(archives)), "oci-tar")
        try:
            listed = pool.map(lambda archive: self._entries(archive[0], archive[1], cancellation), archives)
            for (layer, _), entries in zip(archives, listed, strict=True):
                tree.add_layer(layer.blob.digest, entries)
        finally:
            pool.shutdown(cancel_futures=True)
        files = tree.files()
        for digest, found in self._unpacked.items():
            found.keep_only({file.start for file in files.values() if file.digest == digest})
        return [self._packed(path, file) for path, file in files.items()]

    def _packed(self, path: str, file: PackedFile) -> RemoteFile:
        key = f"{file.digest}+{file.start}+{file.size}"
        found = self._unpacked.get(file.digest)
        if found is None:
            return RemoteFile(path, key, file.size, f"{file.digest}+{file.start}", problem=file.problem)
        sha256 = found.sha256s.get(file.start)
        key += f"+{found.blob.size}+{found.blob.media_type}"
        return RemoteFile(path, key, file.size, sha256 or "", sha256, problem=file.problem)

    def _entries(self, layer: Layer, diff_id: str | None, cancellation: Cancellation) -> list[TarEntry]:
        where = self._name_of(layer.blob)
        if layer.packing is Packing.COMPRESSED:
            found = self._unpacker.unpack(layer.blob, diff_id, where, cancellation)
            self._unpacked[layer.blob.digest] = found
            return found.entries
        reader = LayerReader(self._client, self._registry, layer.blob, where, cancellation)
        return read_all_entries(reader.read, layer.blob.size, where)


def _at(entry: FileEntry, digest: str, start: int) -> RemoteFile:
    return RemoteFile(entry.path, f"{digest}+{start}+{entry.size}", entry.size, entry.sha256, entry.sha256)


def _confirmed(entry: FileEntry, found: RemoteFile | None, where: str) -> RemoteFile:
    """Return a file of a manifest, with a problem where the artifact has none, or another one."""
    if found is None:
        problem = InvalidManifest(f"{where} lists {entry.path!r}, which no layer has", _PUBLISH_AGAIN)
        return RemoteFile(entry.path, "", entry.size, problem=problem)
    if found.size == entry.size and found.sha256 in (None, entry.sha256):
        return replace(found, sha256=entry.sha256, validator=entry.sha256)
    listed = f"{where} lists {entry.path!r} with {entry.size} bytes, sha256 {entry.sha256}"
    has = f"the artifact has {found.size} bytes, sha256 {found.sha256 or 'not listed'}"
    return replace(found, problem=found.problem or InvalidManifest(f"{listed}; {has}", _PUBLISH_AGAIN))


def _raw_file(layer: Layer) -> RemoteFile:
    sha256 = layer.blob.digest[len("sha256:") :]
    return RemoteFile(layer.path, layer.blob.digest, layer.blob.size, sha256, sha256)
