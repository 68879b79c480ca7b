"""Fill a store with blobs and snapshots through its public functions."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.core.space import DiskSpace, Ledger
from cached.store.blob import blobs
from cached.store.blob.claims import Claims
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.blob.ingest import Ingest, IngestKey
from cached.store.version import deletion, snapshots

VERIFIED_AT = "2026-11-20T18:00:00Z"


def aligned(data: bytes) -> memoryview:
    """The data in page-aligned memory, with room up to the next page."""
    buffer = memoryview(mmap.mmap(-1, max(1, -(-len(data) // mmap.PAGESIZE)) * mmap.PAGESIZE))
    buffer[: len(data)] = data
    return buffer


def add_blob(layout: Layout, data: bytes) -> str:
    """Commit `data` as the engine does; returns its sha256."""
    sha256 = hashlib.sha256(data).hexdigest()
    ingest = Ingest(layout.ingest / sha256, IngestKey(sha256, "v1", len(data)))
    ingest.write(aligned(data), len(data), 0)
    blobs.commit(layout, ingest.finish(len(data)), sha256)
    ingest.discard()
    return sha256


def manifest_of(files: Mapping[str, bytes]) -> Manifest:
    return Manifest.build(FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items())


def publish(layout: Layout, ref: ModelRef, files: Mapping[str, bytes]) -> Digest:
    """Commit what is missing, publish the snapshot and name it."""
    for data in set(files.values()):
        if not blobs.has(layout, hashlib.sha256(data).hexdigest()):
            add_blob(layout, data)
    digest = snapshots.publish(layout, manifest_of(files), VERIFIED_AT)
    snapshots.set_name(layout, ref, digest)
    return digest


def deleting(layout: Layout, claims: Claims) -> deletion.Deletion:
    """What a deletion needs, with an account of its own."""
    return deletion.Deletion(layout, claims, HashNotes(layout.hashed, {}), Ledger(None, lambda: DiskSpace(0, 0)), {})


def tree(folder: Path) -> set[str]:
    """Every name below `folder`, folders with a slash at their end."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() and not path.is_symlink() else ''}"
        for path in folder.rglob("*")
    }


def no_claims(layout: Layout) -> Claims:
    """No pod waits."""
    return Claims(DigestJournal(layout.digests, {}))
