"""After a crash at any step the tree says what there is; nothing is hashed, nothing that was published is lost."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State, encode
from cached.store.blob import blobs, ingest
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.ingest import Ingest, IngestKey
from cached.store.disk.root import Root
from cached.store.start import recovery
from cached.store.version import kept_snapshots, snapshots
from tests.support.filling import add_blob, aligned, manifest_of, publish, tree
from tests.support.mounts import mounted_image, mounted_tmpfs

ONE, TWO = ModelRef("acme/one", "v1"), ModelRef("two", "v1")
FILES = {"a": b"a" * 5000, "folder/b": b"b"}


def test_an_empty_root(tmp_path: Path) -> None:
    """A new root has every folder with its mode and the layout's version; preparing it again changes nothing."""
    layout = Layout(tmp_path / "deep" / "root")
    recovery.prepare(layout)
    recovery.prepare(layout)
    assert layout.version.read_bytes() == b"1\n"
    private = {"", "fetched", "ingest", "blobs", "quarantine", "trash"}
    public = {"", "snapshots", "models", "status"}
    modes = {path: stat.S_IMODE((layout.private / path).stat().st_mode) for path in private}
    assert modes == dict.fromkeys(private, 0o700)
    modes = {path: stat.S_IMODE((layout.public.path / path).stat().st_mode) for path in public}
    assert modes == dict.fromkeys(public, 0o755)
    assert len(tree(layout.root)) == 2 + 6 + 3 + 1
    found = recovery.recover(layout)
    assert (found.models, found.manifests, dict(found.on_disk.blobs), found.on_disk.partials) == ({}, {}, {}, {})


@pytest.mark.parametrize("version", ["2\n", "", "1", "x" * 1000])
def test_another_layout_is_refused(layout: Layout, version: str) -> None:
    """A root that another release wrote is refused with both versions, and not touched."""
    layout.version.write_text(version)
    with pytest.raises(Permanent, match="layout version '1'") as caught:
        recovery.prepare(layout)
    assert caught.value.code == "bad_root"
    assert layout.version.read_text() == version


def test_a_root_of_another_daemon_is_not_tried(layout: Layout) -> None:
    """A start on the root of a running daemon tries no file system there: no file of its own comes or goes."""
    with contextlib.closing(Root(layout)):
        before = [os.stat(folder).st_mtime_ns for folder in (layout.ingest, layout.trash, layout.public.models)]
        with pytest.raises(Permanent) as caught:
            recovery.prepare(layout)
        assert "another daemon works here" in caught.value.message
        after = [os.stat(folder).st_mtime_ns for folder in (layout.ingest, layout.trash, layout.public.models)]
    assert after == before


