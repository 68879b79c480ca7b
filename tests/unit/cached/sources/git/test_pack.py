"""Packs: those that Git makes, and those that lie."""

from __future__ import annotations

import hashlib
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.git.pack import Objects, PackReader, apply_delta, object_id, read_objects
from tests.support.git_host import Repository, git_host

MIB = 1 << 20
TOO_LARGE = Permanent("too_large", "too large", "make it smaller")
BLOB, OFFSET_DELTA, NAMED_DELTA = 3, 6, 7


def reader(data: bytes, piece: int = 65000) -> PackReader:
    pieces = iter([data[at : at + piece] for at in range(0, len(data), piece)])
    return PackReader(lambda: next(pieces, b""), "here")


def read(data: bytes, limit: int = MIB, piece: int = 65000) -> Objects:
    return read_objects(reader(data, piece), limit, TOO_LARGE)


def header(number: int, size: int) -> bytes:
    first, size = number << 4 | size & 15, size >> 4
    out = []
    while size:
        out.append(first | 128)
        first, size = size & 127, size >> 7
    return bytes([*out, first])


def pack(*entries: bytes, count: int | None = None) -> bytes:
    body = b"PACK" + (2).to_bytes(4, "big") + (len(entries) if count is None else count).to_bytes(4, "big")
    body += b"".join(entries)
    return body + hashlib.sha1(body).digest()


def blob(data: bytes, says: int | None = None) -> bytes:
    return header(BLOB, len(data) if says is None else says) + zlib.compress(data)


def delta(size_before: int, size_after: int, instructions: bytes) -> bytes:
    return varint(size_before) + varint(size_after) + instructions


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append(number & 127 | (128 if number >> 7 else 0))
        number >>= 7
        if not number:
            return bytes(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A pack of Git's own, with deltas of files and folders."""
    with git_host(tmp_path_factory.mktemp("git")) as host:
        repository = host.create()
        text = b"".join(b"line %d\n" % number for number in range(3000))
        for number in range(4):
            files = {f"d/file-{each}.txt": text + b"%d %d\n" % (number, each) for each in range(30)}
            repository.commit({**files, "random": bytes(range(256)) * number})
        command = ["git", "pack-objects", "--stdout", "--all", "--revs", "--delta-base-offset"]
        run = subprocess.run(command, cwd=repository.path, input=b"", capture_output=True, check=True)
        return run.stdout


@pytest.mark.parametrize("piece", [7, 65000])
def test_a_pack_of_git_is_read_whole(made: bytes, piece: int) -> None:
    """Every object of a pack that Git made is there under its id, deltas too, however the answer is cut into pieces."""
    found = read(made, 64 * MIB, piece)
    count = int.from_bytes(made[8:12], "big")
    assert len(found.by_id) == count
    assert all(object_id(kind, data) == oid for oid, (kind, data) in found.by_id.items())


def test_a_delta_may_come_before_its_base() -> None:
    """A delta is applied when its base comes, and a chain of them after each other."""
    base = b"0123456789" * 20
    first = base[:100] + b"x"
    oid, oid_of_first = (object_id("blob", each) for each in (base, first))
    second = header(NAMED_DELTA, 4 + 8) + bytes.fromhex(oid_of_first)
    made = delta(len(base), 101, bytes([0x91, 0, 100, 1]) + b"x")
    named = header(NAMED_DELTA, len(made)) + bytes.fromhex(oid) + zlib.compress(made)
    more = delta(101, 3, bytes([3]) + b"abc")
    second = header(NAMED_DELTA, len(more)) + bytes.fromhex(oid_of_first) + zlib.compress(more)
    found = read(pack(second, named, blob(base)))
    assert [data for _, data in found.by_id.values()] == [base, first, b"abc"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: pack(blob(bytes(20 * MIB))),  # a bomb: 20 KB that inflate to 20 MiB
        lambda: pack(blob(b"", says=1 << 60)),
        lambda: pack(count=2**32 - 1),
        lambda: pack(*(blob(b"%d" % number) for number in range(4000))),
        lambda: pack(blob(b"a" * 70000), _doubling(70000)),
    ],
)
def test_a_bomb_is_refused_before_it_is_inflated(make: Callable[[], bytes]) -> None:
    """What an object's header, a pack's count or a delta announces counts before a byte of it is made."""
    with pytest.raises(Permanent, match="too large"):
        read(make())


