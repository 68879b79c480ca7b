"""Read a node's public tree: held versions, statuses, heartbeat, disk.

Law: reads files only; needs no daemon, takes no lock. A file that changes during the read counts as absent.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout, PublicLayout, SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef, name_from_path_segment
from cached.contract.status import DaemonStatus, ModelStatus, State, parse_timestamp


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version with a symlink: its snapshot is complete and was verified."""

    ref: ModelRef
    digest: Digest
    path: Path
    bytes: int
    files: int

    def document(self, pinned: bool | None) -> dict[str, Any]:
        """Return the JSON object of `ls --json`; `path` is the version's symlink on the host."""
        return {
            "model": self.ref.name,
            "version": self.ref.version,
            "state": State.READY.value,
            "digest": str(self.digest),
            "pinned": pinned,
            "bytes": self.bytes,
            "files": self.files,
            "path": str(self.path),
        }


def check_root(layout: Layout) -> None:
    """Raise `Permanent` (`no_root`) unless the root has a public tree."""
    if not os.path.isdir(layout.public.path):
        raise Permanent(
            "no_root",
            f"no cache here: {layout.public.path} does not exist",
            "name the daemon's root with --root or HOLDFAST_ROOT, or start `holdfast daemon` once",
        )


def held_versions(public: PublicLayout) -> list[HeldVersion]:
    """Return every version whose symlink leads to a snapshot, sorted by name and version."""
    found = (held_version(public, ref) for ref in _references(public.models, suffix=""))
    return [version for version in found if version is not None]


def held_version(public: PublicLayout, ref: ModelRef) -> HeldVersion | None:
    """Return the version that `ref`'s symlink leads to; None without one."""
    link = public.model_link(ref)
    try:
        digest = Digest(os.path.basename(os.readlink(link)))
        manifest = Manifest.parse(public.snapshot(digest).manifest.read_bytes())
    except (OSError, HoldfastError):
        return None
    return HeldVersion(ref, digest, link, manifest.total_bytes, len(manifest.files))


def linked_snapshot(public: PublicLayout, ref: ModelRef) -> SnapshotLayout | None:
    """Return the snapshot that `ref`'s symlink names, complete or not; None without a symlink."""
    try:
        return public.snapshot(Digest(os.path.basename(os.readlink(public.model_link(ref)))))
    except (OSError, HoldfastError):
        return None


def required_snapshot(public: PublicLayout, ref: ModelRef) -> SnapshotLayout:
    """Return the snapshot that `ref`'s symlink names, complete or not; raises `Permanent` (`not_here`)."""
    snapshot = linked_snapshot(public, ref)
    if snapshot is None:
        raise Permanent(
            "not_here",
            f"{ref} is not on this node: no {public.model_link(ref)}",
            f"`holdfast ls` lists what is here; `holdfast pull {ref}` fetches it",
        )
    return snapshot


def linked_references(public: PublicLayout) -> list[ModelRef]:
    """Return every reference that has a symlink, sorted."""
    return _references(public.models, suffix="")


def model_statuses(public: PublicLayout) -> list[ModelStatus]:
    """Return every version's status, sorted by name and version."""
    found = (read_model_status(public, ref) for ref in _references(public.status, suffix=".json"))
    return [status for status in found if status is not None]


def read_model_status(public: PublicLayout, ref: ModelRef) -> ModelStatus | None:
    """Return the status of `ref`; None without a readable one."""
    try:
        status = ModelStatus.parse(public.model_status(ref).read_bytes())
        parse_timestamp(status.since)
    except (OSError, ValueError, HoldfastError):
        return None
    return status


def read_daemon_status(public: PublicLayout) -> DaemonStatus | None:
    """Return the daemon's heartbeat; None without a readable one."""
    try:
        status = DaemonStatus.parse(public.daemon_status.read_bytes())
        parse_timestamp(status.updated)
    except (OSError, ValueError, HoldfastError):
        return None
    return status


def seconds_since(moment: str) -> float:
    """Return the seconds since a status file's timestamp; never negative."""
    return max(0.0, time.time() - parse_timestamp(moment))


def read_disk_space(public: PublicLayout) -> dict[str, int]:
    """Return the file system's bytes: `capacity`, `used`, `free` (to an ordinary user)."""
    space = os.statvfs(public.path)
    return {
        "capacity": space.f_blocks * space.f_frsize,
        "used": (space.f_blocks - space.f_bfree) * space.f_frsize,
        "free": space.f_bavail * space.f_frsize,
    }


def _references(folder: Path, suffix: str) -> list[ModelRef]:
    """Return the references of `<folder>/<name>/<version><suffix>`, sorted; skip other files."""
    found = []
    for segment in _names(folder):
        for entry in _names(folder / segment):
            if not entry.endswith(suffix):
                continue
            try:
                found.append(ModelRef(name_from_path_segment(segment), entry[: len(entry) - len(suffix)]))
            except HoldfastError:
                continue
    return sorted(found)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
