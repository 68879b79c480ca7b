"""Read a node's public tree: held versions, statuses, heartbeat, disk.

Law: reads files only; needs no daemon, takes no lock. A file that changes during the read counts as absent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef, name_from_path_segment
from cached.contract.status import DaemonStatus, ModelStatus, parse_timestamp

_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version with a symlink: its snapshot is complete and was verified. `blobs`: bytes by sha256."""

    ref: ModelRef
    digest: Digest
    path: Path
    size_bytes: int
    files: int
    blobs: Mapping[str, int]


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
    digest, count = Digest(snapshot.path.name), len(manifest.packed.paths)
    return HeldVersion(ref, digest, path, manifest.total_bytes, count, manifest.blob_sizes())


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


def list_leased(public: PublicLayout) -> frozenset[str] | None:
    """Return the digests, in hex, of the snapshots whose lease has a holder, from /proc/locks; None without that. To
    lock or only to open a lease file would count as a use of it. Locks of processes that this one's namespace of pids
    does not show are not listed."""
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return None
    locked = {line.split()[5] for line in lines if " FLOCK " in line and "->" not in line}
    found = set()
    for name in _names(public.snapshots):
        try:
            place = os.stat(public.snapshots / name / ".holdfast" / "lease")
        except OSError:
            continue
        if f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}:{place.st_ino}" in locked:
            found.add(name)
    return frozenset(found)


def read_last_use(public: PublicLayout, ref: ModelRef, digest: Digest) -> float:
    """Return when a version was last used, in seconds since the epoch, at most a minute late: the later mtime of its
    lease file and its symlink. Raises OSError."""
    used = os.lstat(public.model_link(ref)).st_mtime
    try:
        return max(used, os.stat(public.snapshot(digest).lease).st_mtime)
    except FileNotFoundError:
        return used


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
