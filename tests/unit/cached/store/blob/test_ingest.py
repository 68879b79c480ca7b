"""A partial blob: only what was recorded is trusted, and only for the same object."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import Layout
from cached.store.blob import ingest
from cached.store.blob.ingest import Ingest, IngestKey
from cached.store.disk import durable
from tests.support.filling import aligned, tree

MIB = 1024 * 1024
KEY = IngestKey("a" * 64, "v1", 3 * MIB + 5)


@contextmanager
def opened(layout: Layout, key: IngestKey = KEY) -> Iterator[Ingest]:
    made = Ingest(layout.ingest / key.id, key)
    try:
        yield made
    finally:
        made.close()


def _begun(layout: Layout) -> Path:
    """A partial blob with its first and its last MiB or so recorded; returns its folder."""
    with opened(layout) as made:
        made.write(aligned(b"a" * MIB), MIB, 0)
        made.write(aligned(b"c" * (MIB + 5)), MIB + 5, 2 * MIB)
        made.record([(0, MIB), (2 * MIB, 3 * MIB + 5)])
        return made.folder


def test_bytes_land_where_they_belong(layout: Layout) -> None:
    """Pieces written in any order, the last of odd length, make a file of exactly the size, read-only."""
    with opened(layout) as made:
        made.write(aligned(b"c" * (MIB + 5)), MIB + 5, 2 * MIB)
        made.write(aligned(b"a" * MIB), MIB, 0)
        made.write(aligned(b"b" * MIB), MIB, MIB)
        path = made.finish(3 * MIB + 5)
    assert path.read_bytes() == b"a" * MIB + b"b" * MIB + b"c" * (MIB + 5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_reading_back(layout: Layout) -> None:
    """What was written is read back, past the page cache too."""
    with opened(layout) as made:
        made.write(aligned(b"x" * MIB), MIB, MIB)
        buffer = aligned(bytes(MIB))
        assert made.read(buffer, MIB) == MIB
        assert bytes(buffer) == b"x" * MIB


def test_a_file_system_that_refuses_direct_writes_is_written_through_the_cache(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where O_DIRECT can be opened with but not written or read with, bytes go through the page cache."""

    def refusing(step: Callable[..., int]) -> Callable[..., int]:
        def refuse(descriptor: int, *rest: object) -> int:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return step(descriptor, *rest)

        return refuse

    monkeypatch.setattr(os, "pwrite", refusing(os.pwrite))
    monkeypatch.setattr(os, "preadv", refusing(os.preadv))
    with opened(layout) as made:
        made.write(aligned(b"x" * MIB), MIB, MIB)
        buffer = aligned(bytes(MIB))
        assert made.read(buffer, MIB) == MIB
        assert bytes(buffer) == b"x" * MIB


def test_space_is_taken_at_once(layout: Layout) -> None:
    """A partial blob of known size has its disk blocks before its first byte."""
    with opened(layout):
        assert ingest.allocated_bytes(layout.ingest / KEY.id) >= 3 * MIB + 5


def test_it_goes_on_from_the_record(layout: Layout) -> None:
    """Opened again for the same object, it has the ranges that were recorded, and their bytes."""
    _begun(layout)
    with opened(layout) as again:
        assert again.recorded() == [(0, MIB), (2 * MIB, 3 * MIB + 5)]
        buffer = aligned(bytes(MIB))
        again.read(buffer, 0)
        assert bytes(buffer) == b"a" * MIB


def test_unrecorded_bytes_do_not_count(layout: Layout) -> None:
    """Bytes that were written and not recorded are forgotten."""
    with opened(layout) as made:
        made.write(aligned(b"a" * MIB), MIB, 0)
    with opened(layout) as again:
        assert again.recorded() == []


@pytest.mark.parametrize(
    "key",
    [IngestKey(KEY.id, "v2", KEY.size), IngestKey(KEY.id, "v1", 3 * MIB), IngestKey(KEY.id, "v1", None)],
    ids=["validator", "size", "unknown size"],
)
def test_another_object_starts_over(layout: Layout, key: IngestKey) -> None:
    """A record is used only with the same validator and the same, known size."""
    _begun(layout)
    with opened(layout, key) as again:
        assert again.recorded() == []


def test_without_a_validator_nothing_is_resumed(layout: Layout) -> None:
    """Where the source says nothing that would change with the bytes, each attempt starts over."""
    key = IngestKey(KEY.id, "", KEY.size)
    with opened(layout, key) as made:
        made.write(aligned(b"a" * MIB), MIB, 0)
        made.record([(0, MIB)])
    with opened(layout, key) as again:
        assert again.recorded() == []


