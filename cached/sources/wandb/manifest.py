"""The manifest of an artifact: its files, and what it refers to.

Law: pure. A digest is an md5 unless the entry names another algorithm, of a reference the ETag or the name of a version
of the object. A name that is none is told when the file is chosen. Format: `wandb` 0.31, `artifact_manifest_v1.py`.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from cached.contract.errors import Permanent
from cached.contract.manifest import MAX_FILE_BYTES
from cached.core.listing import Algorithm, Checksum
from cached.sources.resolving import Named
from cached.sources.stores import StoreRules, split_address

_MAX_FILES = 200_000
_LAYOUTS = ("V1", "V2")
_AZURE = ".blob.core.windows.net"
_ARTIFACT = "wandb-artifact"


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of an artifact. `digest`: of its own file in bytes, empty for a reference; `sums`: where that is an md5;
    `ref`: where a reference leads, empty for an own file; `version`: the ETag or generation of the object there."""

    path: str
    size: int | None
    digest: bytes = b""
    sums: tuple[Checksum, ...] = ()
    ref: str = ""
    version: str = ""
    birth_artifact_id: str = ""

    @property
    def artifact(self) -> tuple[str, str] | None:
        """The id of another artifact, and the path there, that a reference leads to; None for any other."""
        parts = split_address(self.ref)
        if parts.scheme != _ARTIFACT:
            return None
        try:
            found = base64.b64encode(bytes.fromhex(parts.netloc)).decode()
        except ValueError:
            return None
        return found, self.ref.partition("://")[2].partition("/")[2]


@dataclass(frozen=True, slots=True)
class WandbManifest:
    """The entries by path, and the layout of the service's store."""

    entries: dict[str, ArtifactFile]
    layout: str
    region: str

    @classmethod
    def read(cls, document: Any) -> WandbManifest:
        """Read a manifest's JSON. Raises ValueError for what is none, `Permanent` (`too_many_files`)."""
        if not isinstance(document, dict) or document.get("version") != 1:
            raise _bad("a manifest of version 1")
        config = document.get("storagePolicyConfig") or {}
        contents = document.get("contents")
        if not isinstance(config, dict) or not isinstance(contents, dict):
            raise _bad("a manifest with contents")
        layout, region = config.get("storageLayout") or "V1", config.get("storageRegion") or "default"
        if layout not in _LAYOUTS or not isinstance(region, str):
            raise _bad(f"a storage layout among {', '.join(_LAYOUTS)}")
        if len(contents) > _MAX_FILES:
            found = f"expected at most {_MAX_FILES} files in an artifact, found {len(contents)}"
            raise Permanent("too_many_files", found, "log the model as an artifact of its own")
        return cls({path: _entry(path, each) for path, each in contents.items()}, layout, region)


def place_of(entry: ArtifactFile, rules: StoreRules) -> tuple[str, Named]:
    """Return the location of ours that a reference is in, and the file below it. Raises `Permanent`, as
    `StoreRules.location`."""
    parts = split_address(entry.ref)
    if parts.scheme == "https" and parts.netloc.endswith(_AZURE) and not parts.query:
        container, _, blob = unquote(parts.path.lstrip("/")).partition("/")
        place, at = f"az://{parts.netloc.removesuffix(_AZURE)}/{container}/", blob
    elif parts.scheme in ("http", "https"):
        address = rules.location(entry.ref)
        before, question, query = address.partition("?")
        folder, _, name = before.rpartition("/")
        place, at = f"{folder}/{question}{query}", unquote(name)
    else:
        location = rules.location(entry.ref)
        scheme, separator, rest = location.partition("://")
        if separator:
            bucket, _, at = rest.partition("/")
            place = f"{scheme}://{bucket}/"
        else:
            folder, _, at = location.rpartition("/")
            place = f"{folder}/"
    if not at:
        found = f"{rules.subject}: expected a file, found a reference to a whole store at {entry.path[:200]!r}"
        raise Permanent("bad_address", found, "refer to each file, or to a folder with its files")
    return place, Named(entry.path, at, entry.size, validator=entry.version)


def _entry(path: str, each: Any) -> ArtifactFile:
    extra = each.get("extra") or {} if isinstance(each, dict) else None
    digest = each.get("digest") if isinstance(each, dict) else None
    if not isinstance(extra, dict) or not isinstance(digest, str):
        raise _bad(f"an entry with a digest at {path[:200]!r}")
    size, ref, birth = each.get("size"), each.get("ref") or "", each.get("birthArtifactID") or ""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES):
        raise _bad(f"a size at {path[:200]!r}")
    if not isinstance(ref, str) or not isinstance(birth, str):
        raise _bad(f"an entry with texts at {path[:200]!r}")
    if ref:
        version = "" if digest == ref else str(extra.get("versionID") or digest) if ref.startswith("gs:") else digest
        return ArtifactFile(path, size, ref=ref, version=version.strip('"'))
    try:
        value = base64.b64decode(digest, validate=True)
        sums = (Checksum(Algorithm.MD5, value.hex()),) if extra.get("alg", "MD5") == "MD5" else ()
    except (binascii.Error, ValueError) as error:
        raise _bad(f"a digest in base64 at {path[:200]!r}") from error
    return ArtifactFile(path, size, value, sums, birth_artifact_id=birth)


def _bad(expected: str) -> ValueError:
    return ValueError(expected)
