"""A table of blobs says what a dict would, in less memory."""

from __future__ import annotations

import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.core.blob_table import BlobTable

_FIRST = st.sampled_from(("00", "01", "7f", "ff"))  # few buckets, so that some have many blobs
_REST = st.sampled_from([digit * 62 for digit in "0123456789abcdef"] + ["0" * 61 + "1"])
_SHA256 = st.builds(str.__add__, _FIRST, _REST)
_NUMBERS = st.dictionaries(_SHA256, st.integers(0, 2**64 - 1), max_size=40)
_A, _B, _C = "aa" * 32, "ab" * 32, "cc" * 32


@given(_NUMBERS, _NUMBERS, st.lists(_SHA256), st.dictionaries(_SHA256, st.integers(0, 9), max_size=3))
def test_a_table_has_what_was_put_into_it(
    begun: dict[str, int], put: dict[str, int], deleted: list[str], few: dict[str, int]
) -> None:
    """After any puts and deletions a table has the entries of a dict with the same ones, in the order of the digits; a
    copy from before has those of before."""
    table, model = BlobTable(begun), dict(begun)
    before = table.copy()
    for sha256, number in put.items():
        table[sha256] = model[sha256] = number
    for sha256 in deleted:
        assert table.pop(sha256, None) == model.pop(sha256, None)
    table.put_all(few)
    model |= few
    assert list(table.items()) == sorted(model.items())
    assert (len(table), table.total()) == (len(model), sum(model.values()))
    for sha256 in (*put, *deleted):
        assert (sha256 in table, table.get(sha256, -1)) == (sha256 in model, model.get(sha256, -1))
    assert list(before.items()) == sorted(begun.items())


@given(_NUMBERS)
def test_a_packed_table_is_unpacked_to_the_same(numbers: dict[str, int]) -> None:
    """The bytes of a table make the same table."""
    hashes, packed = BlobTable(numbers).pack()
    assert dict(BlobTable.unpack(memoryview(hashes), packed)) == numbers


@given(_NUMBERS, _NUMBERS)
def test_tables_are_compared_as_their_entries_are(one: dict[str, int], two: dict[str, int]) -> None:
    """A blob differs where the numbers do, with 0 for a missing one, and is missing where the other table has none."""
    mine, theirs = BlobTable(one), BlobTable(two)
    differing = {sha256 for sha256 in one.keys() | two.keys() if one.get(sha256, 0) != two.get(sha256, 0)}
    assert sorted(mine.find_differing(theirs)) == sorted(differing)
    assert sorted(mine.find_missing(theirs)) == sorted(one.keys() - two.keys())


@given(_NUMBERS, st.dictionaries(_SHA256, st.integers(0, 2), max_size=40))
def test_other_numbers_of_the_same_blobs(blobs: dict[str, int], numbers: dict[str, int]) -> None:
    """The numbers that a table has of another one's blobs make a table of those that are not 0."""
    table = BlobTable(blobs)
    renumbered = table.renumber(BlobTable(numbers).align(table))
    assert dict(renumbered) == {sha256: number for sha256, number in numbers.items() if number and sha256 in blobs}
    assert sorted(renumbered.find_above(1)) == sorted(sha256 for sha256, number in renumbered.items() if number > 1)


def test_a_count_tells_in_how_many_groups_a_blob_is() -> None:
    """A blob that a group has twice counts once for it."""
    groups = [bytes.fromhex(_A + _B + _A), bytes.fromhex(_B), b""]
    assert dict(BlobTable.count(groups)) == {_A: 1, _B: 2}


def test_a_hash_is_not_found_across_two_others() -> None:
    """The end of one hash and the beginning of the next are no hash."""
    one, two = "00" + "11" * 31, "00" + "11" * 30 + "12"
    across = (one + two)[62:126]
    assert across not in BlobTable({one: 1, two: 2})
    shifted = "00" * 31 + "01"
    assert shifted not in BlobTable({"00" * 32: 1, "00" + "01" * 31: 2})


@pytest.mark.parametrize("hashes", [_B + _A, _A + _A, _A, _C + _A])
def test_what_is_no_table_is_refused(hashes: str) -> None:
    """Hashes that are not in order, appear twice, or have no number are no table."""
    with pytest.raises(ValueError, match=r"sorted|2 numbers"):
        BlobTable.unpack(memoryview(bytes.fromhex(hashes)), array("Q", (1, 2)))


def test_a_name_that_is_no_sha256_is_refused() -> None:
    """A table has no entry that no blob can have."""
    table = BlobTable()
    for name in ("", "aa", _A + "aa", "x" * 64):
        with pytest.raises(ValueError, match="hexadecimal"):
            table[name] = 1


def test_a_blob_takes_little_more_than_40_bytes() -> None:
    """Ten thousand blobs take 40 bytes each, and a constant for the buckets."""
    blobs = {f"{number * 7919 % 65536:04x}" * 16: number for number in range(10_000)}
    tracemalloc.start()
    try:
        table = BlobTable(blobs)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 40 * len(table) + 256 * 300
