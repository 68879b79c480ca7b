"""Versions in a folder of this machine."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.core.listing import Listing, RemoteFile
from cached.sources.local.source import LocalSource
from cached.sources.local.tree import file_error
from cached.transport.target import LocalTarget
from tests.support.choosing import chosen


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads everything: become another user for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


async def resolve(uri: str | Path) -> Listing:
    return await LocalSource(str(uri)).resolve()


async def refusal(uri: str | Path) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await chosen(LocalSource(str(uri)))
    assert caught.value.remedy
    return caught.value


async def test_a_folder_lists_its_plain_files_sorted(tmp_path: Path) -> None:
    """Every plain file is listed once, by its path, with its size; folders are not."""
    put(tmp_path / "b.txt", b"12")
    put(tmp_path / "a" / "deep" / "c", b"123")
    (tmp_path / "emptyfolder").mkdir()
    listing = await resolve(tmp_path)
    assert [(f.path, f.size, f.sha256) for f in listing.files] == [("a/deep/c", 3, None), ("b.txt", 2, None)]
    assert listing.manifest is None


async def test_a_file_uri_is_percent_decoded(tmp_path: Path) -> None:
    """`file://` names a path percent-encoded, and `display` writes it so."""
    put(tmp_path / "a model é" / "f")
    source = LocalSource((tmp_path / "a model é").as_uri())
    assert [f.path for f in (await source.resolve()).files] == ["f"]
    assert source.display == (tmp_path / "a model é").as_uri()
    assert source.kind == "file"


async def test_a_plain_path_is_taken_literally(tmp_path: Path) -> None:
    """A plain path is not decoded."""
    put(tmp_path / "100%25" / "f")
    assert [f.path for f in (await resolve(tmp_path / "100%25")).files] == ["f"]


@pytest.mark.parametrize("uri", ["file://server/share/m", "models/m", "file:/models", "/a\0b"])
def test_what_names_no_path_of_this_machine_is_refused(uri: str) -> None:
    """A foreign host, a relative path and a NUL are refused before anything is looked at."""
    with pytest.raises(Permanent) as caught:
        LocalSource(uri)
    assert caught.value.code == "bad_source"


async def test_one_file_is_a_version_of_one_file(tmp_path: Path) -> None:
    """A location that is a file lists that file alone, under its own name."""
    path = put(tmp_path / "model.gguf", b"abc")
    listing = await resolve(path.as_uri())
    assert [(f.path, f.size, f.key) for f in listing.files] == [("model.gguf", 3, os.path.realpath(path))]


async def test_a_file_of_another_size_than_the_manifest_says_is_named(tmp_path: Path) -> None:
    """A truncated file of a published version is refused before a byte is read."""
    put(tmp_path / "w.bin", b"ab")
    put(tmp_path / "holdfast.json", Manifest.build([FileEntry("w.bin", Digest.of(b"abc").hex, 3)]).canonical())
    error = await refusal(tmp_path)
    assert error.code == "size_mismatch" and "w.bin" in error.message


async def test_a_manifest_is_a_plain_file_of_the_folder(tmp_path: Path) -> None:
    """A `holdfast.json` that is a link out of the folder, or a pipe without a writer, is refused, not opened."""
    outside = put(tmp_path / "secret", b"the node's own")
    put(tmp_path / "m" / "w.bin")
    manifest = tmp_path / "m" / "holdfast.json"
    manifest.symlink_to(outside)
    error = await refusal(tmp_path / "m")
    assert error.code == "bad_file" and str(manifest) in error.message
    manifest.unlink()
    os.mkfifo(manifest)
    async with asyncio.timeout(100):
        assert (await refusal(tmp_path / "m")).code == "bad_file"


async def test_holdfasts_own_records_are_no_content(tmp_path: Path) -> None:
    """`.holdfast/` is left out of a listing."""
    put(tmp_path / "w.bin")
    put(tmp_path / ".holdfast" / "verified.json")
    assert [f.path for f in (await resolve(tmp_path)).files] == ["w.bin"]


async def test_a_link_inside_the_folder_is_read_through(tmp_path: Path) -> None:
    """A symlink to a plain file of the same tree counts as that file."""
    real = put(tmp_path / "blobs" / "abc", b"1234")
    (tmp_path / "w.bin").symlink_to("blobs/abc")
    listed = {f.path: f for f in (await resolve(tmp_path)).files}
    assert listed["w.bin"].size == 4
    assert listed["w.bin"].key == os.path.realpath(real)


async def test_a_hub_cache_snapshot_is_readable(tmp_path: Path) -> None:
    """A snapshot in huggingface_hub's cache is readable though its links lead to the repository's `blobs`."""
    put(tmp_path / "models--a--b" / "blobs" / "abc", b"1234")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0e9e39f"
    snapshot.mkdir(parents=True)
    (snapshot / "w.bin").symlink_to("../../blobs/abc")
    assert [(f.path, f.size) for f in (await resolve(snapshot)).files] == [("w.bin", 4)]


async def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    """A symlink out of the tree is refused by name, not followed and not skipped."""
    secret = put(tmp_path / "secret")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.bin").symlink_to(secret)
    error = await refusal(tmp_path / "m")
    assert error.permanent and str(tmp_path / "m" / "w.bin") in error.message


async def test_a_listed_file_behind_a_link_that_leaves_is_refused(tmp_path: Path) -> None:
    """A manifest does not open a way out of the folder, not even through a linked folder."""
    put(tmp_path / "outside" / "w.bin", b"abc")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "sub").symlink_to(tmp_path / "outside")
    manifest = Manifest.build([FileEntry("sub/w.bin", Digest.of(b"abc").hex, 3)])
    put(tmp_path / "m" / "holdfast.json", manifest.canonical())
    assert (await refusal(tmp_path / "m")).code == "bad_file"


async def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    """A symlink to nothing is refused by name."""
    (tmp_path / "w.bin").symlink_to("gone")
    error = await refusal(tmp_path)
    assert error.permanent and "w.bin" in error.message


async def test_special_files_are_refused(tmp_path: Path) -> None:
    """A socket or a pipe is refused by name: reading it would hang or mean nothing."""
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in (await refusal(tmp_path)).message
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        assert "sock" in (await refusal(tmp_path)).message


async def test_a_name_no_manifest_may_carry_is_refused(tmp_path: Path) -> None:
    """A file whose name the manifest refuses is named, not skipped."""
    put(tmp_path / "bad\nname")
    error = await refusal(tmp_path)
    assert error.code == "bad_name" and "bad\\nname" in error.message


async def test_missing_and_empty_say_not_found(tmp_path: Path) -> None:
    """A missing folder and an empty one are `not_found`."""
    assert (await refusal(tmp_path / "gone")).code == "not_found"
    (tmp_path / "empty").mkdir()
    assert (await refusal(tmp_path / "empty")).code == "not_found"


async def test_unreadable_says_forbidden(tmp_path: Path) -> None:
    """A folder that this user may not read is `forbidden`."""
    put(tmp_path / "m" / "w.bin")
    (tmp_path / "m").chmod(0)
    with as_nobody():
        assert (await refusal(tmp_path / "m")).code == "forbidden"
    (tmp_path / "m").chmod(0o755)


async def test_locating_gives_the_file_as_it_was_listed(tmp_path: Path) -> None:
    """The target is the real file, with the validator of the listing."""
    path = put(tmp_path / "w.bin", b"abc")
    source = LocalSource(str(tmp_path))
    file = (await source.resolve()).files[0]
    assert file.validator
    assert await source.locate(file) == LocalTarget(Path(os.path.realpath(path)), file.validator)
    await source.aclose()
    await source.aclose()


async def test_other_bytes_of_the_same_size_and_time_are_noticed(tmp_path: Path) -> None:
    """A file written over in place and given its old mtime again, as `cp -p` from a reproducible build gives it, is
    another one: who writes a file can set its mtime, and not its ctime."""
    path = put(tmp_path / "w.bin", b"abc")
    before = path.stat()
    source = LocalSource(str(tmp_path))
    file = (await source.resolve()).files[0]
    time.sleep(0.02)  # longer than a tick of the file system's clock
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (await source.resolve()).files[0].validator != file.validator
    with pytest.raises(Transient) as changed:
        await source.locate(file)
    assert changed.value.code == "source_changed"


async def test_a_file_that_changed_since_it_was_listed_is_noticed(tmp_path: Path) -> None:
    """A replaced or removed file is not located."""
    path = put(tmp_path / "w.bin", b"abc")
    source = LocalSource(str(tmp_path))
    file = (await source.resolve()).files[0]
    os.replace(put(tmp_path / "new", b"abd"), path)
    with pytest.raises(Transient) as changed:
        await source.locate(file)
    assert changed.value.code == "source_changed"
    path.unlink()
    with pytest.raises(Permanent) as gone:
        await source.locate(RemoteFile("w.bin", str(path), 3, file.validator))
    assert gone.value.code == "not_found"


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_network_file_system_that_hiccups_is_worth_another_try(code: int) -> None:
    """A stale handle and an I/O error are transient: the server may come back."""
    error = file_error(OSError(code, os.strerror(code)), Path("/nfs/w.bin"))
    assert isinstance(error, Transient) and "/nfs/w.bin" in error.message
