"""Public folders as a daemon leaves them: snapshots, symlinks, status files, the heartbeat.

Law: made with the contract's own functions, and published in the daemon's order; never reads what it made.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import TEMPORARY_PREFIX, PublicLayout, SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from cached.contract.status import DaemonStatus, ModelStatus, State, StatusError, encode, timestamp


def make_public(path: Path) -> PublicLayout:
    """An empty public folder."""
    public = PublicLayout(path)
    for folder in (public.snapshots, public.models, public.status):
        folder.mkdir(parents=True, exist_ok=True)
    return public


def make_snapshot(public: PublicLayout, files: Mapping[str, bytes]) -> Digest:
    """A whole snapshot of `files`, no symlink to it yet; returns its manifest digest."""
    made = _begin(public)
    entries = []
    for path, data in files.items():
        (made.path / path).parent.mkdir(parents=True, exist_ok=True)
        (made.path / path).write_bytes(data)
        entries.append(FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)))
    return _finish(public, made, Manifest.build(entries))


def make_hollow_snapshot(public: PublicLayout, sizes: Mapping[str, int]) -> Digest:
    """A snapshot of files without blocks, by path and size in bytes: its record is right, its sha256 are not."""
    made = _begin(public)
    entries = []
    for path, size in sizes.items():
        (made.path / path).touch()
        os.truncate(made.path / path, size)
        entries.append(FileEntry(path, hashlib.sha256(path.encode()).hexdigest(), size))
    return _finish(public, made, Manifest.build(entries))


def _begin(public: PublicLayout) -> SnapshotLayout:
    made = SnapshotLayout(public.snapshots / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    made.manifest.parent.mkdir(parents=True)
    return made


def _finish(public: PublicLayout, made: SnapshotLayout, manifest: Manifest) -> Digest:
    record = {}
    for entry in manifest.files:
        file = made.path / entry.path
        file.chmod(0o444)
        record[entry.path] = VerifiedFile.of(file.stat(), timestamp(time.time()))
    made.manifest.write_bytes(manifest.canonical())
    made.verified.write_bytes(VerifiedRecord(record).encode())
    made.lease.touch(mode=0o444)
    made.path.rename(public.snapshot(manifest.digest).path)
    return manifest.digest


def link_model(public: PublicLayout, ref: ModelRef, digest: Digest) -> None:
    """Let `ref` name the snapshot `digest`, atomically; makes the folders it needs."""
    link = public.model_link(ref)
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.parent / f"{TEMPORARY_PREFIX}{link.name}"
    temporary.symlink_to(public.link_target(digest))
    temporary.replace(link)


def write_status(
    public: PublicLayout,
    ref: ModelRef,
    state: State,
    error: StatusError | None = None,
    done: tuple[int, int] | None = None,
    refused_pins: Mapping[str, StatusError] | None = None,
    held: str | None = None,
) -> None:
    """What the daemon says of `ref`; `done`: bytes done and in all; `held`: the digest that is here."""
    now = timestamp(time.time())
    status = ModelStatus(
        model=ref.name,
        version=ref.version,
        state=state,
        digest=held,
        pinned=False,
        source="file:///models",
        bytes_total=done[1] if done else None,
        bytes_done=done[0] if done else 0,
        rate_bytes_per_s=None,
        eta_s=None,
        since=now,
        updated=now,
        error=error,
        refused_pins=dict(refused_pins or {}),
        held=held,
    )
    _replace(public.model_status(ref), encode(status.document()))


def write_heartbeat(public: PublicLayout, age_s: float = 0) -> None:
    """The daemon's sign of life, `age_s` seconds old."""
    updated = timestamp(time.time() - age_s)
    beat = DaemonStatus(node="node-1", version="0.1.0", pid=1, started=updated, updated=updated)
    _replace(public.daemon_status, encode(beat.document()))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}"
    temporary.write_bytes(data)
    os.replace(temporary, path)
