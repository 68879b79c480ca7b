"""A number for each blob of a node: its size, or how many snapshots link it.

Law: pure. A node may have hundreds of thousands of blobs: a table takes 40 bytes for each, a dict with its keys 160.
The blobs lie in buckets by their first byte, as they do in folders on the disk, each bucket sorted; a change replaces
its bucket, so that a thread may read while another one writes, and a copy shares what does not change.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from itertools import pairwise

_HASH_BYTES = 32
_DIGITS = 2 * _HASH_BYTES
_BUCKETS = 256
_FEW = 16  # a bucket with more hashes than that for each new one is not made anew

_Bucket = tuple[bytes, "array[int]"]  # the hashes, sorted, and their numbers
_EMPTY: _Bucket = (b"", array("Q"))


class BlobTable(MutableMapping[str, int]):
    """Numbers from 0 to 2^64 - 1 by sha256 as 64 lower-case hexadecimal digits; iterates in the order of the digits."""

    __slots__ = ("_buckets", "_length")

    def __init__(self, numbers: Mapping[str, int] | None = None) -> None:
        self._buckets = [_EMPTY] * _BUCKETS
        self._length = 0
        if numbers:
            self.put_all(numbers)

    @classmethod
    def unpack(cls, hashes: memoryview, numbers: array[int]) -> BlobTable:
        """Return the table of the sha256 in `hashes`, 32 bytes each, and their numbers. Raises ValueError if those are
        not sorted, or a number is missing."""
        if len(hashes) != _HASH_BYTES * len(numbers):
            raise ValueError(f"{len(numbers)} numbers for {len(hashes)} bytes of sha256")
        table, at, end = cls(), 0, len(numbers)
        for first in range(_BUCKETS):
            begin = at
            while at < end and hashes[_HASH_BYTES * at] == first:
                at += 1
            table._set_bucket(first, bytes(hashes[_HASH_BYTES * begin : _HASH_BYTES * at]), numbers[begin:at])
        for hashed, _numbers in table._buckets:
            found = _split(hashed)
            if any(one >= following for one, following in pairwise(found)):
                raise ValueError("the sha256 are not sorted")
        if at != end:
            raise ValueError("the sha256 are not sorted")
        return table

    @classmethod
    def count(cls, groups: Iterable[bytes]) -> BlobTable:
        """Return in how many of `groups`, each the sha256 of some blobs at 32 bytes each, each blob is."""
        found = [bytearray() for _ in range(_BUCKETS)]
        for group in groups:
            for hashed in set(_split(group)):
                found[hashed[0]] += hashed
        table = cls()
        for first, hashes in enumerate(found):
            table._fill_bucket(first, Counter(_split(bytes(hashes))))
        return table

    def pack(self) -> tuple[bytes, array[int]]:
        """Return the sha256 of all blobs, sorted, 32 bytes each, and their numbers."""
        numbers = array("Q")
        for _hashes, of_bucket in self._buckets:
            numbers += of_bucket
        return b"".join(hashes for hashes, _numbers in self._buckets), numbers

    def copy(self) -> BlobTable:
        """Return a table that later changes of this one do not change."""
        table = BlobTable()
        table._buckets, table._length = self._buckets.copy(), self._length
        return table

    def total(self) -> int:
        """Return the sum of the numbers."""
        return sum(sum(numbers) for _hashes, numbers in self._buckets)

    def put_all(self, numbers: Mapping[str, int]) -> None:
        """Do the same as `update`, faster for many blobs."""
        found: dict[int, dict[bytes, int]] = {}
        for sha256, number in numbers.items():
            key = _pack_key(sha256)
            found.setdefault(key[0], {})[key] = number
        for first, added in found.items():
            if len(added) * _FEW < len(self._buckets[first][1]):
                for key, number in added.items():
                    self._put(key, number)
            else:
                self._fill_bucket(first, self._unpack_bucket(first) | added)

    def align(self, other: BlobTable) -> array[int]:
        """Return the numbers of the blobs of `other` in their order, 0 for those that are not here."""
        numbers = array("Q")
        for first, (mine, theirs) in enumerate(zip(self._buckets, other._buckets, strict=True)):
            if mine[0] == theirs[0]:
                numbers += mine[1]
            else:
                found = self._unpack_bucket(first)
                numbers.extend([found.get(key, 0) for key in _split(theirs[0])])
        return numbers

    def renumber(self, numbers: array[int]) -> BlobTable:
        """Return a table of the same blobs with `numbers`, in their order, but for those whose number is 0. The tables
        share their hashes. Raises ValueError if a number is missing."""
        if len(numbers) != self._length:
            raise ValueError(f"{len(numbers)} numbers for {self._length} blobs")
        table, at = BlobTable(), 0
        for first, (hashes, mine) in enumerate(self._buckets):
            of_bucket = numbers[at : at + len(mine)]
            at += len(mine)
            if 0 in of_bucket:
                table._fill_bucket(first, {key: n for key, n in zip(_split(hashes), of_bucket, strict=True) if n})
            else:
                table._set_bucket(first, hashes, of_bucket)
        return table

    def find_above(self, bound: int) -> list[str]:
        """Return the sha256 whose numbers are greater than `bound`."""
        return [
            key.hex()
            for hashes, numbers in self._buckets
            if numbers and max(numbers) > bound
            for key, number in zip(_split(hashes), numbers, strict=True)
            if number > bound
        ]

    def find_differing(self, other: BlobTable) -> list[str]:
        """Return the sha256 whose numbers differ; a blob that is missing in one table has 0 there."""
        differing: list[str] = []
        for first, (mine, theirs) in enumerate(zip(self._buckets, other._buckets, strict=True)):
            if mine != theirs:
                one, two = self._unpack_bucket(first), other._unpack_bucket(first)
                differing += (key.hex() for key in one.keys() | two.keys() if one.get(key, 0) != two.get(key, 0))
        return differing

    def find_missing(self, other: BlobTable) -> list[str]:
        """Return the sha256 that are not in `other`."""
        missing: list[str] = []
        for (mine, _), (theirs, _) in zip(self._buckets, other._buckets, strict=True):
            if mine != theirs:
                missing += (key.hex() for key in set(_split(mine)).difference(_split(theirs)))
        return missing

    def __getitem__(self, sha256: str) -> int:
        key = _pack_key(sha256)
        hashes, numbers = self._buckets[key[0]]
        if (at := _find(hashes, key)) is None:
            raise KeyError(sha256)
        return numbers[at]

    def __contains__(self, sha256: object) -> bool:
        if not isinstance(sha256, str):
            return False
        key = _pack_key(sha256)
        return _find(self._buckets[key[0]][0], key) is not None

    def __setitem__(self, sha256: str, number: int) -> None:
        self._put(_pack_key(sha256), number)

    def __delitem__(self, sha256: str) -> None:
        key = _pack_key(sha256)
        hashes, numbers = self._buckets[key[0]]
        if (at := _find(hashes, key)) is None:
            raise KeyError(sha256)
        cut = _HASH_BYTES * at
        self._set_bucket(key[0], hashes[:cut] + hashes[cut + _HASH_BYTES :], numbers[:at] + numbers[at + 1 :])

    def __iter__(self) -> Iterator[str]:
        for hashes, _numbers in self._buckets:
            digits = hashes.hex()
            yield from (digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS))

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"BlobTable({dict(self)})"

    def _put(self, key: bytes, number: int) -> None:
        hashes, numbers = self._buckets[key[0]]
        at = _find(hashes, key)
        if at is None:
            at = _count_before(hashes, key)
            cut = _HASH_BYTES * at
            hashes, following = hashes[:cut] + key + hashes[cut:], at
        else:
            following = at + 1
        self._set_bucket(key[0], hashes, numbers[:at] + array("Q", (number,)) + numbers[following:])

    def _unpack_bucket(self, first: int) -> dict[bytes, int]:
        hashes, numbers = self._buckets[first]
        return dict(zip(_split(hashes), numbers, strict=True))

    def _fill_bucket(self, first: int, numbers: Mapping[bytes, int]) -> None:
        keys = sorted(numbers)
        self._set_bucket(first, b"".join(keys), array("Q", [numbers[key] for key in keys]))

    def _set_bucket(self, first: int, hashes: bytes, numbers: array[int]) -> None:
        self._length += len(numbers) - len(self._buckets[first][1])
        self._buckets[first] = (hashes, numbers)


def _pack_key(sha256: str) -> bytes:
    key = bytes.fromhex(sha256)
    if len(key) != _HASH_BYTES:
        raise ValueError(f"expected a sha256 as 64 hexadecimal digits, found {sha256[:80]!r}")
    return key


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + _HASH_BYTES] for at in range(0, len(hashes), _HASH_BYTES)]


def _find(hashes: bytes, key: bytes) -> int | None:
    """Return the number of hashes before `key`; None if it is not there."""
    at = hashes.find(key)  # faster than a search by halves up to a million blobs
    while at > 0 and at % _HASH_BYTES:  # the end of one and the beginning of another
        at = hashes.find(key, at + 1)
    return None if at < 0 else at // _HASH_BYTES


def _count_before(hashes: bytes, key: bytes) -> int:
    """Return the number of hashes that are less than `key`."""
    low, high = 0, len(hashes) // _HASH_BYTES
    while low < high:
        middle = (low + high) // 2
        if hashes[_HASH_BYTES * middle : _HASH_BYTES * middle + _HASH_BYTES] < key:
            low = middle + 1
        else:
            high = middle
    return low
