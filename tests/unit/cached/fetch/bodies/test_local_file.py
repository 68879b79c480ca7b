"""A local file read like a body: the range that was asked for, or a reason."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from cached.fetch.bodies.local_file import LocalBody
from cached.transport.target import LocalTarget, local_validator

DATA = bytes(range(256)) * 40


@pytest.fixture
def target(tmp_path: Path) -> LocalTarget:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return LocalTarget(path, local_validator(path.stat()))


def _read(body: LocalBody, piece: int) -> bytes:
    data, view = bytearray(), memoryview(bytearray(piece))
    with body:
        while count := body.readinto(view):
            data += view[:count]
    return bytes(data)


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 1), (5000, 77), (100, None), (len(DATA), None)])
def test_the_range_that_was_asked_for(target: LocalTarget, offset: int, length: int | None) -> None:
    """Whatever the size of the pieces, exactly the range comes, and the body says what it is."""
    expected = DATA[offset:] if length is None else DATA[offset : offset + length]
    for piece in (1, 1000, 1 << 20):
        body = LocalBody(target, offset, length)
        assert (body.start, body.length, body.total) == (offset, len(expected), len(DATA))
        assert _read(body, piece) == expected
        assert body.received == len(expected)


def _code(target: LocalTarget, offset: int = 0, length: int | None = None) -> tuple[str, bool]:
    with pytest.raises(HoldfastError) as caught:
        _read(LocalBody(target, offset, length), 1000)
    assert str(target.path) in caught.value.message
    return caught.value.code, caught.value.permanent


def test_a_file_that_changed(target: LocalTarget) -> None:
    """A file that is not the one that was listed is refused before its first byte."""
    os.utime(target.path, ns=(0, 0))
    assert _code(target) == ("source_changed", False)


@pytest.mark.parametrize("listed", [True, False])
def test_a_file_that_changes(target: LocalTarget, listed: bool) -> None:
    """A file that changes while it is read is refused at its last byte, listed with a validator or not."""
    body = LocalBody(target if listed else LocalTarget(target.path, ""), 0, None)
    view = memoryview(bytearray(len(DATA)))
    assert body.readinto(view[:10]) == 10
    os.utime(target.path, ns=(0, 0))
    with pytest.raises(HoldfastError) as caught, body:
        body.readinto(view)
    assert caught.value.code == "source_changed"


def test_a_file_that_gets_its_mtime_back_has_changed(target: LocalTarget) -> None:
    """Other bytes of the same size, written in place while it is read, are refused although the mtime is the old one
    again."""
    body = LocalBody(target, 0, None)
    view = memoryview(bytearray(len(DATA)))
    assert body.readinto(view[:10]) == 10
    before = target.path.stat()
    time.sleep(0.02)  # longer than a tick of the file system's clock
    with target.path.open("r+b") as file:
        file.write(bytes(len(DATA)))
    os.utime(target.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(HoldfastError) as caught, body:
        body.readinto(view)
    assert caught.value.code == "source_changed"


def test_a_file_that_is_too_short(target: LocalTarget) -> None:
    """A range beyond the end of the file is a bad response."""
    assert _code(target, 0, len(DATA) + 1) == ("bad_response", False)


def test_a_file_that_cannot_be_read(target: LocalTarget) -> None:
    """No file is permanent; a folder in its place says so."""
    target.path.unlink()
    assert _code(target) == ("not_found", True)
    target.path.mkdir()
    assert _code(LocalTarget(target.path, "")) == ("read", False)


def test_what_stands_in_a_files_place_is_not_read(target: LocalTarget, tmp_path: Path) -> None:
    """A link or a pipe that took the file's place since it was listed is refused at once: neither followed nor waited
    for."""
    target.path.rename(tmp_path / "moved")
    target.path.symlink_to(tmp_path / "moved")
    assert _code(target) == ("source_changed", False)
    target.path.unlink()
    os.mkfifo(target.path)
    assert _code(target) == ("source_changed", False)


@pytest.mark.parametrize("looks", [0, 1])
def test_a_server_that_forgets_the_file(target: LocalTarget, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """A network file system whose handle goes stale, by the first look or the last, is worth another try."""
    answers, before = [target.path.stat()] * looks, os.listdir("/proc/self/fd")

    def fstat(_descriptor: int) -> os.stat_result:
        if answers:
            return answers.pop()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patched, pytest.raises(HoldfastError) as caught:
        patched.setattr(os, "fstat", fstat)
        _read(LocalBody(target, 0, None), len(DATA))
    assert (caught.value.code, caught.value.permanent) == ("read", False)
    assert os.listdir("/proc/self/fd") == before


def test_no_descriptor_stays(target: LocalTarget) -> None:
    """Read, refused or closed twice: no file stays open."""
    before = os.listdir("/proc/self/fd")
    _read(LocalBody(target, 0, None), 1000)
    body = LocalBody(target, 0, None)
    body.close()
    body.close()
    os.utime(target.path, ns=(0, 0))
    _code(target)
    assert os.listdir("/proc/self/fd") == before