def test_a_delta_of_many_small_copies_takes_no_more_than_it_makes() -> None:
    """Memory goes by the bytes of an object, not by the instructions that make it."""
    count = 200_000
    instructions = bytes([0x90, 2]) * count  # each copies two bytes
    tracemalloc.start()
    try:
        made = apply_delta(b"ab", delta(2, 2 * count, instructions), lambda found: Transient("bad_response", found, ""))
        assert made == b"ab" * count
        assert tracemalloc.get_traced_memory()[1] < 12 * count
    finally:
        tracemalloc.stop()


def _doubling(size: int) -> bytes:
    """A delta that copies its base a thousand times."""
    made = delta(size, size * 1000, (bytes([0xF0]) + (size).to_bytes(3, "little")) * 1000)
    distance = len(blob(b"a" * size))
    encoded = bytearray([distance & 127])
    while distance := distance >> 7:
        distance -= 1
        encoded.insert(0, 128 | distance & 127)
    return header(OFFSET_DELTA, len(made)) + bytes(encoded) + zlib.compress(made)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PACK",
        b"HTTP/1.1 200 OK\r\n\r\n",
        pack(blob(b"abc"))[:-25],
        pack(blob(b"abc"), count=2),
        pack(blob(b"abc", says=2)),
        pack(blob(b"abc", says=4)),
        pack(header(5, 1) + zlib.compress(b"a")),
        pack(header(BLOB, 3) + b"not deflated"),
        pack(header(OFFSET_DELTA, 4) + b"\x05" + zlib.compress(delta(1, 1, b"\1a"))),
        pack(header(NAMED_DELTA, 4) + bytes(20) + zlib.compress(delta(1, 1, b"\1a"))),
        pack(bytes([0xFF] * 30)),
        pack(header(OFFSET_DELTA, 4) + bytes([0xFF] * 30)),
    ],
)
def test_a_pack_that_cannot_be_read_is_a_bad_response(data: bytes) -> None:
    """A pack that is cut, malformed, or lacks what it builds on is `bad_response`, with a remedy."""
    with pytest.raises(Transient) as caught:
        read(data)
    assert caught.value.code == "bad_response"
    assert caught.value.remedy


@given(st.binary(max_size=60), st.binary(max_size=40))
def test_no_delta_does_more_than_fit_or_fail(source: bytes, instructions: bytes) -> None:
    """Any bytes as a delta give an object of the announced size, or an error of ours."""
    try:
        found = apply_delta(source, instructions, lambda found: Transient("bad_response", found, "again"), _at_most)
    except HoldfastError:
        return
    assert len(found) <= MIB


def _at_most(size: int) -> None:
    if size > MIB:
        raise TOO_LARGE


@given(st.data())
def test_a_damaged_pack_has_no_wrong_object(made: bytes, data: st.DataObject) -> None:
    """A pack with flipped bytes ends with an error of ours, or with objects that have their own ids."""
    damaged = bytearray(made[:4000])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read(bytes(damaged), 8 * MIB)
    except HoldfastError:
        return
    assert all(object_id(kind, each) == oid for oid, (kind, each) in found.by_id.items())


def test_the_helpers_write_what_git_reads(tmp_path: Path) -> None:
    """The packs of this module are packs: Git indexes them."""
    with git_host(tmp_path) as host:
        repository: Repository = host.create()
        repository.git("index-pack", "--stdin", data=pack(blob(b"a" * 70000), blob(b"")))
        assert repository.git("cat-file", "-s", object_id("blob", b"a" * 70000)) == "70000"
