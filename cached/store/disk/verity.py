"""Seal blobs with fs-verity: from then on the kernel refuses writes, and reads of changed bytes.

Law: only finished files are sealed; the caller hashes them again through the seal before it trusts them. A seal is
never removed. If sealing is not possible, the log has the reason and the remedy once.
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
from cached.contract.program.plain_files import READ_FLAGS
from cached.contract.snapshot.verify import NoSeal, measure_seal
from cached.store.disk import durable
from cached.store.disk.root import mount_of

_log = logging.getLogger(__name__)

_ENABLE = 0x40806685  # FS_IOC_ENABLE_VERITY
# struct fsverity_enable_arg: version 1, sha256, blocks of 4 KiB, neither salt nor signature.
_SHA256_BLOCKS = struct.pack("<IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0)
_WRITABLE_MODE = 0o644
_HAVE_IT = frozenset({"ext4", "f2fs", "btrfs"})


class Sealing(Enum):
    """The use of fs-verity on this root."""

    NONE = "blobs are not sealed"
    WHERE_POSSIBLE = "blobs are sealed; one that cannot be is used without"
    ALWAYS = "blobs are sealed, or not used"


def choose(layout: Layout, wish: str) -> Sealing:
    """Return the use of fs-verity for `--fs-verity` (`auto`, `off`, `require`); raises `Permanent` (`no_verity`)."""
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
    """Seal a finished file, durably; return whether it is sealed. Raises `HoldfastError` under `Sealing.ALWAYS`. The
    kernel reads and hashes the file, at the rate of sha256; only SIGKILL interrupts it, and leaves it unchanged."""
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
    """Return a file's fs-verity digest as `sha256:<hex>`, None if it is not sealed or the kernel cannot tell."""
    with durable.opened(path, READ_FLAGS) as descriptor:
        found = measure_seal(descriptor)
    return None if isinstance(found, NoSeal) else found


def _seal(path: Path) -> None:
    with durable.opened(path, READ_FLAGS) as descriptor:
        if isinstance(measure_seal(descriptor), NoSeal):
            # The kernel requires write permission, which a daemon without capabilities gets from the mode alone.
            os.fchmod(descriptor, _WRITABLE_MODE)
            try:
                fcntl.ioctl(descriptor, _ENABLE, _SHA256_BLOCKS)
            finally:
                os.fchmod(descriptor, durable.READ_ONLY_MODE)
            os.fsync(descriptor)
        elif os.fstat(descriptor).st_mode & 0o777 != durable.READ_ONLY_MODE:  # a crash interrupted the branch above
            os.fchmod(descriptor, durable.READ_ONLY_MODE)


def _try(folder: Path) -> OSError | None:
    """Seal an empty file in `folder`; return the error, None if there is none."""
    probe = durable.temporary_beside(folder)
    try:
        durable.write_file(probe, b"", durable.READ_ONLY_MODE)
        _seal(probe)
    except OSError as error:
        return None if error.errno in durable.DISK_FULL else error  # the kernel checks for space last
    finally:
        probe.unlink(missing_ok=True)
    return None


def _explain(root: Path, refusal: OSError) -> tuple[str, str]:
    """Return the cause of a refusal, and its remedy."""
    mount = mount_of(root)
    device, kind = mount.device, mount.kind
    if kind not in _HAVE_IT:
        return f"{kind} has no fs-verity", "put the root on ext4 (made with `-O verity`), f2fs or btrfs"
    if refusal.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
        return f"{kind} on {device} refuses it: {refusal.strerror}", "look at the kernel's log on the node"
    if kind != "btrfs" and Path(f"/sys/fs/{kind}/features/verity").exists():
        block = os.statvfs(root).f_bsize
        if block != mmap.PAGESIZE:  # before Linux 6.3 such a file system could not even be mounted with the feature
            return f"{kind} on {device} has blocks of {block} bytes", f"recreate it with blocks of {mmap.PAGESIZE}"
        return f"{kind} on {device} was made without it", f"run `tune2fs -O verity {device}` on the node, once"
    return f"the kernel {os.uname().release} was built without it", "boot one with CONFIG_FS_VERITY"
