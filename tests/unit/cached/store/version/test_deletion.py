"""What is taken away is gone whole; what a reader uses, needs or shares stays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import TEMPORARY_PREFIX, Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.lease import take_shared
from cached.store.blob import blobs
from cached.store.blob.claims import Claims
from cached.store.blob.ingest import Ingest, IngestKey, allocated_bytes
from cached.store.start import recovery
from cached.store.version import deletion, repair, snapshots
from tests.support.filling import add_blob, deleting, manifest_of, no_claims, publish, tree

ONE, TWO = ModelRef("acme/one", "v1"), ModelRef("acme/two", "v1")
SHARED, MINE, YOURS = b"shared" * 100, b"mine" * 100, b"yours" * 100
FILES = {"shared": SHARED, "mine": MINE}
OTHERS = {"shared": SHARED, "yours": YOURS}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _claims(layout: Layout, blobs: set[str], partials: Collection[str] = ()) -> Claims:
    claims = no_claims(layout)
    claims.claim("a version under way", blobs, partials)
    return claims


def test_eviction_gives_back_what_is_not_shared(layout: Layout) -> None:
    """An evicted version's name, snapshot and own blobs are gone; a blob that another snapshot links stays."""
    one, two = publish(layout, ONE, FILES), publish(layout, TWO, OTHERS)
    assert deletion.evict(deleting(layout, no_claims(layout)), ONE, one, manifest_of(FILES)) == len(MINE)
    assert snapshots.read_name(layout, ONE) is None
    assert os.listdir(layout.public.snapshots) == [two.hex]
    assert (blobs.has(layout, _sha(MINE)), blobs.has(layout, _sha(SHARED))) == (False, True)
    assert (layout.public.model_link(TWO) / "shared").read_bytes() == SHARED
    assert os.listdir(layout.trash) == []


@pytest.mark.parametrize("now", [b"", b"mine" * 1000])
def test_what_is_given_back_is_what_was_counted(layout: Layout, now: bytes) -> None:
    """A blob whose file a person cut or grew gives back what it was committed with: the account holds no other sum."""
    one = publish(layout, ONE, FILES)
    blob = layout.blob(_sha(MINE))
    blob.chmod(0o644)
    blob.write_bytes(now)
    assert deletion.evict(deleting(layout, no_claims(layout)), ONE, one, manifest_of(FILES)) == len(SHARED) + len(MINE)
    assert not blobs.has(layout, _sha(MINE))


def test_a_lease_keeps_a_version(layout: Layout) -> None:
    """While a process holds its lease, nothing of a version is touched."""
    digest = publish(layout, ONE, FILES)
    before = tree(layout.public.path)
    lease = take_shared(layout.public.snapshot(digest).lease)
    assert lease is not None
    with lease:
        assert deletion.lock(layout, ONE, digest) is None
        assert deletion.delete_unnamed(deleting(layout, no_claims(layout)), digest, manifest_of(FILES)) is None
        assert tree(layout.public.path) == before
    held = deletion.lock(layout, ONE, digest)
    assert held is not None
    with held:
        assert take_shared(layout.public.snapshot(digest).lease) is None
        assert deletion.evict(deleting(layout, no_claims(layout)), ONE, digest, manifest_of(FILES)) == len(
            SHARED
        ) + len(MINE)


def test_what_is_needed_stays(layout: Layout) -> None:
    """A blob that a version under way will link outlives the eviction of the last snapshot that links it."""
    digest = publish(layout, ONE, FILES)
    assert deletion.evict(deleting(layout, _claims(layout, {_sha(SHARED)})), ONE, digest, manifest_of(FILES)) == len(
        MINE
    )
    assert blobs.has(layout, _sha(SHARED))


def test_one_of_two_names(layout: Layout) -> None:
    """Evicting one of two names of the same content takes the name alone."""
    digest = publish(layout, ONE, FILES)
    publish(layout, TWO, FILES)
    assert deletion.evict(deleting(layout, no_claims(layout)), ONE, digest, None) == 0
    assert snapshots.read_name(layout, TWO) == digest
    assert (layout.public.model_link(TWO) / "mine").read_bytes() == MINE


