"""The entries of archives, compared with what `tarfile` reads of them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.archive.tar import EntryKind, TarEntry, read_all_entries, read_entries
from cached.contract.errors import Permanent

NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=90), min_size=1, max_size=4
).map("/".join)
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def entries_of(data: bytes) -> list[TarEntry]:
    return list(read_entries(lambda offset, length: data[offset : offset + length], len(data), "a test"))


@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6), FORMATS)
def test_every_file_is_found_where_it_is(files: dict[str, bytes], format_: int) -> None:
    """Whatever the names and the format, each entry has the bytes that were packed, and none is left out."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=format_, encoding="utf-8") as tar:
        for path, data in files.items():
            header = tarfile.TarInfo(path)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    data = packed.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as tar:
        expected = [(member.offset_data, member.size) for member in tar.getmembers()]
    found = entries_of(data)
    assert [(entry.start, entry.size) for entry in found] == expected
    assert all(entry.kind is EntryKind.FILE for entry in found)
    for entry, content in zip(found, files.values(), strict=True):
        assert data[entry.start : entry.start + entry.size] == content


@given(st.binary(min_size=512, max_size=4096))
def test_what_is_no_archive_is_an_error_of_ours(data: bytes) -> None:
    """Any bytes are entries or a `Permanent`: nothing else is raised."""

    try:
        entries_of(data)
    except Permanent as error:
        assert error.code in ("bad_tar", "too_large")


def test_sizes_beyond_eight_gigabytes_are_read() -> None:
    """A weight file may be larger than ustar's field: the size is in a pax header, or binary."""
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        header = tarfile.TarInfo("w.bin")
        header.size = 20 * 1024**3
        head = header.tobuf(format_)
        total = len(head) + header.size + 1024

        def read(offset: int, length: int, head: bytes = head) -> bytes:
            return (head[offset : offset + length] + bytes(length))[:length]

        (entry,) = read_entries(read, total, "a test")
        assert (entry.path, entry.start, entry.size) == ("w.bin", len(head), header.size)


GNU, V7 = b"ustar  \0", bytes(8)