def _state(**changes: object) -> bytes:
    state = {"done": [[0, MIB], [2 * MIB, 3 * MIB + 5]], "size": KEY.size, "validator": "v1"}
    return json.dumps(state | changes).encode()


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{",
        _state()[:-5],
        b"\xff\xfe",
        b"null",
        b"[]",
        b"7",
        b"[" * 100_000,
        _state(done=None),
        _state(done="ab"),
        _state(done=[[0]]),
        _state(done=[[0, 4 * MIB]]),
        _state(done=[[-4096, MIB]]),
        _state(done=[[MIB, 0]]),
        _state(done=[[1, MIB]]),
        _state(done=[[0, MIB + 1]]),
        _state(done=[["0", "x"]]),
        _state(done=[[0, 1e999]]),
        _state(size="3145733"),
        _state(size=-1),
        _state(size=True),
        _state(committed="b" * 64),
        b'{"done": []}',
    ],
)
def test_a_record_that_is_none_is_not_trusted(layout: Layout, state: bytes) -> None:
    """Whatever is in the record's place: what does not make sense counts for nothing, and the fetch starts over."""
    folder = _begun(layout)
    (folder / "state.json").write_bytes(state)
    with opened(layout) as again:
        assert again.recorded() == []
        assert not (folder / "state.json").exists()


@pytest.mark.parametrize("size", [None, 0, 2 * MIB])
def test_a_record_of_more_than_is_there(layout: Layout, size: int | None) -> None:
    """A record of bytes that the file has not got counts for nothing."""
    folder = _begun(layout)
    if size is None:
        (folder / "data").unlink()
    else:
        os.truncate(folder / "data", size)
    with opened(layout) as again:
        assert again.recorded() == []


def test_finished_and_not_committed_is_resumed(layout: Layout) -> None:
    """A crash between finishing and committing leaves a file that its owner, root or not, can write to again."""
    folder = _begun(layout)
    with opened(layout) as made:
        made.finish(3 * MIB + 5)
    with opened(layout) as again:
        assert again.recorded() == [(0, MIB), (2 * MIB, 3 * MIB + 5)]
        assert stat.S_IMODE((folder / "data").stat().st_mode) & 0o200


def test_discard_leaves_nothing(layout: Layout) -> None:
    """Discarded: no bytes, no record, no folder; and once more does no harm."""
    made = Ingest(layout.ingest / KEY.id, KEY)
    made.record([])
    made.discard()
    made.discard()
    assert tree(layout.ingest) == set()


def test_descriptors_are_closed(layout: Layout) -> None:
    """However it ends, it leaves no file open."""
    before = os.listdir("/proc/self/fd")
    for end in ("close", "discard", "finish"):
        made = Ingest(layout.ingest / KEY.id, KEY)
        made.finish(5) if end == "finish" else getattr(made, end)()
    assert os.listdir("/proc/self/fd") == before


def test_bytes_a_failed_sync_lost_are_never_recorded(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed write-back once: a later sync that succeeds proves nothing about those bytes."""
    real, failures = os.fdatasync, [OSError(errno.EIO, "Input/output error")]

    def fail_once(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        real(descriptor)

    with opened(layout) as made:
        made.write(aligned(b"a" * MIB), MIB, 0)
        monkeypatch.setattr(os, "fdatasync", fail_once)
        for _ in range(2):
            with pytest.raises(Transient, match="recording"):
                made.record([(0, MIB)])
        assert made.recorded() == []
    with opened(layout) as again:
        assert again.recorded() == []


@contextmanager
def unchangeable(folder: Path) -> Iterator[None]:
    """A folder that refuses new names and the removal of old ones, even to root."""
    if subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
        pytest.skip("this file system has no immutable flag, or this user may not set it")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def test_a_disk_that_refuses_is_an_error_of_ours(layout: Layout) -> None:
    """Whichever step the disk refuses, the error is ours and says where."""
    folder = _begun(layout)
    with opened(layout) as made, unchangeable(folder):
        steps: list[Callable[[], object]] = [
            made.discard,
            lambda: made.record([(0, MIB)]),
            lambda: ingest.forget(layout, KEY.id),
            lambda: Ingest(folder, IngestKey(KEY.id, "v2", KEY.size)),
        ]
        for step in steps:
            with pytest.raises(HoldfastError) as caught:
                step()
            assert str(folder) in caught.value.message
            assert isinstance(caught.value.__cause__, OSError)


def test_what_never_fits_is_refused_and_leaves_nothing(layout: Layout) -> None:
    """More than the disk has is refused before the first byte, and takes nothing."""
    key = IngestKey(KEY.id, "v1", 1 << 50)
    with pytest.raises(Transient) as caught:
        Ingest(layout.ingest / key.id, key)
    assert caught.value.code in ("no_space", "disk")
    assert tree(layout.ingest) == set()


@pytest.mark.parametrize("committed", ["../../x", 7, None, "B" * 64, ["b" * 64]])
def test_a_note_that_is_no_digest(layout: Layout, committed: object) -> None:
    """A note names a sha256, or nothing."""
    folder = layout.ingest / KEY.id
    durable.make_dir(folder, 0o700)
    (folder / "state.json").write_bytes(_state(committed=committed, done=[]))
    assert ingest.committed_as(layout, KEY.id) is None
