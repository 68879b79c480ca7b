"""What must hold of a root, looked at from outside: `visible` while nothing runs, `settled` when all is done.

Law: reads files and asks the daemon's listeners; knows the layout from the contract, not how the store works.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import Layout, SnapshotLayout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedRecord
from cached.contract.status import ModelStatus
from tests.support.crashing.places import place
from tests.support.daemon import DaemonProcess

_OWNERS_ONLY = 0o700
_PUBLIC = 0o755


def visible(layout: Layout, spoiled: Collection[int] = ()) -> None:
    """Every name leads to a whole snapshot, every blob is what it is called, nothing has a name that is not ours.

    `spoiled`: inodes that the test itself has damaged, and whose bytes are not to be looked at.
    """
    root = os.fspath(layout.root)
    for path in _walk(layout.root):
        found = place(root, os.fspath(path))
        assert found not in (None, "foreign"), f"a foreign name: {path}"
        if path.is_dir() and not path.is_symlink():
            private = layout.private == path or layout.private in path.parents
            wanted = _OWNERS_ONLY if private and found not in ("trashed snapshot", "trashed content") else _PUBLIC
            assert (private and str(found).startswith("trashed")) or _mode(path) == wanted, (
                f"{path}: {oct(_mode(path))}"
            )
        if found == "blob":
            _check_blob(path, spoiled)
        if found == "snapshot":
            check_snapshot(SnapshotLayout(path), spoiled)
        if found == "model name":
            assert path.is_symlink(), path
            if os.lstat(path).st_ino in spoiled:
                continue
            target = Path(os.path.normpath(path.parent / os.readlink(path)))
            assert target.parent == layout.public.snapshots, f"{path} leads to {target}"
            assert target.is_dir(), f"{path} leads nowhere: {target}"


def check_snapshot(snapshot: SnapshotLayout, spoiled: Collection[int] = ()) -> None:
    """A snapshot is all that its name promises, and its record tells the truth."""
    if os.lstat(snapshot.manifest).st_ino in spoiled:
        return
    data = snapshot.manifest.read_bytes()
    assert Digest.of(data).hex == snapshot.path.name, f"{snapshot.path}: its manifest is another"
    manifest = Manifest.parse(data)
    record = VerifiedRecord.parse(snapshot.verified.read_bytes()).files
    assert record.keys() == {entry.path for entry in manifest.files}, snapshot.path
    for entry in manifest.files:
        path = snapshot.path / entry.path
        found = os.lstat(path)
        assert (stat.S_IFMT(found.st_mode), _mode(path)) == (stat.S_IFREG, 0o444), path
        seen = record[entry.path]
        assert (seen.size, seen.mtime_ns, seen.ino) == (found.st_size, found.st_mtime_ns, found.st_ino), path
        assert found.st_size == entry.size, path
        assert found.st_ino in spoiled or _sha256(path) == entry.sha256, f"{path}: other bytes"
    ours = {snapshot.manifest, snapshot.verified, snapshot.lease}
    assert all(_mode(path) == 0o444 for path in ours), snapshot.path
    there = {p for p in snapshot.path.rglob("*") if not p.is_dir() and not p.name.startswith(".tmp-")}
    assert there == ours | {snapshot.path / entry.path for entry in manifest.files}, there


def settled(daemon: DaemonProcess, wanted: Mapping[ModelRef, Mapping[str, bytes]]) -> None:
    """What is wanted is here, right, and told so; the account is the disk's; and nothing else is left."""
    layout = daemon.layout
    daemon.wait(lambda: _is_account_right(daemon), f"the account that the disk gives: {_accounts(daemon)}")
    daemon.control.gc(dry_run=False)
    for ref, files in wanted.items():
        assert daemon.files(ref) == files, ref
        status = ModelStatus.parse(layout.public.model_status(ref).read_bytes())
        size = sum(map(len, files.values()))
        told = (str(status.state), status.digest, status.bytes_done, status.bytes_total, status.error)
        assert told == ("ready", str(daemon.digest(ref)), size, size, None), status
    linked = {hashlib.sha256(data).hexdigest() for files in wanted.values() for data in files.values()}
    daemon.wait(lambda: _leftovers(daemon, wanted, linked) == [], f"a clean root: {_leftovers(daemon, wanted, linked)}")
    daemon.wait(lambda: _is_account_right(daemon), f"the account that the disk gives: {_accounts(daemon)}")


def _leftovers(daemon: DaemonProcess, wanted: Mapping[ModelRef, object], linked: Collection[str]) -> list[str]:
    """What lies about that no wanted version needs. The status thread replaces files all the time: its temporary names
    come and go."""
    layout, public = daemon.layout, daemon.layout.public
    snapshots = {daemon.digest(ref).hex for ref in wanted}
    kept = {layout.blob(sha256) for sha256 in linked}
    kept |= {public.model_link(ref) for ref in wanted} | {public.model_status(ref) for ref in wanted}
    kept |= {layout.fetch_record(ref) for ref in wanted}
    kept |= {layout.version, layout.socket, layout.pins, layout.start_index, public.daemon_status}
    kept_folders = {path.parent for path in kept}
    of_models = (public.models, public.status, layout.fetched)
    left = [
        path
        for path in _walk(layout.root)
        if not path.is_dir()
        or path.is_symlink()
        or path.parent in (layout.trash, public.snapshots, layout.ingest)
        or (path.parent in of_models and path not in kept_folders)
        if path not in kept and path.relative_to(layout.root).parts[:3][-1] not in snapshots
    ]
    return [str(path.relative_to(layout.root)) for path in left if os.path.lexists(path)]


def _is_account_right(daemon: DaemonProcess) -> bool:
    """Tell whether the ledger says what lies on the disk: nothing stays reserved, each byte is counted once.

    While something is still being evicted or scrubbed it may not.
    """
    found, told = _accounts(daemon)
    return found == told


def _accounts(daemon: DaemonProcess) -> tuple[dict[str, int], dict[str, int]]:
    layout = daemon.layout
    committed = sum(_size(path) for path in layout.blobs.glob("*/*"))
    dying = sum(_size(path) for path in layout.quarantine.iterdir())
    dying += sum(_blocks(path) for path in layout.ingest.glob("*/data"))
    found = {"committed": committed, "dying": dying, "reserved": 0, "used": committed + dying}
    use = daemon.document()["disk"]
    states = {state: int(daemon.metric("holdfast_store_bytes", state=state)) for state in ("committed", "dying")}
    return found, {**states, "reserved": use["reserved"], "used": use["used"]}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # evicted just now
        return 0


def _blocks(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _check_blob(path: Path, spoiled: Collection[int]) -> None:
    found = os.lstat(path)
    assert stat.S_ISREG(found.st_mode) and _mode(path) == 0o444, path
    assert found.st_ino in spoiled or _sha256(path) == path.name, f"{path}: other bytes"


def _walk(root: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(root):
        yield from (Path(at, name) for name in (*folders, *files))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)
