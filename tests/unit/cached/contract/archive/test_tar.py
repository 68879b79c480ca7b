"""The entries of archives, compared with what `tarfile` reads of them."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from cached.contract.archive.tar import EntryKind, TarEntry, read_entries
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
