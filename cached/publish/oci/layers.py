"""The layers of a published version: plain tar archives, one for each file, and the manifest and config that name them.

Law: pure but for reads of the version's own files. The bytes of a layer follow from its files alone (constant owner,
mode and time), so that a file has the same layer in every version, and every registry stores it once. The form:

- layers of the type `application/vnd.oci.image.layer.v1.tar` and an image's config with their diff ids, as containerd
  unpacks nothing else: as a volume of the type `image` the version is a folder of its files;
- ModelPack's `artifactType`, its annotations of each layer, and the members of its config (`descriptor`, `config`,
  `modelfs`) beside the image's: modctl unpacks every type that ends in `.tar`;
- ORAS's title for each layer, `<path>.tar`, without which `oras pull` leaves it out;
- for Holdfast, where each file is in its layer and its sha256, so that the whole listing is in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cached.contract.archive.tar import BLOCK
from cached.contract.digest import Digest
from cached.contract.manifest import FileEntry
from cached.contract.program.plain_files import READ_FLAGS
from cached.publish.destination import Upload
from cached.publish.reading import CheckedReader
from cached.sources.local.tree import file_error
from cached.sources.oci.address import OciAddress, OciPlatform
from cached.sources.oci.manifest import (
    FILE_PATH,
    HOLDFAST_FILES,
    OCI_IMAGE_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    OCI_TAR,
    TITLE,
    digest_of,
)

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
HOLDFAST_DIGEST = "dev.holdfast.digest"  # of the manifest: the version's digest, for people
# Docker keeps at most 127 layers of an image, and overlayfs not many more: the smallest files share one.
MOST_LAYERS = 100
_END = bytes(2 * BLOCK)
_FORMATS = {".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx", ".bin": "pt", ".pt": "pt", ".pth": "pt"}


@dataclass(frozen=True, slots=True)
class LayerPart:
    """Bytes of a layer at `start`: given ones, or those of a file."""

    start: int
    length: int
    data: bytes = field(default=b"", repr=False)
    upload: Upload | None = None


class LayerBytes:
    """The bytes of one layer: readable from any offset, for an upload that goes on after a fault."""

    def __init__(self, parts: Iterable[Upload | tuple[str, bytes]]) -> None:
        """`parts`: files to upload, and given ones by path."""
        self.segments: list[LayerPart] = []
        self.starts: dict[str, int] = {}
        self.size = 0
        for part in parts:
            path, size = (part.entry.path, part.entry.size) if isinstance(part, Upload) else (part[0], len(part[1]))
            self._add(_header(path, size))
            self.starts[path] = self.size
            if isinstance(part, Upload):
                self.segments.append(LayerPart(self.size, size, upload=part))
                self.size += size
            else:
                self._add(part[1])
            self._add(bytes(-size % BLOCK))
        self._add(_END)

    def digest(self) -> str:
        """Return the layer's digest, from one pass over its files. Raises `Permanent` (`changed_while_publishing`) for
        a file with other bytes than its entry says."""
        sha = hashlib.sha256()
        for segment in self.segments:
            if segment.upload is None:
                sha.update(segment.data)
                continue
            with CheckedReader(segment.upload) as reader:
                for part in reader.read_parts():
                    sha.update(part)
        return f"sha256:{sha.hexdigest()}"

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes [offset, offset + length), fewer at the end. A file that became shorter gives fewer, too."""
        found = bytearray()
        for segment in self.segments:
            at = offset + len(found) - segment.start
            wanted = min(length - len(found), segment.length - at)
            if 0 <= at < segment.length and wanted > 0:
                found += segment.data[at : at + wanted] if segment.upload is None else _read(segment, at, wanted)
        return bytes(found)

    def _add(self, data: bytes) -> None:
        if data:
            self.segments.append(LayerPart(self.size, len(data), data))
            self.size += len(data)


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer at the registry: its digest, its size, and where each of its files begins in it."""

    digest: str
    size: int
    files: tuple[tuple[FileEntry, int], ...]

    def descriptor(self, title: str) -> dict[str, Any]:
        """Return its descriptor. `title`: the path of its file, or a name for several."""
        files = [{"path": e.path, "sha256": e.sha256, "size": e.size, "start": start} for e, start in self.files]
        annotations = {
            TITLE: f"{title}.tar",
            FILE_PATH: title,
            HOLDFAST_FILES: json.dumps(files, ensure_ascii=False, separators=(",", ":")),
        }
        return {"mediaType": OCI_TAR, "digest": self.digest, "size": self.size, "annotations": annotations}


def choose_shared(files: Sequence[FileEntry], most: int) -> frozenset[str]:
    """Return the paths of the smallest files, which share one layer where there are too many for one each."""
    if len(files) <= most - 1:  # one is for `holdfast.json`
        return frozenset()
    by_size = sorted(files, key=lambda file: (file.size, file.path))
    return frozenset(file.path for file in by_size[: len(files) - (most - 2)])


def build_config(address: OciAddress, platform: OciPlatform, layers: Sequence[str], paths: Iterable[str]) -> bytes:
    """Return the config of an image whose layers have these diff ids, which is a model's config as well."""
    found = (_FORMATS.get(PurePosixPath(path).suffix.lower()) for path in paths)
    formats = sorted({each for each in found if each is not None})
    image = {
        "architecture": platform.architecture,
        "os": platform.os,
        **({"variant": platform.variant} if platform.variant else {}),
        "rootfs": {"type": "layers", "diff_ids": list(layers)},
    }
    model = {
        "descriptor": {"name": address.repository.rpartition("/")[2], "version": address.tag},
        "config": {"format": formats[0]} if len(formats) == 1 else {},
        "modelfs": {"type": "layers", "diffIds": list(layers)},
    }
    return json.dumps({**image, **model}, sort_keys=True, separators=(",", ":")).encode()


def build_manifest(config: bytes, layers: Sequence[dict[str, Any]], version: Digest) -> bytes:
    """Return the manifest of a version."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {
            "mediaType": OCI_IMAGE_CONFIG,
            "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
            "size": len(config),
        },
        "layers": list(layers),
        "annotations": {HOLDFAST_DIGEST: str(version)},
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def build_index(manifests: Sequence[tuple[OciPlatform, bytes]]) -> bytes:
    """Return the index of one version's images for several platforms: they differ in their configs only."""
    entries = []
    for platform, data in manifests:
        described = {
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "digest": digest_of(data),
            "size": len(data),
        }
        shown = {"os": platform.os, "architecture": platform.architecture, "variant": platform.variant}
        entries.append({**described, "platform": {name: value for name, value in shown.items() if value}})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return json.dumps(document, separators=(",", ":")).encode()


def _header(path: str, size: int) -> bytes:
    header = tarfile.TarInfo(path)
    header.size, header.mode, header.mtime = size, 0o644, 0
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _read(segment: LayerPart, at: int, length: int) -> bytes:
    assert segment.upload is not None
    path: Path = segment.upload.real
    try:
        descriptor = os.open(path, READ_FLAGS)
        try:
            data = os.pread(descriptor, length, at)
            while len(data) < length and (more := os.pread(descriptor, length - len(data), at + len(data))):
                data += more
            return data
        finally:
            os.close(descriptor)
    except OSError as error:
        raise file_error(error, path) from error
