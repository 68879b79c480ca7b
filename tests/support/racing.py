"""The two sides of a race on one root, as processes of their own: one that publishes and evicts, and gates.

`python -m tests.support.racing daemon ROOT` publishes and evicts `REFS` with the store's own functions, until SIGTERM;
then it evicts all of them. `python -m tests.support.racing gate PUBLIC record|full` opens one gate after the other,
with the gate's own code, and looks at every byte for as long as it holds one. Both end with 1 where a promise is
broken, and write lines: `round` for each gate that was open, `evicted` and `in use` for what became of an eviction.

Law: no promise is checked against anything but the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import Layout, PublicLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.core.space import DiskSpace, Ledger
from cached.store.blob import blobs
from cached.store.blob.hash_notes import HashNotes
from cached.store.start import recovery
from cached.store.version import deletion, snapshots
from sidecar.gate import exit_codes
from sidecar.gate.main import Gate
from sidecar.gate.probe import GateReadiness
from sidecar.gate.progress import ProgressPrinter, TextOutput
from sidecar.gate.settings import parse
from sidecar.gate.snapshot import HeldSnapshot
from sidecar.gate.wakeup import Wakeup
from tests.support.filling import no_claims

REFS = (ModelRef("acme/tiny", "v1"), ModelRef("acme/other", "v1"))
_SHARED = b"both have it" * 100


def contents(generation: int) -> dict[str, bytes]:
    """The files of a version; two generations, so that one can be mistaken for the other."""
    own = f"generation {generation % 2}".encode()
    return {"config.json": own, "weights/a.safetensors": own * 500, "shared.bin": _SHARED}


# --- who publishes and evicts ----------------------------------------------------------------------------------------


def serve(root: Path) -> None:
    """Publish and evict in turns. What a killed one before it left is taken up first."""
    layout = Layout(root)
    recovery.prepare(layout)
    recovered = recovery.recover(layout)
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(1))
    for ref, digest in recovered.models.items():
        _evict(layout, ref, recovered.manifests[digest])
    generation = 0
    while not over:
        generation += 1
        for ref in REFS:
            _publish(layout, ref, contents(generation))
            time.sleep(random.uniform(0, 0.002))
        for ref in REFS * 3:
            if snapshots.read_name(layout, ref) is not None:
                _evict(layout, ref, _manifest_of(layout, ref))
    _evict_all(layout)


def _publish(layout: Layout, ref: ModelRef, files: dict[str, bytes]) -> None:
    if snapshots.read_name(layout, ref) is not None:
        return  # a reader uses it
    entries = []
    for path, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        entries.append(FileEntry(path, sha256, len(data)))
        if not blobs.has(layout, sha256):
            finished = layout.ingest / f"{sha256}-data"
            finished.write_bytes(data)
            finished.chmod(0o444)
            blobs.commit(layout, finished, sha256)
    digest = snapshots.publish(layout, Manifest.build(entries), "2026-11-20T18:00:00Z")
    snapshots.set_name(layout, ref, digest)


def _no_disk() -> DiskSpace:
    return DiskSpace(0, 0)


def _evict(layout: Layout, ref: ModelRef, manifest: Manifest) -> bool:
    digest = manifest.digest
    others = [other for other in REFS if other != ref and snapshots.read_name(layout, other) == digest]
    within = deletion.Deletion(layout, no_claims(layout), HashNotes(layout.hashed, {}), Ledger(None, _no_disk), {})
    lock = deletion.lock(layout, ref, digest)
    if lock is not None:
        with lock:
            deletion.evict(within, ref, digest, None if others else manifest)
    print("in use" if lock is None else "evicted", flush=True)
    return lock is not None


def _evict_all(layout: Layout) -> None:
    """No gate is there any more: nothing is in use, whatever way its holder ended."""
    for ref in REFS:
        if snapshots.read_name(layout, ref) is not None and not _evict(layout, ref, _manifest_of(layout, ref)):
            sys.exit(f"{ref} is in use, though no process uses it")
    left = [*layout.public.snapshots.iterdir(), *layout.blobs.glob("*/*"), *layout.trash.iterdir()]
    unlinked = [path for path in left if not (path.parent.parent == layout.blobs and path.stat().st_nlink == 1)]
    if unlinked:
        sys.exit(f"left over: {unlinked}")


def _manifest_of(layout: Layout, ref: ModelRef) -> Manifest:
    digest = snapshots.read_name(layout, ref)
    assert digest is not None
    return Manifest.parse(layout.public.snapshot(digest).manifest.read_bytes())


# --- gates -----------------------------------------------------------------------------------------------------------


def hold_gates(root: Path, verify: str) -> None:
    """Open gates until SIGTERM."""
    public = PublicLayout(root)
    bell = Wakeup()
    with open(os.devnull, "w") as quiet:
        while bell.stopped_by is None:
            ref = random.choice(REFS)
            asked = ["--root", str(public.path), "--model", ref.name, "--version", ref.version, "--once"]
            settings = parse([*asked, "--verify", verify, "--threads", "1", "--timeout", "300"])
            gate = Gate(settings, bell, ProgressPrinter(TextOutput(quiet)), GateReadiness(), time.monotonic())
            with contextlib.suppress(exit_codes.GateStopped):
                gate.open()
                with _held(gate) as held:
                    _look(public, ref, held)
                    time.sleep(random.choice((0, 0, 0.002)))
                    _look(public, ref, held)
                print("round", flush=True)
            time.sleep(random.uniform(0, 0.004))


@contextlib.contextmanager
def _held(gate: Gate) -> Iterator[HeldSnapshot]:
    """What an open gate holds, as long as its process would live."""
    (held,) = gate._held.values()
    with held.lease:
        yield held


def _look(public: PublicLayout, ref: ModelRef, held: HeldSnapshot) -> None:
    """As a pod does: through the name, every byte. The lease is that of the snapshot that the name leads to."""
    link = public.model_link(ref)
    root = link.resolve(strict=True)
    if root != held.snapshot.path.resolve():
        sys.exit(f"{link} leads to {root}, held is {held.snapshot.path}")
    found = os.fstat(held.lease._descriptor)
    if (found.st_nlink, found.st_ino) != (1, os.lstat(held.snapshot.lease).st_ino):
        sys.exit(f"the lease that is held is not the snapshot's: {found}")
    manifest = Manifest.parse(held.snapshot.manifest.read_bytes())
    if Digest(root.name) != manifest.digest:
        sys.exit(f"{root} has the manifest of {manifest.digest}")
    for entry in manifest.files:
        sha256 = hashlib.sha256((link / entry.path).read_bytes()).hexdigest()
        if sha256 != entry.sha256:
            sys.exit(f"{link / entry.path}: expected {entry.sha256}, found {sha256}")


if __name__ == "__main__":
    role, where, *rest = sys.argv[1:]
    if role == "daemon":
        serve(Path(where))
    else:
        hold_gates(Path(where), *rest)
