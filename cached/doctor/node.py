"""The node: its disk, its daemon, its clock, the limits of its kernel.

Law: blocking; reads /proc, /sys and the root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cached.commands.shared.control_client import ControlClient
from cached.commands.shared.tree import read_daemon_status
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.contract.program.units import format_count, format_duration, format_size
from cached.contract.release import VERSION
from cached.contract.status import parse_timestamp
from cached.doctor.findings import CheckResult, failed, of_error, ok, skipped, warning
from cached.store.disk import root, verity

_LATE_S = 15.0  # of the heartbeat, which moves at least every 5 s
_ANSWER_S = 5.0
_SMALL_BYTES = 1 << 30
_FULL, _TIGHT = 0.99, 0.90  # shares of the file system; the second is the default of --high-watermark
_LEAST_FILES = 1024  # open at once, for 256 clients of each listener and a hundred connections
_LEAST_WATCHES = 8192
_LEAST_TASKS = 128  # threads: 8 connections, as many hashes, pools
_PROC = Path("/proc")
_STA_UNSYNC = 0x0040  # timex.h
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized


def check_disk(layout: Layout) -> Iterator[CheckResult]:
    """Yield what is found about the root and its file system."""
    area = "disk"
    if not layout.root.is_dir():
        yield failed(area, f"{layout.root} does not exist", "create it, or name the daemon's root with --root")
        return
    mount = root.mount_of(layout.root)
    space = os.statvfs(layout.root)
    capacity, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    said = f"{layout.root}: {format_size(free)} free of {format_size(capacity)}, {mount}"
    used = 1 - free / max(1, capacity)
    if used > _FULL or free < min(_SMALL_BYTES, capacity // 100):
        yield failed(area, said, "`holdfast gc --dry-run` says what may go; free space, or give the node a larger disk")
    elif used > _TIGHT:
        yield warning(area, said, "above the default of --high-watermark the daemon evicts what nothing wants")
    else:
        yield ok(area, said)
    if space.f_files and space.f_favail < space.f_files // 100:
        left = f"{space.f_favail} of {space.f_files} inodes are free"
        yield failed(area, left, "delete small files there, or make the file system anew with more inodes (mkfs -N)")
    yield from _check_features(layout)


def _check_features(layout: Layout) -> Iterator[CheckResult]:
    area = "file system"
    if not os.access(layout.ingest, os.W_OK):
        if layout.ingest.is_dir():
            yield skipped(area, "not tried: this user may not write there", "run as the daemon's user, often root")
        else:
            yield skipped(area, f"not tried: no daemon has begun in {layout.root} yet")
        return
    try:
        root.check_file_system(layout)
        remarks = root.list_remarks(layout)
    except (HoldfastError, OSError) as error:
        yield of_error(area, error if isinstance(error, HoldfastError) else _disk_error(layout, error))
        return
    for remark in remarks:
        head, _, tail = remark.partition("; ")
        yield warning(area, head, tail or "use a local disk with ext4 or xfs")
    if not remarks:
        yield ok(area, "hard links, renames, symlinks, flock and O_DIRECT work")
    try:
        verity.choose(layout, "require")
    except HoldfastError as error:
        message = error.message.partition("--fs-verity require, and ")[2] or error.message
        yield skipped("fs-verity", f"not used: {message}", error.remedy)
    else:
        yield ok("fs-verity", "blobs can be sealed")


def _disk_error(layout: Layout, error: OSError) -> HoldfastError:
    return Permanent("disk", f"{layout.root}: {error.strerror}", "check the node's disk and kernel log")


def check_daemon(layout: Layout) -> Iterator[CheckResult]:
    """Yield what is found about the daemon of this root."""
    area = "daemon"
    status = read_daemon_status(layout.public)
    start = f"start it: `holdfast daemon --root {layout.root} --catalog FILE`"
    if status is None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(layout.public.daemon_status)  # raises where this user may not look there
        yield failed(area, f"none ever ran on {layout.root}", start)
        return
    age_s = time.time() - parse_timestamp(status.updated)
    if age_s < -_LATE_S:
        yield warning("clock", f"the heartbeat is {format_duration(-age_s)} ahead of this clock", "see why it was set")
    if age_s > _LATE_S:
        yield failed(area, f"its last heartbeat was {format_duration(age_s)} ago", f"{start}; read its log")
        return
    if status.version != VERSION:
        both = f"it is {status.version}, this command {VERSION}"
        yield warning(area, both, "run the command of the daemon's release: in its container")
    try:
        facts = ControlClient(layout, _ANSWER_S).status()
    except HoldfastError as error:
        yield of_error(area, error)
        return
    trouble = facts["disk"]["error"]
    if trouble is not None:
        yield failed(area, f"its disk: {trouble['message']}", trouble["remedy"])
    broken = [each for each in facts["models"] if each["state"] == "failed"]
    for each in broken[:5]:
        reason = each["error"] or {"message": "no reason", "remedy": ""}
        name = f"{each['model']}@{each['version']}"
        message = reason["message"].removeprefix(f"{name}: ")
        yield warning(area, f"{name} failed: {message}", reason["remedy"] or f"`holdfast why {name}`")
    if len(broken) > 5:
        yield warning(area, f"{format_count(len(broken) - 5, 'more version')} failed", "`holdfast status` lists them")
    ready = sum(each["held"] is not None for each in facts["models"])
    yield ok(
        area, f"{status.version} on {status.node}, pid {status.pid}, answers; {format_count(ready, 'version')} here"
    )


def check_clock() -> Iterator[CheckResult]:
    """Yield whether the kernel takes its clock for synchronized (adjtimex(2))."""
    area = "clock"
    buffer = (ctypes.c_long * 64)()  # struct timex has 208 bytes; modes 0: read only
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(buffer))
    status = ctypes.cast(ctypes.byref(buffer, 40), ctypes.POINTER(ctypes.c_int))[0]  # after modes and four longs
    if state < 0:
        yield skipped(area, f"not told by the kernel: {os.strerror(ctypes.get_errno())}")
    elif state == _TIME_ERROR or status & _STA_UNSYNC:
        yield warning(
            area,
            "the kernel does not take it for synchronized",
            "run chronyd or systemd-timesyncd on the node: object stores refuse requests that are minutes off, and "
            "certificates seem to end early",
        )
    else:
        yield ok(area, "synchronized")


def check_limits(layout: Layout) -> Iterator[CheckResult]:
    """Yield what is found about the kernel's limits: the daemon's own where it can be seen, else this process's."""
    area = "limits"
    status = read_daemon_status(layout.public)
    pid = str(status.pid) if status is not None and _is_daemon(status.pid) else "self"
    whose = "the daemon's" if pid != "self" else "this process's"
    found = list(_find_low_limits(pid, whose))
    yield from found
    if not found:
        yield ok(area, f"{whose} open files, tasks, and the kernel's inotify watches suffice")