def test_a_root_that_cannot_be(tmp_path: Path) -> None:
    """A root that is no folder is refused with what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Permanent) as caught:
        recovery.prepare(Layout(tmp_path / "file" / "root"))
    assert caught.value.code == "bad_root"
    assert caught.value.remedy


def test_a_root_on_two_file_systems(tmp_path: Path) -> None:
    """Where private/ and public/ cannot share links the root is refused at once, and nothing stays of the attempt."""
    layout = Layout(tmp_path / "root")
    with mounted_tmpfs(layout.private):
        with pytest.raises(Permanent, match="hard-link") as caught:
            recovery.prepare(layout)
        assert caught.value.code == "bad_root"
        assert not [name for name in tree(layout.root) if ".tmp-" in name]


def test_a_file_system_without_hard_links(tmp_path: Path) -> None:
    """A FAT file system is refused."""
    with mounted_image(tmp_path / "fat", "vfat", 8 << 20) as folder, pytest.raises(Permanent) as caught:
        recovery.prepare(Layout(folder / "root"))
    assert caught.value.code == "bad_root"


def test_everything_is_found_again(layout: Layout) -> None:
    """Models, manifests, blobs, partial blobs and the quarantine are what they were."""
    one, two = publish(layout, ONE, FILES), publish(layout, TWO, {"c": b"c" * 100})
    loose, bad = add_blob(layout, b"loose"), add_blob(layout, b"bad!")
    blobs.quarantine(layout, bad)
    Ingest(layout.ingest / "partial", IngestKey("partial", "v1", 5000)).close()
    found = recovery.recover(layout)
    assert found.models == {ONE: one, TWO: two}
    assert found.manifests == {one: manifest_of(FILES), two: manifest_of({"c": b"c" * 100})}
    expected = {hashlib.sha256(data).hexdigest(): len(data) for data in (*FILES.values(), b"c" * 100)}
    assert found.on_disk.blobs == expected | {loose: 5}
    assert found.on_disk.partials.keys() == {"partial"}
    assert found.on_disk.partials["partial"] >= 5000
    assert (sum(found.on_disk.quarantined.values()), found.damaged) == (4, ())


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """The files that this process opens for reading or writing, by an audit hook (which cannot be taken back)."""
    seen: list[str] = []
    listening = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if listening[0] and event == "open":
            seen.append(str(arguments[0]))

    sys.addaudithook(hook)
    try:
        yield seen
    finally:
        listening[0] = False


def test_it_reads_no_blob(layout: Layout) -> None:
    """Recovery opens the records, and not one blob."""
    publish(layout, ONE, FILES)
    with opened_files() as seen:
        recovery.recover(layout)
    assert any(path.endswith("manifest.json") for path in seen)
    assert not [path for path in seen if "/blobs/" in path and os.path.isfile(path)]
    assert not [path for path in seen if path.endswith(("/a", "/b"))]


def test_temporary_names_are_swept(layout: Layout) -> None:
    """Wherever a crash leaves a half-written file, the next start deletes it, and nothing else."""
    digest = publish(layout, ONE, FILES)
    Ingest(layout.ingest / "partial", IngestKey("partial", "v1", 5000)).close()
    (layout.public.status / "acme--one").mkdir()
    before = tree(layout.root)
    for folder in (
        layout.root,
        layout.private,
        layout.ingest / "partial",
        layout.public.path,
        layout.public.snapshots,
        layout.public.status,
        layout.public.status / "acme--one",
        layout.public.snapshot(digest).manifest.parent,
    ):
        (folder / ".tmp-0123456789abcdef").write_bytes(b"half")
    os.symlink("nowhere", layout.public.models / "acme--one" / ".tmp-0123")
    half = layout.public.snapshots / ".tmp-half"
    (half / ".holdfast").mkdir(parents=True)
    os.link(layout.blob(hashlib.sha256(b"b").hexdigest()), half / "b")
    kept_snapshots.write(layout, digest, frozenset({"a pod"}))
    layout.kept_record(digest).rename(layout.kept / ".tmp-0123456789abcdef")
    assert recovery.recover(layout).kept == {}
    assert tree(layout.root) == before


def test_empty_folders_of_models_go(layout: Layout) -> None:
    """What a crash leaves between the deletion of a model's last name, or last fetch record, and that of its folder is
    deleted at the next start."""
    publish(layout, ONE, FILES)
    before = tree(layout.root)
    for parent in (layout.public.models, layout.fetched):
        (parent / "acme--two").mkdir(parents=True)
    recovery.recover(layout)
    assert tree(layout.root) == before


def test_trash_is_emptied(layout: Layout) -> None:
    """What a crash left in the trash is deleted; its blobs are links of their own."""
    digest = publish(layout, ONE, FILES)
    assert snapshots.trash(layout, digest) is not None
    (layout.trash / "file").write_bytes(b"")
    found = recovery.recover(layout)
    assert os.listdir(layout.trash) == []
    assert (found.models, len(found.on_disk.blobs)) == ({}, 2)


def test_a_name_that_points_at_nothing_goes(layout: Layout) -> None:
    """A crash between the steps of an eviction leaves a name without its snapshot: it is removed."""
    publish(layout, TWO, {"c": b"c"})
    assert snapshots.trash(layout, publish(layout, ONE, FILES)) is not None
    found = recovery.recover(layout)
    assert list(found.models) == [TWO]
    assert not os.path.lexists(layout.public.model_link(ONE))


def test_a_snapshot_without_a_name_is_known(layout: Layout) -> None:
    """A crash before the last step of publication leaves a whole snapshot, which is found and can be named."""
    digest = publish(layout, ONE, FILES)
    snapshots.delete_name(layout, ONE)
    found = recovery.recover(layout)
    assert (found.models, list(found.manifests)) == ({}, [digest])


@pytest.mark.parametrize("content", [b"{}", b"", None])
def test_a_changed_manifest_is_damage(layout: Layout, content: bytes | None) -> None:
    """A snapshot whose manifest does not hash to its name is reported and has no name any more."""
    digest = publish(layout, ONE, FILES)
    path = layout.public.snapshot(digest).manifest
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = recovery.recover(layout)
    assert (found.damaged, found.manifests, found.models) == ((digest,), {}, {})
    assert not os.path.lexists(layout.public.model_link(ONE))


def test_what_is_not_ours_is_left_alone(layout: Layout) -> None:
    """Names that we would never give are neither taken for ours nor deleted."""
    publish(layout, ONE, FILES)
    (layout.public.models / "acme--one" / "README").write_text("hello")
    (layout.public.models / "UPPER case").mkdir()
    (layout.public.snapshots / "lost+found").mkdir()
    os.symlink("/etc", layout.public.models / "acme--one" / "etc")
    before = tree(layout.root)
    found = recovery.recover(layout)
    assert list(found.models) == [ONE]
    assert tree(layout.root) == before


def test_the_last_status_files(layout: Layout) -> None:
    """Statuses of the last daemon are read; files that are none are left out."""
    folder = layout.public.status / "acme--one"
    folder.mkdir()
    status = ModelStatus(
        ONE.name, ONE.version, State.FETCHING, None, False, "s3://x", 10, 5, None, None, "s", "u", None
    )
    (folder / "v1.json").write_bytes(encode(status.document()))
    (folder / "v2.json").write_bytes(b"{half")
    (layout.public.status / "daemon.json").write_bytes(b"{}")
    assert {ref: found.status for ref, found in recovery.read_statuses(layout, recovery.recover(layout)).items()} == {
        ONE: status
    }


def test_a_snapshot_that_links_a_blob_in_quarantine_is_damaged(layout: Layout) -> None:
    """After a crash between a blob's quarantine and its snapshots' end they are told as damaged, and named no more."""
    publish(layout, ONE, {"model.safetensors": b"bad", "config.json": b"good"})
    blobs.quarantine(layout, hashlib.sha256(b"bad").hexdigest())
    found = recovery.recover(layout)
    assert (found.models, len(found.damaged)) == ({}, 1)
    assert not layout.public.model_link(ONE).is_symlink()


def test_a_blob_that_is_in_quarantine_too_is_none(layout: Layout) -> None:
    """A power cut may bring back both names of a blob that was moved into quarantine: only the later one is left."""
    add_blob(layout, b"good")
    bad, other = add_blob(layout, b"bad"), add_blob(layout, b"other")
    os.link(layout.blob(bad), layout.quarantine / bad)
    (layout.quarantine / other).write_bytes(b"an earlier copy")
    found = recovery.recover(layout)
    assert found.on_disk.blobs == {hashlib.sha256(b"good").hexdigest(): 4, other: 5}
    assert found.on_disk.quarantined == {bad: 3, other: 15}


@pytest.mark.parametrize("is_noted", [False, True])
def test_a_partial_blob_that_is_committed_too_is_none(layout: Layout, is_noted: bool) -> None:
    """Of a blob that a power cut brought back in `ingest/` too only the blob is left: a later attempt would write to
    it, and one that rotted would be committed again."""
    sha256, key = hashlib.sha256(b"whole").hexdigest(), ingest.IngestKey("c" * 64, "v1", 5)
    made = ingest.Ingest(layout.ingest / key.id, key)
    made.write(aligned(b"whole"), 5, 0)
    finished = made.finish(5)
    layout.blob(sha256).parent.mkdir()
    os.link(finished, layout.blob(sha256))
    if is_noted:
        DigestJournal(layout.digests, {}).record({key.id: sha256})
    found = recovery.recover(layout)
    assert (dict(found.on_disk.blobs), found.on_disk.partials) == ({sha256: 5}, {})
    assert found.digests == ({key.id: sha256} if is_noted else {})
    assert layout.blob(sha256).read_bytes() == b"whole"


def test_a_noted_blob_is_counted_as_committed(layout: Layout) -> None:
    """A file of unknown digest that a crash kept from its place is a blob before bytes are counted."""
    sha256, key = hashlib.sha256(b"whole").hexdigest(), ingest.IngestKey("c" * 64, "v1", 5)
    made = ingest.Ingest(layout.ingest / key.id, key)
    made.write(aligned(b"whole"), 5, 0)
    made.finish(5)
    DigestJournal(layout.digests, {}).record({key.id: sha256})
    found = recovery.recover(layout)
    assert (dict(found.on_disk.blobs), found.on_disk.partials) == ({sha256: 5}, {key.id: 0})
