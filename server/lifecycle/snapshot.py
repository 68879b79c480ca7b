"""The served folder: its path, its name and version, and the lease that keeps it.

Law: reads names and takes a lock; never writes, never reads weights.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import DigestMismatch, InvalidReference, Permanent
from cached.contract.layout import SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.reference import check_version, name_from_path_segment
from cached.contract.snapshot.lease import Lease, take_shared
from cached.contract.snapshot.verify import check_record, load_manifest, load_volume_manifest

_LOG = logging.getLogger(__name__)
_LEASE_WAIT_S = 10.0  # an eviction holds the lease for moments; then the symlink leads elsewhere, or is gone
_LEASE_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A served folder: `path` without symlinks; `digest` where it is a Holdfast snapshot."""

    path: Path
    name: str
    version: str | None
    digest: Digest | None


class HeldFolder:
    """A leased snapshot; `close` releases the lease."""

    def __init__(self, snapshot: Snapshot, lease: Lease | None) -> None:
        self.snapshot = snapshot
        self._lease = lease

    def follow(self) -> None:
        """Move the lease to the snapshot's current folder, as a repair replaces a corrupt one under the same name.
        Raises `Permanent` (`no_lease`) where the disk cannot be read."""
        if self._lease is not None:
            lease = SnapshotLayout(self.snapshot.path).lease
            try:
                self._lease.relock(lease)
            except OSError as error:
                raise Permanent("no_lease", f"{lease}: {error.strerror}", "check the node's disk and mount") from error

    def close(self) -> None:
        """Release the lease, so that the snapshot can be evicted. A second call does nothing."""
        if self._lease is not None:
            self._lease.close()


def hold(path: Path, pin: Digest | None = None) -> HeldFolder:
    """Take the lease of the snapshot at `path`; `pin` is the digest it must have, None for any. A folder that is no
    snapshot is served without a lease. Blocks while an eviction holds the lease. Raises `Permanent` where the folder is
    missing or the lease unavailable, and `DigestMismatch`."""
    name, version = names(path)
    target, lease = _take(path)
    if lease is None:
        _LOG.warning("%s is not a Holdfast snapshot: no lease is held, nothing keeps it from being removed", target)
    with ExitStack() as undo:
        if lease is not None:
            undo.callback(lease.close)
        digest = None if lease is None else _digest_of(target)
        undo.pop_all()
    folder = HeldFolder(Snapshot(target, name, version, digest), lease)
    if pin is not None and pin != digest:
        folder.close()
        raise DigestMismatch(
            f"{path}: the manifest digest",
            f"{pin} (the pin)",
            str(digest or "a folder without one"),
            "correct the pin, or publish the content that the pin names under this version",
        )
    return folder


def hold_verified(path: Path, pin: Digest | None) -> HeldFolder:
    """Take the lease as `hold` does, and check a snapshot by its record, as the gate does for those before the start; a
    plain folder has no record. Raises also `DigestMismatch`, or `Permanent` where a file cannot be read."""
    folder = hold(path, pin)
    with ExitStack() as undo:
        undo.callback(folder.close)
        if folder.snapshot.digest is not None:
            layout = SnapshotLayout(folder.snapshot.path)
            check_record(layout, _load_manifest(layout))
        undo.pop_all()
    return folder


def target_of(path: Path) -> Path | None:
    """Return the folder that `path` leads to now; None where there is none."""
    try:
        return _resolve(path)
    except Permanent:
        return None


def names(path: Path) -> tuple[str, str | None]:
    """Return the name and version of `…/models/<name>/<version>`, else the folder's own name and None."""
    absolute = path.absolute()
    if absolute.parent.parent.name == "models":
        try:
            check_version(absolute.name)
            return name_from_path_segment(absolute.parent.name), absolute.name
        except InvalidReference:
            pass  # an unrelated folder called `models`
    return absolute.name, None


def _digest_of(target: Path) -> Digest | None:
    """Return a snapshot's digest: its folder's name, or what its manifest says where it is mounted as a volume of its
    own; None without a manifest."""
    if is_hex(target.name):
        return Digest(target.name)
    layout = SnapshotLayout(target)
    return _load_manifest(layout).digest if layout.manifest.exists() else None


def _load_manifest(layout: SnapshotLayout) -> Manifest:
    return (load_manifest if is_hex(layout.path.name) else load_volume_manifest)(layout, None)


def _take(path: Path) -> tuple[Path, Lease | None]:
    deadline = time.monotonic() + _LEASE_WAIT_S
    while True:
        target = _resolve(path)
        layout = SnapshotLayout(target)
        if not layout.lease.parent.is_dir():
            return target, None
        try:
            lease = take_shared(layout.lease)
        except OSError as error:
            raise Permanent(
                "no_lease", f"{layout.lease}: {error.strerror}", "check that this user may read the mount"
            ) from error
        if lease is not None:
            return target, lease
        if time.monotonic() > deadline:
            raise Permanent(
                "no_lease",
                f"{layout.lease}: could not be locked for {_LEASE_WAIT_S:.0f} seconds",
                "the version is being evicted or is incomplete: ask the daemon for it again, and start the gate first",
            )
        time.sleep(_LEASE_POLL_S)


def _resolve(path: Path) -> Path:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise Permanent(
            "no_model",
            f"expected a model's folder at {path}, found none: {error}",
            "check --model-path, that the volume is mounted, and that the gate ran before",
        ) from error
    if not target.is_dir():
        raise Permanent(
            "no_model", f"expected a folder at {path}, found a file", "give --model-path the model's folder"
        )
    return target
