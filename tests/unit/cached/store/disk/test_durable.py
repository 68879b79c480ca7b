"""Names appear by rename or link, with the mode they should have, and no temporary name stays."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cached.store.disk import durable
from tests.support.filling import tree


@pytest.mark.parametrize("write", [durable.replace, durable.replace_volatile])
def test_replace_is_atomic(tmp_path: Path, write: object) -> None:
    """A replaced file has the new bytes and mode, a reader of the old one keeps it, and nothing else is left."""
    assert callable(write)
    path = tmp_path / "file"
    write(path, b"one", 0o644)
    with path.open("rb") as old:
        write(path, b"two", 0o444)
        assert old.read() == b"one"
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert tree(tmp_path) == {"file"}


@pytest.mark.parametrize("write", [durable.replace, durable.replace_volatile])
def test_a_replacement_that_fails_leaves_no_temporary_name(tmp_path: Path, write: object) -> None:
    """Where the rename cannot be done, the folder is as it was."""
    assert callable(write)
    (tmp_path / "folder" / "child").mkdir(parents=True)
    with pytest.raises(OSError):
        write(tmp_path / "folder", b"one", 0o644)
    assert tree(tmp_path) == {"folder/", "folder/child/"}


def test_a_symlink_is_replaced_atomically(tmp_path: Path) -> None:
    """A symlink changes its target by one rename; also where a file was, but never where a folder is."""
    link = tmp_path / "link"
    link.write_text("a file")
    durable.replace_symlink_unsynced(link, "one")
    durable.replace_symlink_unsynced(link, "two/../three")
    assert os.readlink(link) == "two/../three"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.replace_symlink_unsynced(tmp_path / "folder", "one")
    assert tree(tmp_path) == {"link", "folder/"}


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    """Folders and files have exactly the mode that was asked for."""
    before = os.umask(0o077)
    try:
        durable.make_dir(tmp_path / "public", durable.PUBLIC_DIR_MODE)
        durable.write_file(tmp_path / "file", b"", durable.READ_ONLY_MODE)
        os.umask(0)
        durable.make_dir(tmp_path / "private", durable.PRIVATE_DIR_MODE)
        durable.replace(tmp_path / "state", b"", 0o600)
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    assert modes == {"public": 0o755, "file": 0o444, "private": 0o700, "state": 0o600}


def test_what_is_there_is_left(tmp_path: Path) -> None:
    """A folder that exists keeps its mode; a name that is gone is no error; a new file never overwrites."""
    (tmp_path / "folder").mkdir(mode=0o711)
    durable.make_dir(tmp_path / "folder", 0o755)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o711
    durable.unlink(tmp_path / "nothing")
    durable.write_file(tmp_path / "file", b"one", 0o644)
    with pytest.raises(FileExistsError):
        durable.write_file(tmp_path / "file", b"two", 0o644)
    assert (tmp_path / "file").read_bytes() == b"one"


def test_a_rename_of_a_file_that_has_both_names(tmp_path: Path) -> None:
    """A rename leaves one name, also where a power cut left both: rename(2) does nothing to two links of one file."""
    (tmp_path / "from").mkdir()
    source, target = tmp_path / "from" / "file", tmp_path / "file"
    source.write_bytes(b"one")
    os.link(source, target)
    durable.rename(source, target)
    assert tree(tmp_path) == {"from/", "file"}
    assert target.read_bytes() == b"one"


def test_preallocation_takes_blocks(tmp_path: Path) -> None:
    """Preallocated bytes are on the disk before they are written; too many are refused."""
    with (tmp_path / "file").open("wb") as file:
        assert durable.preallocate(file.fileno(), 0)
        assert durable.preallocate(file.fileno(), 1_000_000)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1_000_000
        with pytest.raises(OSError) as caught:
            durable.preallocate(file.fileno(), 1 << 60)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "no_space"),
        (errno.EDQUOT, "no_space"),
        (errno.EROFS, "not_writable"),
        (errno.EACCES, "not_writable"),
        (errno.EIO, "disk"),
    ],
)
def test_disk_errors_say_what_to_do(number: int, code: str) -> None:
    """A failed step on the disk is worth another try, says where it was, and has a remedy."""
    error = durable.disk_error(OSError(number, os.strerror(number)), "writing /x/y")
    assert (error.code, error.permanent) == (code, False)
    assert "/x/y" in error.message
    assert error.remedy


def test_a_folder_never_has_a_wider_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that a crash finds just made is as closed as it was to be."""

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "fsync_dir", crash)
    monkeypatch.setattr(os, "chmod", crash)
    with pytest.raises(KeyboardInterrupt):
        durable.make_dir(tmp_path / "folder", durable.PRIVATE_DIR_MODE)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == durable.PRIVATE_DIR_MODE
