"""Read what a node holds from its public tree: versions, statuses, heartbeat, disk.

Law: reads files only; needs no daemon, takes no lock. What changes while it reads is read as absent, not as an error.
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
    """A version whose symlink is there: its snapshot is complete and was verified."""

    ref: ModelRef
    digest: Digest
    path: Path
    bytes: int
    files: int

    def document(self, pinned: bool | None) -> dict[str, Any]:
        """As `ls --json` shows it; `path` is what a pod would be given, on the host."""
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
    """Raise `Permanent` (`no_root`) where there is no cache under this root."""
    if not os.path.isdir(layout.public.path):
        raise Permanent(
            "no_root",
            f"no cache here: {layout.public.path} does not exist",
            "name the daemon's root with --root or HOLDFAST_ROOT, or start `holdfast daemon` once",
        )


def held_versions(public: PublicLayout) -> list[HeldVersion]:
    """Every version whose symlink leads to a snapshot, sorted by name and version."""
    found = (held_version(public, ref) for ref in _references(public.models, suffix=""))
    return [version for version in found if version is not None]


def held_version(public: PublicLayout, ref: ModelRef) -> HeldVersion | None:
    """The version that `ref`'s symlink leads to; None where there is none."""
    link = public.model_link(ref)
    try:
        digest = Digest(os.path.basename(os.readlink(link)))
        manifest = Manifest.parse(public.snapshot(digest).manifest.read_bytes())
    except (OSError, HoldfastError):
        return None
    return HeldVersion(ref, digest, link, manifest.total_bytes, len(manifest.files))


def linked_snapshot(public: PublicLayout, ref: ModelRef) -> SnapshotLayout | None:
    """The snapshot that `ref`'s symlink names, whole or not; None where there is no symlink."""
    try:
        return public.snapshot(Digest(os.path.basename(os.readlink(public.model_link(ref)))))
    except (OSError, HoldfastError):
        return None


def required_snapshot(public: PublicLayout, ref: ModelRef) -> SnapshotLayout:
    """The snapshot that `ref`'s symlink names, whole or not; raises `Permanent` (`not_here`) where there is none."""
    snapshot = linked_snapshot(public, ref)
    if snapshot is None:
        raise Permanent(
            "not_here",
            f"{ref} is not on this node: no {public.model_link(ref)}",
            f"`holdfast ls` lists what is here; `holdfast pull {ref}` fetches it",
        )
    return snapshot


def linked_references(public: PublicLayout) -> list[ModelRef]:
    """Every reference that has a symlink, sorted."""
    return _references(public.models, suffix="")


def model_statuses(public: PublicLayout) -> list[ModelStatus]:
    """Every version the daemon has a status of, sorted by name and version."""
    found = (model_status(public, ref) for ref in _references(public.status, suffix=".json"))
    return [status for status in found if status is not None]


def model_status(public: PublicLayout, ref: ModelRef) -> ModelStatus | None:
    """The daemon's status of `ref`; None where there is none that can be read."""
    try:
        status = ModelStatus.parse(public.model_status(ref).read_bytes())
        parse_timestamp(status.since)
    except (OSError, ValueError, HoldfastError):
        return None
    return status


def daemon_status(public: PublicLayout) -> DaemonStatus | None:
    """The daemon's heartbeat; None where no daemon ever wrote one."""
    try:
        status = DaemonStatus.parse(public.daemon_status.read_bytes())
        parse_timestamp(status.updated)
    except (OSError, ValueError, HoldfastError):
        return None
    return status


def seconds_since(moment: str) -> float:
    """Seconds since a time that a status file gives; never negative."""
    return max(0.0, time.time() - parse_timestamp(moment))


def disk(public: PublicLayout) -> dict[str, int]:
    """The file system's bytes: `capacity`, `used`, `free` (to an ordinary user)."""
    space = os.statvfs(public.path)
    return {
        "capacity": space.f_blocks * space.f_frsize,
        "used": (space.f_blocks - space.f_bfree) * space.f_frsize,
        "free": space.f_bavail * space.f_frsize,
    }


def _references(folder: Path, suffix: str) -> list[ModelRef]:
    """The references that `<folder>/<name>/<version><suffix>` name; what is no reference is not ours and skipped."""
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
