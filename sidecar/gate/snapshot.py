"""Find the snapshot that a model's symlink names, and take its lease.

Law: reads only, never follows a symlink out of the public folder, never waits. A version that is evicted between two
checks is no error: the caller checks again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import is_hex
from cached.contract.errors import Permanent
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.program import limits
from cached.contract.reference import ModelRef
from cached.contract.snapshot.lease import Lease, take_shared


class InvalidLink(Permanent):
    """A version's name is another kind of file, or names no snapshot."""

    def __init__(self, message: str) -> None:
        remedy = "check that only the daemon writes the root; `holdfast pull` publishes the version again"
        super().__init__("invalid_link", message, remedy)


@dataclass(frozen=True, slots=True)
class ChangingSnapshot:
    """A symlink whose snapshot is being published or evicted; `reason` is for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class HeldSnapshot:
    """The snapshot of a symlink; no eviction removes it while `lease` is open."""

    snapshot: SnapshotLayout
    lease: Lease


def hold_snapshot(public: PublicLayout, ref: ModelRef) -> HeldSnapshot | ChangingSnapshot | None:
    """Take the lease of the snapshot that `ref` names now; None without a symlink. Raises `Permanent`: `invalid_link`
    where the symlink is another kind of file or names no snapshot, `unreadable`."""
    link = public.model_link(ref)
    with _errors_are_ours(link):
        snapshot = _named(public, link)
        if snapshot is None:
            return None
        if not all(map(_is_folder, (public.models, link.parent, public.snapshots, snapshot.path))):
            return ChangingSnapshot("its snapshot is gone: the daemon is evicting it, or fetches it again")
        lease = take_shared(snapshot.lease)
        if lease is None:
            return ChangingSnapshot(
                "its lease is not to be had: the daemon is evicting it, or `.holdfast/lease` is missing"
            )
        if _named(public, link) != snapshot:  # replaced or evicted before the lease was taken
            lease.close()
            return ChangingSnapshot("it was replaced just now")
        return HeldSnapshot(snapshot, lease)


def still_named(public: PublicLayout, ref: ModelRef, held: HeldSnapshot) -> bool:
    """Return whether `ref` still names the leased snapshot; raises as `hold_snapshot` does."""
    link = public.model_link(ref)
    with _errors_are_ours(link):
        return _named(public, link) == held.snapshot


@contextmanager
def _errors_are_ours(link: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise limits.find_limit_error(error, f"reading {error.filename or link}") or Permanent(
            "unreadable",
            f"{error.filename or link}: {error.strerror}",
            "check the mount, the node's disk, and the pod's security policy (SELinux, AppArmor)",
        ) from error


def _named(public: PublicLayout, link: Path) -> SnapshotLayout | None:
    try:
        target = os.readlink(link)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _invalid_link(link, "something that is no symlink") from error
    # By text alone, so that nothing outside is read; `_is_folder` checks that no folder of the path is a symlink, which
    # would change the text's meaning.
    folder, name = os.path.split(os.path.normpath(link.parent / target))
    if os.path.isabs(target) or folder != os.path.normpath(public.snapshots) or not is_hex(name):
        raise _invalid_link(link, f"a symlink to {target!r}")
    return SnapshotLayout(public.snapshots / name)


def _is_folder(path: Path) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISDIR(mode):
        raise _invalid_link(path, "something that is no folder")
    return True


def _invalid_link(path: Path, found: str) -> InvalidLink:
    return InvalidLink(f"{path}: expected a relative symlink to a snapshot, through folders, found {found}")