def test_evicting_what_is_gone(layout: Layout) -> None:
    """An eviction that a crash broke off after its snapshot went is carried to its end."""
    digest = publish(layout, ONE, FILES)
    assert snapshots.trash(layout, digest) is not None
    held = deletion.lock(layout, ONE, digest)
    assert held is not None
    with held:
        assert deletion.evict(deleting(layout, no_claims(layout)), ONE, digest, manifest_of(FILES)) == 0
    assert snapshots.read_name(layout, ONE) is None


def test_unnamed_snapshots_go(layout: Layout) -> None:
    """A snapshot that no name points at is deleted with its blobs; one that is gone already gives nothing back."""
    digest = publish(layout, ONE, FILES)
    snapshots.delete_name(layout, ONE)
    assert deletion.delete_unnamed(deleting(layout, no_claims(layout)), digest, manifest_of(FILES)) == len(
        SHARED
    ) + len(MINE)
    assert tree(layout.blobs) == {f"{_sha(data)[:2]}/" for data in (SHARED, MINE)}
    assert deletion.delete_unnamed(deleting(layout, no_claims(layout)), Digest("0" * 64), manifest_of(FILES)) is None


def test_a_sweep(layout: Layout) -> None:
    """What nothing links, nothing fetches, or is in quarantine goes; what is needed or busy stays."""
    publish(layout, ONE, {"mine": MINE})
    loose, needed = add_blob(layout, SHARED), add_blob(layout, YOURS)
    add_blob(layout, b"bad")
    blobs.quarantine(layout, _sha(b"bad"))
    for id_ in ("idle", "busy"):
        Ingest(layout.ingest / id_, IngestKey(id_, "v1", 5000)).close()
    idle = allocated_bytes(layout.ingest / "idle")
    swept = deletion.sweep(deleting(layout, _claims(layout, {needed}, {"busy"})))
    assert swept == len(SHARED) + idle + 3
    assert os.listdir(layout.ingest) == ["busy"]
    assert os.listdir(layout.quarantine) == []
    assert not blobs.has(layout, loose)
    assert blobs.has(layout, needed)
    assert (layout.public.model_link(ONE) / "mine").read_bytes() == MINE


def test_a_sweep_leaves_what_another_program_tries(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that `holdfast doctor` tries the file system with is its own: that it goes ends no sweep."""
    trial = layout.trash / f"{TEMPORARY_PREFIX}trial"
    trial.touch()
    list_ = os.listdir

    def list_and_end(folder: str | os.PathLike[str]) -> list[str]:
        names = list_(folder)
        trial.unlink(missing_ok=True)
        return names

    monkeypatch.setattr(os, "listdir", list_and_end)
    assert deletion.sweep(deleting(layout, no_claims(layout))) == 0


def test_a_sweep_keeps_what_tells_that_bytes_are_bad(layout: Layout) -> None:
    """A file in quarantine stays while a snapshot links it, which could not be withdrawn: without it, the snapshot's
    file would be taken for the missing blob. Links from elsewhere keep nothing."""
    digest = publish(layout, ONE, {"mine": MINE})
    os.link(layout.blob(_sha(MINE)), layout.root / "a copy by hand")
    blobs.quarantine(layout, _sha(MINE))
    assert deletion.sweep(deleting(layout, no_claims(layout))) == 0
    assert repair.restore(layout, (ONE,), digest, manifest_of({"mine": MINE})).lost == {_sha(MINE)}
    snapshots.delete(layout, digest)
    assert deletion.sweep(deleting(layout, no_claims(layout))) == len(MINE)
    assert os.listdir(layout.quarantine) == []


@pytest.mark.parametrize("keep", [True, False])
def test_a_foreign_name_among_the_blobs_is_left(layout: Layout, keep: bool) -> None:
    """A start counts and a sweep deletes blobs, and nothing whose name is not a sha256, or beside their folders."""
    sha256 = add_blob(layout, MINE)
    others = layout.blob(sha256).with_name("lost+found"), layout.blobs / "notes"
    for other in others:
        other.write_bytes(b"")
    assert recovery.recover(layout).on_disk.blobs == {sha256: len(MINE)}
    deletion.sweep(deleting(layout, _claims(layout, {sha256} if keep else set())))
    assert all(other.exists() for other in others)
    assert blobs.has(layout, sha256) is keep
