"""Seal blobs with fs-verity: from then on the kernel lets nobody write to them, and reads no byte that has changed.

Law: only finished files are sealed, which somebody hashes once more through the seal before it is trusted; a seal is
never taken off again. Where it cannot be had, that is said once, and what would bring it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import struct
from enum import Enum
from pathlib import Path

from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.contract.verity import NoSeal, measure
from cached.store.disk import durable

_log = logging.getLogger(__name__)

_ENABLE = 0x40806685  # FS_IOC_ENABLE_VERITY
# struct fsverity_enable_arg: version 1, sha256, blocks of 4 KiB, neither salt nor signature.
_SHA256_BLOCKS = struct.pack("<IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0)
_WRITABLE_MODE = 0o644
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HAVE_IT = frozenset({"ext4", "f2fs", "btrfs"})


class Sealing(Enum):
    """What is done about fs-verity on this root."""

    NONE = "blobs are not sealed"
    WHERE_POSSIBLE = "blobs are sealed; one that cannot be is used without"
    ALWAYS = "blobs are sealed, or not used"


def choose(layout: Layout, wish: str) -> Sealing:
    """What `--fs-verity` (`auto`, `off`, `require`) comes to on this root; raises `Permanent` (`no_verity`)."""
    if wish == "off":
        return Sealing.NONE
    refusal = _try(layout.ingest)
    if refusal is None:
        _log.info("fs-verity: blobs are sealed: the kernel refuses to read from them what has changed")
        return Sealing.ALWAYS if wish == "require" else Sealing.WHERE_POSSIBLE
    found, remedy = _explain(layout.root, refusal)
    if wish == "require":
        raise Permanent("no_verity", f"{layout.root}: --fs-verity require, and {found}", remedy)
    _log.info("fs-verity: not used: %s (to have it: %s)", found, remedy)
    return Sealing.NONE


def seal(path: Path, sealing: Sealing) -> bool:
    """Seal a finished file; tells whether it is sealed now. Durable. Raises `HoldfastError` where it has to be.

    The kernel reads and hashes the whole file meanwhile, at the pace of sha256; only SIGKILL interrupts it, and leaves
    the file as it was.
    """
    if sealing is Sealing.NONE:
        return False
    try:
        _seal(path)
    except OSError as error:
        if sealing is Sealing.ALWAYS:
            raise durable.disk_error(error, f"sealing {path} with fs-verity") from error
        _log.warning("fs-verity: %s stays without a seal: %s; the scrub tries again", path, error.strerror)
        return False
    return True


def digest(path: Path) -> str | None:
    """The digest that a file is sealed with, as `sha256:<hex>`; None where it is not, or this kernel cannot tell."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = measure(descriptor)
    finally:
        os.close(descriptor)
    return None if isinstance(found, NoSeal) else found


def _seal(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if isinstance(measure(descriptor), NoSeal):
            # The kernel asks for write permission, which a daemon without capabilities has by the file's mode alone.
            os.fchmod(descriptor, _WRITABLE_MODE)
            try:
                fcntl.ioctl(descriptor, _ENABLE, _SHA256_BLOCKS)
            finally:
                os.fchmod(descriptor, durable.READ_ONLY_MODE)
            os.fsync(descriptor)
        elif os.fstat(descriptor).st_mode & 0o777 != durable.READ_ONLY_MODE:  # a crash in the middle of the above
            os.fchmod(descriptor, durable.READ_ONLY_MODE)
    finally:
        os.close(descriptor)


def _try(folder: Path) -> OSError | None:
    """Seal an empty file in `folder`; returns why that is refused, None where it is not."""
    probe = durable.temporary_beside(folder)
    try:
        durable.write_file(probe, b"", durable.READ_ONLY_MODE)
        _seal(probe)
    except OSError as error:
        return None if error.errno in _FULL else error  # a full disk is asked only after all else is there
    finally:
        probe.unlink(missing_ok=True)
    return None


def _explain(root: Path, refusal: OSError) -> tuple[str, str]:
    """What is missing, and what to do about it."""
    device, kind = _mounted(root)
    if kind not in _HAVE_IT:
        return f"{kind} has no fs-verity", "put the root on ext4 (made with `-O verity`), f2fs or btrfs"
    if refusal.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
        return f"{kind} on {device} refuses it: {refusal.strerror}", "look at the kernel's log on the node"
    if kind != "btrfs" and Path(f"/sys/fs/{kind}/features/verity").exists():
        block = os.statvfs(root).f_bsize
        if block != mmap.PAGESIZE:  # before Linux 6.3 such a file system could not even be mounted with the feature
            return f"{kind} on {device} has blocks of {block} bytes", f"make it anew with blocks of {mmap.PAGESIZE}"
        return f"{kind} on {device} was made without it", f"run `tune2fs -O verity {device}` on the node, once"
    return f"the kernel {os.uname().release} was built without it", "boot one with CONFIG_FS_VERITY"


def _mounted(root: Path) -> tuple[str, str]:
    """The device and the file system that `root` is on, by the mount points in /proc/self/mountinfo (proc(5))."""
    place = os.path.realpath(root)
    found, longest = ("its device", "its file system"), -1
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        if len(point) >= longest and (point in ("/", place) or place.startswith(f"{point}/")):
            kind, device = after.split()[:2]
            found, longest = (device, kind), len(point)
    return found
