"""Test the file system under the root before the store uses it.

Law: each required ability is tested by using it, between the folders that need it; a missing one is refused with the
mount, the ability and the remedy. The tests leave no files. A full disk is not refused: the daemon makes room.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cached.contract.layout import Layout
from cached.store.disk import durable

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|9p|ceph|afs|lustre|gpfs|glusterfs|beegfs|fuse(\..*)?|virtiofs")
LOCAL_REMEDY = "put the whole root on one local file system such as ext4 or xfs"


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: its kind (`ext4`), its mount point, and its device (`/dev/sda1`)."""

    kind: str
    point: str
    device: str

    def __str__(self) -> str:
        return f"{self.kind}, mounted at {self.point}"


def mount_of(path: Path) -> Mount:
    """Return the mount of `path` (proc(5), mountinfo): the longest mount point above it, the last of equals."""
    place = os.path.realpath(path)
    found = Mount("unknown", "/", "its device")
    length = 0
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= length:
            kind, device = after.split()[:2]
            found, length = Mount(kind, point, device), len(point)
    return found


def check(layout: Layout) -> None:
    """Test every required ability of the file system; raises `Permanent` (`bad_root`)."""
    _check_one_mount(layout)
    first, second = durable.temporary_beside(layout.ingest), durable.temporary_beside(layout.public.models)
    third = durable.temporary_beside(layout.trash / "any")
    try:
        _try(layout, "write files", lambda: durable.write_file(first, b"", durable.READ_ONLY_MODE))
        _try(layout, "hard-link from private/ to public/", lambda: os.link(first, second))
        _try(layout, "flock a file", lambda: _lock(second))
        _try(layout, "rename from public/ to private/", lambda: os.rename(second, third))
        _try(layout, "make symlinks", lambda: os.symlink("nowhere", second))
    except _Full:
        return
    finally:
        for probe in (first, second, third):
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def remarks(layout: Layout) -> list[str]:
    """Return warnings about a file system that works, but not well."""
    found = []
    mount = mount_of(layout.root)
    if _NETWORK.fullmatch(mount.kind):
        found.append(
            f"{layout.root}: a network file system ({mount}): slow, and a lock that another node does not see lets two "
            f"daemons work on one root; {LOCAL_REMEDY}"
        )
    if not _takes_direct(layout):
        found.append(
            f"{layout.root}: no O_DIRECT here ({mount}): fetches go through the page cache, which costs more processor "
            "time and memory, and the scrub reads from it too"
        )
    return found


class _Full(Exception):
    """The disk is full: then nothing can be tested."""


def _try(layout: Layout, ability: str, act: Callable[[], None]) -> None:
    try:
        act()
    except OSError as error:
        if error.errno in durable.DISK_FULL:
            raise _Full from error
        raise durable.refuse_root(
            f"{layout.root}: cannot {ability} here ({mount_of(layout.root)}): {error.strerror}", _remedy(error)
        ) from error


def _remedy(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return durable.READ_ONLY_REMEDY
    if error.errno == errno.EACCES:
        return "give the daemon a folder that its user may write to"
    return LOCAL_REMEDY


def _check_one_mount(layout: Layout) -> None:
    """Refuse a mount inside the root: links and renames do not cross mounts, even within one file system."""
    public = layout.public
    whole = mount_of(layout.root)
    inside = (layout.private, layout.ingest, layout.blobs, layout.quarantine, layout.trash)
    for folder in (*inside, public.path, public.snapshots, public.models, public.status):
        mount = mount_of(folder)
        if mount.point != whole.point:
            raise durable.refuse_root(
                f"{folder}: another mount ({mount}) than its root's ({whole}): cannot hard-link or rename across",
                LOCAL_REMEDY,
            )


def _lock(path: Path) -> None:
    with durable.opened(path, os.O_RDONLY | os.O_CLOEXEC) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _takes_direct(layout: Layout) -> bool:
    probe = durable.temporary_beside(layout.ingest)
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_DIRECT, 0o600))
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.EOPNOTSUPP)
    finally:
        probe.unlink(missing_ok=True)
    return True
