"""Manifests and indexes of a registry, and what each layer of an artifact is.

Law: pure. Nothing is believed that is not of the expected form. What a layer is, is not said by its media type alone:
oras-py calls plain files `…image.layer.v1.tar`, and images have tar layers whose type says whether they are compressed.
Formats: OCI Image Specification 1.1 ("Image Manifest", "Image Index"), Docker Image Manifest V2 Schema 2, ModelPack
(`docs/spec.md`, `docs/annotations.md`), ORAS ("Annotations").
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from cached.contract.errors import Permanent, Transient
from cached.contract.manifest import MAX_FILE_BYTES
from cached.sources.oci.address import OciPlatform

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024  # the limit of the Distribution project's registry
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
# All in one header: a registry answers 404 to a request that does not accept the type which it has.
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
OCI_IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
_IMAGE_CONFIGS = frozenset({OCI_IMAGE_CONFIG, "application/vnd.docker.container.image.v1+json"})
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"
FILE_PATH = "org.cncf.model.filepath"
_EARLIER_FILE_PATH = "org.cnai.model.filepath"  # before ModelPack joined the CNCF
_UNPACK = "io.deis.oras.content.unpack"
_UNPACKED_DIGEST = "io.deis.oras.content.digest"
HOLDFAST_FILES = "dev.holdfast.files"  # of a layer: JSON, the files in it that `holdfast publish` put there
_EMPTY = "application/vnd.oci.empty.v1+json"
_MODEL_TYPE = re.compile(r"application/vnd\.(?:cncf|cnai)\.model\..*")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_is_sha256 = _SHA256.fullmatch
_TEXT = frozenset({str})
_REFERENCE_TYPE = "vnd.docker.reference.type"  # BuildKit's attestations are entries of an index
_MAX_LAYERS = 50_000
_MAX_ENTRIES = 10_000


class Descriptor(NamedTuple):  # a thousand are made in a third of a dataclass's time
    """A blob or a manifest that another one names: its `digest` (`sha256:…`) and its `size` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = MappingProxyType({})
    platform: OciPlatform | None = None


class Packing(StrEnum):
    """How a layer holds its files: `raw`: it is one; `tar`: a plain archive; `compressed`: an archive that can only be
    read in order; `none`: it has no file."""

    RAW = "raw"
    TAR = "tar"
    COMPRESSED = "compressed"
    NONE = "none"


class Layer(NamedTuple):
    """One layer. `path`: of the file that it is, if it is one."""

    blob: Descriptor
    packing: Packing
    path: str = ""


