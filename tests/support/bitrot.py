"""Bits that flip where they rot: in a file as root would, or on the disk under a mounted file system.

Law: size, mtime, mode and inode of the file stay as they were.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP


def flip(path: Path, offset: int = 1000) -> None:
    """Flip one bit of a file through its file system, so that a process that has it in memory sees it too."""
    found = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)
        os.fsync(file.fileno())
    path.chmod(0o444)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def flip_on_disk(image: Path, path: Path, offset: int = 0) -> None:
    """Flip one bit of the byte at `offset` of `path`, in the image that its file system is mounted from: what the
    kernel holds of the file in memory stays right, until its pages are dropped."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        place = _physical(descriptor, offset)
    finally:
        os.close(descriptor)
    with image.open("r+b", buffering=0) as disk:
        byte = os.pread(disk.fileno(), 1, place)
        os.pwrite(disk.fileno(), bytes([byte[0] ^ 1]), place)


def _physical(descriptor: int, offset: int) -> int:
    """Where on the file system's device a byte of a file lies."""
    request = bytearray(struct.pack("<QQIIII", offset, 1, 1, 0, 1, 0) + bytes(56))
    fcntl.ioctl(descriptor, _FIEMAP, request, True)
    found = struct.unpack_from("<I", request, 20)[0]
    assert found == 1, f"nothing is on the disk at byte {offset}"
    logical, physical = struct.unpack_from("<QQ", request, 32)
    return int(physical + offset - logical)
