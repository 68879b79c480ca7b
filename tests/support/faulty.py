"""A file system that passes everything on to a folder, except what a test has it refuse: raw FUSE, without a library.

Law: served by one thread of the test's process; the program under test must be another one. Nothing is cached, so that
a fault is met where it is set. Skipped where this user may not mount FUSE.
Format: <linux/fuse.h>, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_HEADER = struct.Struct("=IIQQIIII")
_ANSWER = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=6Q10I")
_OPEN = struct.Struct("=QII")
_SET = struct.Struct("=IIQQQQQQIIIIIIII")
_TRANSFER = struct.Struct("=QQIIQII")
_MAX_WRITE = 1 << 17
_FLOCK_LOCKS = 1 << 10
_BIG_WRITES = 1 << 5
_REFUSALS = {"link": errno.EPERM, "symlink": errno.EPERM, "flock": errno.ENOLCK, "rename": errno.EOPNOTSUPP}
_NAMES = {
    1: "lookup", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir", 10: "unlink",
    11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs", 18: "release",
    20: "fsync", 25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "release", 30: "fsyncdir", 32: "flock",
    33: "flock", 35: "create", 43: "fallocate", 45: "rename2",
}  # fmt: skip
_UNANSWERED = (2, 36, 42)  # forget, interrupt, batch_forget


class FaultyFolder:
    """The server. `fail` maps an operation (`write`, `fsync`, `link`) to the errno that it ends with from now on,
    `slow` to the seconds that it takes."""

    def __init__(self, backing: Path) -> None:
        self.backing = backing  # what is on the disk, seen past the mount
        self.fail: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.answers = threading.Event()  # cleared: requests wait, as where a server hangs; the next one is still taken
        self.answers.set()
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._nodes = [-1, os.open(backing, os.O_PATH | os.O_CLOEXEC)]
        self._known = {self._key(self._nodes[1]): 1}
        self._open: dict[int, int] = {}
        self._lists: dict[int, list[str]] = {}
        self._flags = 0
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """After the unmount."""
        self._thread.join(100)
        for descriptor in {*self._nodes[1:], *self._open.values(), self.device}:
            with suppress(OSError):
                os.close(descriptor)

    def locks(self) -> None:
        """Ask to be told of every flock, instead of leaving that to the kernel. Before the mount."""
        self._flags = _FLOCK_LOCKS

    def _serve(self) -> None:
        while True:
            self.answers.wait()
            try:
                request = os.read(self.device, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                return  # ENODEV: unmounted
            _size, code, unique, node, *_who = _HEADER.unpack_from(request)
            if code in _UNANSWERED:
                continue
            name = _NAMES.get(code, "")
            time.sleep(self.slow.get(name.removesuffix("2"), 0))
            number, answer = 0, b""
            try:
                number = self.fail.get(name.removesuffix("2"), 0)
                act: Callable[[int, bytes], bytes] | None = getattr(self, f"_do_{name}", None)
                if not number:
                    number, answer = (errno.ENOSYS, b"") if act is None else (0, act(node, request[_HEADER.size :]))
            except OSError as error:
                number = error.errno or errno.EIO
            with suppress(OSError):
                os.write(self.device, _ANSWER.pack(_ANSWER.size + len(answer), -number, unique) + answer)

    # --- names -----------------------------------------------------------------------------------------------------

    def _key(self, descriptor: int) -> tuple[int, int]:
        found = os.fstat(descriptor)
        return found.st_dev, found.st_ino

    def _way(self, node: int) -> str:
        return f"/proc/self/fd/{self._nodes[node]}"

    def _entry(self, parent: int, name: bytes) -> bytes:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._nodes[parent])
        found = os.fstat(descriptor)
        node = self._known.get((found.st_dev, found.st_ino))
        if node is None:
            node = self._known[found.st_dev, found.st_ino] = len(self._nodes)
            self._nodes.append(descriptor)
        else:
            os.close(descriptor)
        return struct.pack("=QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        found = os.fstat(self._nodes[node])
        seconds = [each // 10**9 for each in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
        parts = [each % 10**9 for each in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
        owner = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, found.st_blksize, 0)
        return _ATTRIBUTES.pack(found.st_ino, found.st_size, found.st_blocks, *seconds, *parts, *owner)

    def _do_init(self, _node: int, _body: bytes) -> bytes:
        return struct.pack(
            "=IIIIHHIIHHI7I", 7, 31, 0, self._flags | _BIG_WRITES, 8, 6, _MAX_WRITE, 1, 0, 0, 0, *[0] * 7
        )

    def _do_lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(node, body.rstrip(b"\0"))

    def _do_getattr(self, node: int, _body: bytes) -> bytes:
        return struct.pack("=QII", 0, 0, 0) + self._attributes(node)

    def _do_setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _handle, size, _, _a, mtime, _c, _an, mtime_ns, _cn, mode, _, uid, gid, _ = _SET.unpack_from(body)
        way = self._way(node)
        if valid & 1:
            Path(way).chmod(stat.S_IMODE(mode))
        if valid & 6:
            os.chown(way, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(way, size)
        if valid & 0x100:
            os.utime(way)
        elif valid & 0x20:
            os.utime(way, ns=(mtime * 10**9 + mtime_ns, mtime * 10**9 + mtime_ns))
        return self._do_getattr(node, b"")

    def _do_readlink(self, node: int, _body: bytes) -> bytes:
        return os.readlink(b"", dir_fd=self._nodes[node])

    def _do_symlink(self, node: int, body: bytes) -> bytes:
        name, target = body.split(b"\0")[:2]
        os.symlink(target, name, dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _do_mknod(self, node: int, body: bytes) -> bytes:
        mode, device, _umask, _ = struct.unpack_from("=IIII", body)
        name = body[16:].rstrip(b"\0")
        os.mknod(name, mode, device, dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _do_mkdir(self, node: int, body: bytes) -> bytes:
        mode, _umask = struct.unpack_from("=II", body)
        name = body[8:].rstrip(b"\0")
        os.mkdir(name, mode, dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _do_unlink(self, node: int, body: bytes) -> bytes:
        os.unlink(body.rstrip(b"\0"), dir_fd=self._nodes[node])
        return b""

    def _do_rmdir(self, node: int, body: bytes) -> bytes:
        os.rmdir(body.rstrip(b"\0"), dir_fd=self._nodes[node])
        return b""

    def _rename(self, node: int, body: bytes, start: int) -> bytes:
        (folder,) = struct.unpack_from("=Q", body)
        old, new = body[start:].split(b"\0")[:2]
        os.rename(old, new, src_dir_fd=self._nodes[node], dst_dir_fd=self._nodes[folder])
        return b""

    def _do_rename(self, node: int, body: bytes) -> bytes:
        return self._rename(node, body, 8)

    def _do_rename2(self, node: int, body: bytes) -> bytes:
        return self._rename(node, body, 16)

    def _do_link(self, node: int, body: bytes) -> bytes:
        (old,) = struct.unpack_from("=Q", body)
        name = body[8:].rstrip(b"\0")
        os.link(self._way(old), name, dst_dir_fd=self._nodes[node], follow_symlinks=True)
        return self._entry(node, name)

    # --- bytes -----------------------------------------------------------------------------------------------------

    def _opened(self, descriptor: int) -> bytes:
        self._open[descriptor] = descriptor
        return _OPEN.pack(descriptor, 0, 0)

    def _do_open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("=I", body)
        kept = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_DIRECT
        return self._opened(os.open(self._way(node), (flags & ~kept) | os.O_CLOEXEC))

    def _do_create(self, node: int, body: bytes) -> bytes:
        flags, mode, _umask, _ = struct.unpack_from("=IIII", body)
        name = body[16:].rstrip(b"\0")
        descriptor = os.open(name, (flags & ~os.O_DIRECT) | os.O_CREAT | os.O_CLOEXEC, mode, dir_fd=self._nodes[node])
        return self._entry(node, name) + self._opened(descriptor)

    def _do_read(self, _node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _TRANSFER.unpack_from(body)
        return os.pread(handle, size, offset)

    def _do_write(self, _node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _TRANSFER.unpack_from(body)
        return struct.pack("=II", os.pwrite(handle, body[_TRANSFER.size : _TRANSFER.size + size], offset), 0)

    def _do_fallocate(self, _node: int, body: bytes) -> bytes:
        handle, offset, length, _mode, _ = struct.unpack_from("=QQQII", body)
        os.posix_fallocate(handle, offset, length)
        return b""

    def _do_release(self, _node: int, body: bytes) -> bytes:
        (handle,) = struct.unpack_from("=Q", body)
        self._lists.pop(handle, None)
        if self._open.pop(handle, None) is not None:
            os.close(handle)
        return b""

    def _do_fsync(self, _node: int, body: bytes) -> bytes:
        return b""

    _do_fsyncdir = _do_flush = _do_flock = _do_fsync

    def _do_statfs(self, _node: int, _body: bytes) -> bytes:
        found = os.statvfs(self._way(1))
        numbers = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("=5Q10I", *numbers, found.f_bsize, found.f_namemax, found.f_frsize, *[0] * 7)

    def _do_opendir(self, node: int, _body: bytes) -> bytes:
        answer = self._opened(os.open(self._way(node), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        handle = _OPEN.unpack(answer)[0]
        self._lists[handle] = sorted(os.listdir(handle))
        return answer

    def _do_readdir(self, _node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _TRANSFER.unpack_from(body)
        listed = b""
        for at, name in enumerate(self._lists[handle][offset:], offset + 1):
            encoded = os.fsencode(name)
            entry = struct.pack("=QQII", at, at, len(encoded), 0) + encoded
            entry += bytes(-len(entry) % 8)
            if len(listed) + len(entry) > size:
                break
            listed += entry
        return listed


@contextmanager
def mounted_faulty(folder: Path, *refused: str) -> Iterator[FaultyFolder]:
    """A FUSE mount over `folder`, passing on to a folder beside it; these operations are refused from the start."""
    folder.mkdir(parents=True, exist_ok=True)
    backing = folder.with_name(f"{folder.name}.backing")
    backing.mkdir()
    try:
        server = FaultyFolder(backing)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    if "flock" in refused:
        server.locks()
    server.fail.update({name: _REFUSALS[name] for name in refused})
    options = f"fd={server.device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"faulty", os.fsencode(folder), b"fuse", 0, options.encode()):
        number = ctypes.get_errno()
        os.close(server.device)
        pytest.skip(f"cannot mount FUSE here: {os.strerror(number)}")
    server.start()
    try:
        yield server
    finally:
        server.answers.set()
        subprocess.run(["umount", "-l", folder], check=True)
        server.close()
