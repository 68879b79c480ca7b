"""Fetch records: the request that each published name was fetched for, to compare with later requests.

Law: one file for each name under `private/fetched/`, durable before the name moves. A record is valid only if it has
the digest that the name points at: between the two steps of a publication, the content's origin is unknown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import HoldfastError, InvalidManifest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import NO_VERDICT, Verdict, encode
from cached.store.disk import durable
from cached.store.version.snapshots import remove_empty


class ManifestFrom(StrEnum):
    """Who told what a version consists of."""

    SOURCE = "source"
    PEERS = "peers"


@dataclass(frozen=True, slots=True)
class FetchRecord:
    """The request that a name's content was fetched for. `request`: the hash of source, include and exclude; None if
    unknown, which matches nothing. `source`: the URI to show, without credentials. `revision`: the commit of a moving
    name. `resolved_at`: when the source was listed, as `timestamp` writes it. `files`: sha256 by ingest id, of files
    whose sha256 the source does not promise; the id is a hash of source, path and validator, so an unchanged file is
    not fetched again. `verdict`: what was found about the files when they were fetched; empty in a record of an older
    release. `manifest_from`: who told what the version is, its source, or for a pinned one other nodes; then the source
    was not listed, and `files` is empty."""

    digest: Digest
    request: str | None
    source: str
    revision: str | None
    resolved_at: str
    files: Mapping[str, str]
    verdict: Verdict = NO_VERDICT
    manifest_from: ManifestFrom = ManifestFrom.SOURCE

    def encode(self) -> bytes:
        """Return the bytes of the record's file."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        known |= known.pop("verdict").document()
        return encode({**known, "digest": str(self.digest), "files": dict(self.files)})

    @classmethod
    def parse(cls, data: bytes) -> FetchRecord:
        """Parse a record; raises ValueError if it is not one."""
        try:
            return _decode(json.loads(data))
        except (KeyError, TypeError, AttributeError, RecursionError, HoldfastError) as error:
            raise ValueError(f"not a fetch record: {error!r}") from error


def unknown(digest: Digest, source: str) -> FetchRecord:
    """Return the record of content of unknown origin; `source` is empty unless an older release recorded it."""
    return FetchRecord(digest, None, source, None, "", {})


def write_unsynced(layout: Layout, ref: ModelRef, record: FetchRecord) -> Path:
    """Write a new record of `ref` under a temporary name and return its path; sync that file before `set_unsynced`.
    Raises `Transient`."""
    temporary = durable.temporary_beside(layout.fetch_record(ref))
    with durable.disk_errors(f"publishing {ref}"):
        durable.make_dir(temporary.parent, durable.PRIVATE_DIR_MODE)
        try:
            durable.write_unsynced(temporary, record.encode(), 0o600)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    return temporary


def set_unsynced(layout: Layout, ref: ModelRef, temporary: Path) -> Path:
    """Make a written record that of `ref`; durable after an `fsync_dir` of the returned folder. Raises `Transient`."""
    path = layout.fetch_record(ref)
    with durable.disk_errors(f"publishing {ref}"):
        os.rename(temporary, path)
    return path.parent


def read(layout: Layout, ref: ModelRef) -> FetchRecord | None:
    """Return the record of `ref`, None if it is missing or invalid."""
    try:
        return FetchRecord.parse(layout.fetch_record(ref).read_bytes())
    except (OSError, ValueError):
        return None


def remove(layout: Layout, ref: ModelRef) -> None:
    """Delete the record of `ref`."""
    path = layout.fetch_record(ref)
    durable.unlink(path)
    remove_empty(path.parent)


def _decode(document: dict[str, Any]) -> FetchRecord:
    files = {str(id_): str(sha256) for id_, sha256 in document["files"].items()}
    if not all(is_hex(text) for pair in files.items() for text in pair):
        raise InvalidManifest("expected 64 hex digits in `files`", "")
    texts = {key: document[key] for key in ("request", "revision") if document[key] is not None}
    if not all(isinstance(text, str) for text in (*texts.values(), document["source"], document["resolved_at"])):
        raise TypeError("expected texts")
    own = {"digest", "files", "verdict", "manifest_from"}
    known = {field.name: document[field.name] for field in fields(FetchRecord) if field.name not in own}
    return FetchRecord(
        **known,
        digest=Digest.parse(document["digest"]),
        files=files,
        verdict=Verdict.parse(document),
        manifest_from=ManifestFrom(document.get("manifest_from", ManifestFrom.SOURCE)),
    )
