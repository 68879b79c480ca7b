"""Read a node's public tree: held versions, statuses, heartbeat, disk.

Law: reads files only; needs no daemon, takes no lock. A file that changes during the read counts as absent.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef, name_from_path_segment
from cached.contract.status import DaemonStatus, ModelStatus, parse_timestamp


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version with a symlink: its snapshot is complete and was verified."""

    ref: ModelRef
    digest: Digest
    path: Path
    size_bytes: int
    files: int


def list_held_versions(public: PublicLayout) -> list[HeldVersion]:
    """Return every version whose symlink leads to a snapshot, sorted by name and version."""
    found = (find_held_version(public, ref) for ref in list_references(public))
    return [version for version in found if version is not None]


def find_held_version(public: PublicLayout, ref: ModelRef) -> HeldVersion | None:
    """Return the version that `ref`'s symlink leads to; None without one."""
    try:
        snapshot = get_snapshot(public, ref)
        manifest = Manifest.parse(snapshot.manifest.read_bytes())
    except (OSError, HoldfastError):
        return None
    path = public.model_link(ref)
    return HeldVersion(ref, Digest(snapshot.path.name), path, manifest.total_bytes, len(manifest.files))


def get_snapshot(public: PublicLayout, ref: ModelRef) -> SnapshotLayout:
    """Return the snapshot that `ref`'s symlink names, complete or not; raises `Permanent` (`not_here`)."""
    link = public.model_link(ref)
    try:
        return public.snapshot(Digest(os.path.basename(os.readlink(link))))
    except (OSError, HoldfastError) as error:
        raise Permanent(
            "not_here",
            f"{ref} is not on this node: no {link}",
            f"`holdfast ls` lists what is here; `holdfast pull {ref}` fetches it",
        ) from error


def list_references(public: PublicLayout) -> list[ModelRef]:
    """Return every reference that has a symlink, sorted."""
    return _references(public.models, suffix="")


def list_model_statuses(public: PublicLayout) -> list[ModelStatus]:
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