@dataclass(frozen=True, slots=True)
class OciArtifact:
    """A manifest of files. `is_image`: its layers are the file system of an image, with whiteouts."""

    config: Descriptor
    layers: tuple[Layer, ...]
    is_image: bool


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, one for each platform."""

    manifests: tuple[Descriptor, ...]


def digest_of(data: bytes) -> str:
    """Return the digest of a manifest, as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_manifest(data: bytes, content_type: str, where: str) -> OciArtifact | Index:
    """Parse the bytes of a manifest or an index. Raises `Transient` (`bad_response`) for what is no JSON, `Permanent`
    (`bad_artifact`) for anything else that is none of these."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        problem = f"{where}: expected a manifest in JSON, found {len(data)} bytes that are not JSON"
        raise Transient(
            "bad_response", problem, "it is tried again; if it goes on, the registry is at fault"
        ) from error
    if not isinstance(document, dict):
        raise bad_artifact(where, "expected a JSON object")
    given = document.get("mediaType", content_type)
    if document.get("schemaVersion") != 2:
        raise bad_artifact(where, f"expected schemaVersion 2, found {str(document.get('schemaVersion'))[:40]!r}")
    has_layers, has_manifests = "layers" in document, "manifests" in document
    if has_layers and has_manifests:
        raise bad_artifact(where, "it has `layers` and `manifests`, and may have one of them")
    if given in (OCI_INDEX, DOCKER_INDEX) or (has_manifests and given not in (OCI_MANIFEST, DOCKER_MANIFEST)):
        entries = _list(where, document, "manifests", _MAX_ENTRIES)
        return Index(tuple(_descriptor(where, each) for each in entries))
    if given not in (OCI_MANIFEST, DOCKER_MANIFEST) and not has_layers:
        raise bad_artifact(where, f"expected a manifest or an index, found the type {str(given)[:100]!r}")
    config = _descriptor(where, document.get("config"))
    is_image = config.media_type in _IMAGE_CONFIGS
    layers = [_descriptor(where, each) for each in _list(where, document, "layers", _MAX_LAYERS)]
    return OciArtifact(config, tuple(_layer(where, each, is_image=is_image) for each in layers), is_image)


def diff_ids(config: bytes, artifact: OciArtifact, where: str) -> tuple[str | None, ...]:
    """Return the diff id of each layer, from the bytes of the config: an image's `rootfs.diff_ids`, or ModelPack's
    `modelfs.diffIds`; None for each of an artifact without them. Raises `Permanent` (`bad_artifact`) for an image
    without them, and for another number of them."""
    try:
        document = json.loads(config)
    except (ValueError, RecursionError):
        document = None
    found: Any = None
    for name, key in (("rootfs", "diff_ids"), ("modelfs", "diffIds")):
        part = document.get(name) if isinstance(document, dict) else None
        found = found or (part.get(key) if isinstance(part, dict) else None)
    if found is None and not artifact.is_image:
        return tuple(layer.blob.annotations.get(_UNPACKED_DIGEST) for layer in artifact.layers)
    is_whole = isinstance(found, list) and len(found) == len(artifact.layers)
    if not is_whole or not all(isinstance(each, str) and _SHA256.fullmatch(each) for each in found):
        raise bad_artifact(where, f"expected {len(artifact.layers)} diff ids in the config, one for each layer")
    return tuple(found)


def choose_manifest(index: Index, wanted: OciPlatform | None, where: str) -> Descriptor:
    """Return the manifest of an index for a platform (None: this machine's). Raises `Permanent` (`no_platform`)."""
    platform = wanted or OciPlatform.of_this_machine()
    listed = [each for each in index.manifests if _REFERENCE_TYPE not in each.annotations]
    listed = [each for each in listed if each.platform is None or each.platform.os != "unknown"]
    fitting = {each.digest: each for each in reversed(listed) if _fits(each.platform, platform)}
    if not fitting and wanted is None:  # an index of artifacts has no platforms
        fitting = {each.digest: each for each in reversed(listed) if each.platform is None}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    found = ", ".join(sorted({str(each.platform or "one without a platform") for each in listed}))[:400] or "none"
    expected = f"expected one manifest for {platform}, found {len(fitting)} in an index of {found}"
    remedy = "name the manifest by its digest (@sha256:…), or a platform (?platform=linux/amd64)"
    raise Permanent("no_platform", f"{where}: {expected}", remedy)


def _fits(found: OciPlatform | None, wanted: OciPlatform) -> bool:
    if found is None or (found.os, found.architecture) != (wanted.os, wanted.architecture):
        return False
    default = "v8" if wanted.architecture == "arm64" else ""
    return not wanted.variant or (found.variant or default) == wanted.variant


def _layer(where: str, blob: Descriptor, *, is_image: bool) -> Layer:
    kind, notes = blob.media_type, blob.annotations
    path = notes.get(FILE_PATH) or notes.get(_EARLIER_FILE_PATH) or ""
    if path and kind.endswith(".raw"):
        return Layer(blob, Packing.RAW, path)
    title = notes.get(TITLE, "")
    unpacked = notes.get(_UNPACK, "").lower() == "true"
    if kind == _EMPTY and not title:
        return Layer(blob, Packing.NONE)
    is_model = _MODEL_TYPE.fullmatch(kind) is not None
    if not is_model and HOLDFAST_FILES not in notes and not path and title and not unpacked:
        return Layer(blob, Packing.RAW, title)
    if kind.endswith((".tar", ".tar+none")):
        return Layer(blob, Packing.TAR)
    if re.search(r"\.tar[.+](?:gzip|zstd)$|\.(?:tgz|tar\.gz)$", kind) or (unpacked and title):
        return Layer(blob, Packing.COMPRESSED)
    if is_image and not kind.startswith(("application/vnd.oci.image.layer.", "application/vnd.docker.image.")):
        return Layer(blob, Packing.NONE)  # a signature, an attestation: no runtime unpacks it either
    if is_image or is_model or not (path or title):
        known = "raw, tar, tar+gzip and tar+zstd layers"
        raise bad_artifact(where, f"expected {known}, found a layer of the type {kind[:200]!r} without a file's name")
    return Layer(blob, Packing.RAW, path or title)


def _descriptor(where: str, found: Any) -> Descriptor:
    if not isinstance(found, dict):
        raise bad_artifact(where, "expected a descriptor, found none")
    kind, digest, size = found.get("mediaType"), found.get("digest"), found.get("size")
    if not isinstance(kind, str) or not kind:
        raise bad_artifact(where, "a descriptor without a mediaType")
    if not isinstance(digest, str) or not _is_sha256(digest):
        raise bad_artifact(where, f"expected a digest as sha256: and 64 hex digits, found {str(digest)[:120]!r}")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
        raise bad_artifact(where, f"{digest}: expected a size in bytes, found {str(size)[:40]!r}")
    notes = found.get("annotations") or {}
    if not isinstance(notes, dict) or not _TEXT.issuperset(map(type, notes.values())):
        raise bad_artifact(where, f"{digest}: expected annotations of text")
    return Descriptor(kind, digest, size, notes, _platform(found["platform"]) if "platform" in found else None)


def _platform(found: Any) -> OciPlatform | None:
    if not isinstance(found, dict):
        return None
    texts = [found.get(name) or "" for name in ("os", "architecture", "variant")]
    return OciPlatform(*texts) if all(isinstance(text, str) for text in texts) else None


def _list(where: str, document: dict[str, Any], name: str, most: int) -> Sequence[Any]:
    found = document.get(name)
    if not isinstance(found, list):
        raise bad_artifact(where, f"expected `{name}` as a list")
    if len(found) > most:
        raise Permanent(
            "too_large", f"{where}: expected at most {most} {name}, found {len(found)}", "split the artifact"
        )
    return found


def bad_artifact(where: str, problem: str) -> Permanent:
    """Return the error of an artifact that contradicts its format."""
    return Permanent(
        "bad_artifact",
        f"{where}: {problem}",
        "push it again with a current client (`holdfast publish`, `modctl`, `oras`, `docker push`)",
    )
