"""The limits of a process by kernel or container: threads, open files, file sizes.

Law: standard library only, cheap to import. Reaching a limit is `Transient`: it is no fault of the bytes or the disk,
and it passes when other processes end or a person raises the limit.
"""

from __future__ import annotations

import errno
import resource
import threading
from collections.abc import Sequence

from cached.contract.errors import Permanent, Transient

_THREAD_REMEDY = (
    "raise the limit of processes: podPidsLimit of the kubelet, pids.max of the cgroup, or `ulimit -u` of the user"
)
_FILES_REMEDY = "raise the limit of open files: `ulimit -n`, LimitNOFILE of the unit, or that of the container runtime"
_SIZE_REMEDY = "raise the limit of file sizes: `ulimit -f`, LimitFSIZE of the unit, or that of the container runtime"
_MAX_CAUSES = 8  # libraries wrap an error two or three times
_SYSTEM_REMEDY = "raise fs.file-max on the node, or end what holds so many files open (`lsof`)"


def start_thread(thread: threading.Thread, what: str) -> None:
    """Start `thread`. Raises `Transient` (`no_thread`) if the kernel refuses another thread."""
    try:
        thread.start()
    except RuntimeError as error:
        raise no_thread(what) from error


def start_threads(threads: Sequence[threading.Thread]) -> list[threading.Thread]:
    """Start `threads` until the kernel refuses one; return the running ones, any of which can do the work alone."""
    running = []
    for thread in threads:
        try:
            thread.start()
        except RuntimeError:
            break
        running.append(thread)
    return running


def no_thread(what: str) -> Transient:
    """Return the error of `what`, for which no thread could be started."""
    return Transient("no_thread", f"{what}: cannot start a thread: the limit of processes is reached", _THREAD_REMEDY)


def find_limit_error(error: BaseException, what: str) -> Transient | None:
    """Return our error if `error` or one of its causes reports a limit of the process or the system, else None."""
    reached: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if isinstance(reached, RuntimeError) and "can't start new thread" in str(reached):  # CPython has no type for it
            return no_thread(what)
        if isinstance(reached, OSError) and reached.errno == errno.EMFILE:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return Transient("no_descriptor", f"{what}: this process has {soft} open files, its limit", _FILES_REMEDY)
        if isinstance(reached, OSError) and reached.errno == errno.ENFILE:
            return Transient("no_descriptor", f"{what}: the system's limit of open files is reached", _SYSTEM_REMEDY)
        if isinstance(reached, OSError) and reached.errno == errno.EFBIG:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            if most != resource.RLIM_INFINITY:
                problem = f"{what}: a file of this process has {most} bytes at most, its limit"
                return Transient("file_size_limit", problem, _SIZE_REMEDY)
        if reached is None:
            return None
        reached = reached.__cause__ or reached.__context__
    return None


def explain_no_inotify(error: OSError | RuntimeError) -> str:
    """Return why an inotify watch could not be set, and the remedy (codes: inotify(7)). EMFILE stands for
    instances and for open files: the remedy names both."""
    if isinstance(error, RuntimeError):
        return f"{error} ({_THREAD_REMEDY})"
    remedy = {
        errno.ENOSPC: "raise fs.inotify.max_user_watches",
        errno.EMFILE: "raise fs.inotify.max_user_instances, shared by all processes of a user on the node",
    }.get(error.errno or 0, "look at the seccomp profile and the kernel's log")
    return f"{error.strerror or error} ({remedy})"


def raise_open_files(needed: int) -> int:
    """Raise the soft limit of open files to the hard one and return it. Raises `Permanent` (`few_files`) if that is
    less than `needed`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < needed:
        raise Permanent("few_files", f"the limit of open files is {hard}, and {needed} are needed", _FILES_REMEDY)
    return hard