def _find_low_limits(pid: str, whose: str) -> Iterator[CheckResult]:
    files = _read_limit(pid, "Max open files")
    if files is not None and files < _LEAST_FILES:
        yield warning(
            "limits",
            f"{whose} hard limit of open files is {files}",
            f"raise it to {_LEAST_FILES} or more: LimitNOFILE of the unit, or that of the container runtime",
        )
    tasks = _read_tasks(pid)
    if tasks is not None and tasks[1] - tasks[0] < _LEAST_TASKS:
        yield warning(
            "limits",
            f"{whose} cgroup has {tasks[0]} of at most {tasks[1]} tasks",
            "raise podPidsLimit of the kubelet, or pids.max of the cgroup",
        )
    watches = _read_number(_PROC / "sys/fs/inotify/max_user_watches")
    if watches is not None and watches < _LEAST_WATCHES:
        yield warning(
            "limits",
            f"fs.inotify.max_user_watches is {watches}: the daemon takes a quarter, and looks at the rest every 12 s",
            f"sysctl fs.inotify.max_user_watches={_LEAST_WATCHES * 16}",
        )
    instances = _read_number(_PROC / "sys/fs/inotify/max_user_instances")
    if instances is not None and instances < 128:
        yield warning(
            "limits",
            f"fs.inotify.max_user_instances is {instances}, shared by all processes of a user on the node",
            "sysctl fs.inotify.max_user_instances=8192: gates need one each",
        )


def _is_daemon(pid: int) -> bool:
    """Return whether the process is one of ours, and not another one in another namespace of pids."""
    try:
        return b"holdfast" in (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def _read_limit(pid: str, name: str) -> int | None:
    try:
        lines = (_PROC / pid / "limits").read_text().splitlines()
    except OSError:
        return None
    hard = next((line.removeprefix(name).split()[1] for line in lines if line.startswith(name)), "unlimited")
    return int(hard) if hard.isdigit() else None


def _read_tasks(pid: str) -> tuple[int, int] | None:
    """Return the tasks of the process's cgroup (version 2) and their limit."""
    try:
        place = (_PROC / pid / "cgroup").read_text().partition("0::")[2].splitlines()[0].lstrip("/")
    except (OSError, IndexError):
        return None
    for folder in (Path("/sys/fs/cgroup") / place, Path("/sys/fs/cgroup")):
        now, most = _read_number(folder / "pids.current"), _read_number(folder / "pids.max")
        if now is not None and most is not None:
            return now, most
    return None


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