def head(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = tarfile.REGTYPE,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    end: bytes = b"",
) -> bytes:
    """Return a header with a right checksum; `size` as the field's bytes, or as a number."""
    size_field = size if isinstance(size, bytes) else b"%011o\0" % size
    fields = (
        name.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        size_field,
        b"00000000000\0",
        b" " * 8,
        kind,
        link.ljust(100, b"\0"),
        magic,
        bytes(80),
        prefix.ljust(167 - len(end), b"\0"),
        end,
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def packed(name: bytes, data: bytes, kind: bytes = tarfile.REGTYPE, **more: bytes) -> bytes:
    return head(name, len(data), kind, **more) + padded(data)


def pax(kind: bytes = tarfile.XHDTYPE, /, **records: str) -> bytes:
    """Return a pax header; `__` in a name is a dot."""
    lines = b""
    for name, value in records.items():
        rest = f" {name.replace('__', '.')}={value}\n".encode()
        length = len(rest) + len(str(len(rest) + 3))
        lines += str(length).encode() + rest
    return packed(b"PaxHeaders/x", lines, kind)


def long_name(name: bytes) -> bytes:
    return packed(b"././@LongLink", name, tarfile.GNUTYPE_LONGNAME, magic=GNU)


END = bytes(1024)
B = packed(b"b", b"B")
EMPTY_THEN_B = packed(b"e", b"") + B
CHECKED_BY_TAR = {
    "a hard link with its file's size": packed(b"a", b"x" * 10) + head(b"l", 10, b"1", b"a") + EMPTY_THEN_B,
    "a hard link with a pax size": packed(b"a", b"x") + pax(size="10") + head(b"l", 0, b"1", b"a") + EMPTY_THEN_B,
    "a folder with a size": head(b"d/", 10, b"5") + EMPTY_THEN_B,
    "a size for all": pax(tarfile.XGLTYPE, size="0") + head(b"a", 512) + EMPTY_THEN_B,
    "a name for all": pax(tarfile.XGLTYPE, path="g") + packed(b"a", b"A") + B,
    "a comment for all": pax(tarfile.XGLTYPE, comment="c") + packed(b"a", b"A") + B,
    "a long name, then a pax name": long_name(b"one\0") + pax(path="two") + packed(b"a", b"A"),
    "a pax name, then a long name": pax(path="two") + long_name(b"one\0") + packed(b"a", b"A"),
    "two long names": long_name(b"one\0") + long_name(b"two\0") + packed(b"a", b"A"),
    "two pax headers": pax(path="one") + pax(linkpath="two") + packed(b"a", b"A"),
    "a pax size before a long name": pax(size="3") + long_name(b"one\0") + head(b"a") + padded(b"abc") + B,
    "a long name cut by a zero": long_name(b"lo\0ng\0") + packed(b"a", b"A"),
    "an empty pax name": pax(path="") + packed(b"a", b"A"),
    "an empty pax size": pax(size="") + packed(b"a", b"A"),
    "GNU's time in the prefix's place": packed(b"a", b"A", magic=GNU, prefix=b"13245000000\00013245000000\0"),
    "rubbish in the prefix's place": packed(b"a", b"A", magic=V7, prefix=b"zz"),
    "a prefix": packed(b"a", b"A", prefix=b"p/q"),
    "a folder as a file": packed(b"a/", b"") + packed(b"a/b", b"B"),
    "a folder as a file of the oldest format": packed(b"a/", b"", tarfile.AREGTYPE, magic=V7) + packed(b"a/b", b"B"),
    "a folder by its name, with bytes": packed(b"a/", b"A") + B,
    "a folder of the oldest format, with bytes": packed(b"a/", bytes(512), tarfile.AREGTYPE, magic=V7) + B,
    "a folder by its pax name, with bytes": pax(path="d/") + packed(b"a", b"A") + B,
    "an underscore in a size": head(b"a", b"0000000001_0") + padded(b"12345678"),
    "Python's octal in a size": head(b"a", b"      0o10\0 ") + padded(b"12345678"),
    "spaces about a size": head(b"a", b"         10 ") + padded(b"12345678"),
    "a binary size": head(b"a", b"\x80" + bytes(10) + b"\x08") + padded(b"12345678"),
    "a wrong binary size": head(b"a", b"\x81" + bytes(10) + b"\x08") + padded(b"12345678"),
    "a file of contiguous blocks": packed(b"a", b"A", tarfile.CONTTYPE),
    "a name twice": packed(b"a", b"A") + packed(b"a", b"BB"),
}


@pytest.mark.parametrize("case", CHECKED_BY_TAR)
def test_what_is_read_is_what_tar_unpacks(case: str, tmp_path: Path) -> None:
    """Headers that readers disagree about are an error, or the files are those that GNU tar unpacks of them."""
    data = CHECKED_BY_TAR[case] + END
    unpacked = subprocess.run(["tar", "-C", tmp_path, "-xf", "-"], input=data, capture_output=True, check=False)
    expected = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found: dict[str, bytes] = {}
    try:
        for entry in entries_of(data):
            if entry.kind is EntryKind.LINK:
                found[entry.path] = found[entry.target]
            elif entry.kind is EntryKind.FILE:
                found[entry.path] = data[entry.start : entry.start + entry.size]
    except Permanent as error:
        assert error.code == "bad_tar"
    else:
        assert (found, unpacked.returncode) == (expected, 0)


def test_star_keeps_times_behind_its_prefix() -> None:
    """Of star's format the prefix has 131 bytes, and is not the times that follow it."""
    data = packed(b"a", b"A", prefix=b"p" * 131 + b"00000000000 00000000000 ", end=b"tar\0")
    assert [entry.path for entry in entries_of(data + END)] == ["p" * 131 + "/a"]


@pytest.mark.parametrize("options", [["--format=gnu"], ["--sparse-version=1.0"], ["--sparse-version=0.1"]])
def test_a_sparse_file_has_its_own_name_and_hides_no_other(options: list[str], tmp_path: Path) -> None:
    """A file with holes is told by the name that it has once unpacked, and the files after it are listed."""
    with (tmp_path / "holes.bin").open("wb") as file:
        file.truncate(10_000_000)
        for at in range(40):
            file.seek(at * 200_000)
            file.write(b"z" * 4096)
    (tmp_path / "next.bin").write_bytes(b"B")
    command = ["tar", "-C", str(tmp_path), *options, "--sparse", "-cf", "-", "holes.bin", "next.bin"]
    found = entries_of(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert [(entry.path, entry.kind) for entry in found] == [
        ("holes.bin", EntryKind.SPARSE),
        ("next.bin", EntryKind.FILE),
    ]


@pytest.mark.parametrize(
    "data",
    [B + bytes(512) + B + END, B + pax(path="x") + END, B + pax(path="x"), B + long_name(b"x\0") + END],
    ids=["an empty block", "a pax header at the end", "a pax header and no end", "a long name at the end"],
)
def test_an_end_that_hides_something_is_none(data: bytes) -> None:
    """An empty block with a header after it, and a header without its entry, are errors and no end."""
    with pytest.raises(Permanent, match="expected a tar archive"):
        entries_of(data)


@pytest.mark.parametrize("more", [B + END, b"rubbish", bytes(2_000_000)])
def test_nothing_follows_the_end(more: bytes) -> None:
    """A second archive behind the first, or anything but a little padding, is refused: its files would be missing."""
    data = packed(b"a", b"A") + END

    def read_all(data: bytes) -> list[TarEntry]:
        return read_all_entries(lambda offset, length: data[offset : offset + length], len(data), "a test")

    assert [entry.path for entry in read_all(data + bytes(10240))] == ["a"]
    with pytest.raises(Permanent, match="after its end"):
        read_all(data + more)
