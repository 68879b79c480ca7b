"""The entries of a tar archive, found by reading its headers only.

Law: pure; bytes come from the given function, in reads of bounded size and number. An archive that contradicts itself
is an error, never a shorter list: a missing file must not go unnoticed. Where GNU tar and `tarfile` read other files
out of the same bytes, or one of them fails, that is an error too. Formats: POSIX.1-2001 (ustar, pax), GNU tar's long
names. `tarfile` parses single headers; its reader takes a damaged header for the end of the archive.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum, auto

from cached.contract.errors import Permanent

BLOCK = 512
MAX_ENTRIES = 100_000
MAX_AFTER_END_BYTES = 1024 * 1024  # tar pads to a record of 10 KB
_MAX_RECORD_BYTES = 1024 * 1024  # of one pax header or long name
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_USED, _SPARSE, _SPARSE_NAME = frozenset({"path", "linkpath", "size"}), "GNU.sparse.", "GNU.sparse.name"
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_MORE = (tarfile.XGLTYPE, tarfile.XHDTYPE, *_LONG)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Their size is no number of bytes that follow, whatever it says: some writers give a hard link the size of its file.
_WITHOUT_BYTES = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_SIZE = re.compile(rb" *[0-7]*[ \0]*")  # octal; `int` reads underscores too, and `0o`
_BINARY_SIZE = (0x80, 0xFF)  # the first byte of a size in base 256
_EXTENDED, _EXTENDED_MORE = 482, 504  # in an old sparse header, and in each block that follows it: whether one does


class EntryKind(Enum):
    """What an entry is. `LINK`: a hard link to an earlier entry; `SPARSE`: a file of which the archive leaves the holes
    out; `OTHER`: no content (a symlink, a device)."""

    FILE = auto()
    FOLDER = auto()
    LINK = auto()
    SPARSE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry. `path`: as written, without a leading `./` and a trailing slash; `start`: the offset of its bytes in
    the archive; `target`: of a hard link, written as a path."""

    path: str
    kind: EntryKind
    start: int
    size: int
    target: str = ""


Read = Callable[[int, int], bytes]  # the bytes [offset, offset + length), fewer only at the end of the archive


def read_entries(
    read: Read, total: int | None, where: str, max_entries: int = MAX_ENTRIES
) -> Generator[TarEntry, None, int | None]:
    """Yield the entries of an archive of `total` bytes in order (None: a stream, read from front to back); return the
    offset after the block that marks its end, None without one. Raises `Permanent` (`bad_tar`), and as `read`."""
    at, count = 0, 0
    own: dict[str, str] = {}  # of the headers before an entry that say more of it
    kinds: set[bytes] = set()  # of these headers
    while total is None or at + BLOCK <= total:
        block = read(at, BLOCK)
        if not block:
            break  # some writers leave the two empty blocks out
        if len(block) < BLOCK:
            raise bad_tar(where, f"it ends within the header at byte {at}")
        if not any(block):
            if kinds or any(read(at + BLOCK, BLOCK)):
                raise bad_tar(where, f"an empty block at byte {at}, before its end")
            return at + BLOCK
        count += 1
        if count > max_entries:
            raise Permanent("too_large", f"{where}: expected at most {max_entries} entries", "split the archive")
        header = _header(block, at, where)
        size = _size(header, None if header.type in _MORE else own.get("size"), at, where)
        start = at + BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE and block[_EXTENDED]:
            start = _skip_extension(read, start, where)
        at = start + -(-size // BLOCK) * BLOCK
        if total is not None and start + size > total:
            raise bad_tar(where, f"the entry at byte {start - BLOCK} promises {size} bytes, more than are left")
        if header.type in _MORE:
            found = _read_more(read, header, start, size, where)
            if header.type == tarfile.XGLTYPE:
                if found:
                    raise bad_tar(where, f"a global pax header that gives all entries one {min(found)!r}")
                continue
            if header.type in kinds or found.keys() & own.keys():
                raise bad_tar(where, f"two headers that say what the entry at byte {at} is")
            kinds.add(header.type)
            own.update(found)
            continue
        yield _entry(header, own, start, size, where)
        own, kinds = {}, set()
    if kinds or (total is not None and at < total and any(read(at, total - at))):
        raise bad_tar(where, f"it ends within the header at byte {at}")
    return None


def read_all_entries(read: Read, total: int, where: str) -> list[TarEntry]:
    """Return the entries of an archive of `total` bytes; raises as `read_entries`, and where more than a little padding
    follows its end."""
    entries: list[TarEntry] = []
    reading = read_entries(read, total, where)
    while True:
        try:
            entries.append(next(reading))
        except StopIteration as ended:
            end = total if ended.value is None else int(ended.value)
            if total - end > MAX_AFTER_END_BYTES or any(read(end, total - end)):
                raise bytes_after_end(where) from None
            return entries


def bytes_after_end(where: str) -> Permanent:
    """Return the error of an archive that goes on after the block that marks its end."""
    return bad_tar(where, "there are bytes after its end, which no file promises")


def bad_tar(where: str, problem: str) -> Permanent:
    """Return the error of an archive that is none, or a damaged one."""
    return Permanent("bad_tar", f"{where}: expected a tar archive: {problem}", "pack it again")


def _header(block: bytes, at: int, where: str) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        compressed = {b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstd data"} if at == 0 else {}
        found = next((name for magic, name in compressed.items() if block.startswith(magic)), "no header")
        raise bad_tar(where, f"found {found} at byte {at}") from error
    if block[124] not in _BINARY_SIZE and not _SIZE.fullmatch(block, 124, 136):
        raise bad_tar(where, f"the size of the entry at byte {at} is no number")
    header.type = block[156:157]
    if header.type == tarfile.SOLARIS_XHDTYPE:
        header.type = tarfile.XHDTYPE
    header.name = _text(_cut(block[:100]))
    if block[257:263] == b"ustar\0":  # GNU's own format and the oldest one have other things in the prefix's place
        is_star = block[508:512] == b"tar\0"
        prefix = _text(_cut(block[345 : 476 if is_star else 500]))
        header.name = f"{prefix}/{header.name}" if prefix else header.name
    return header


def _size(header: tarfile.TarInfo, given: str | None, at: int, where: str) -> int:
    found = header.size
    if given is not None:
        if not (given.isascii() and given.isdecimal() and len(given) <= 18):
            raise bad_tar(where, f"the size of the entry at byte {at} is no number")
        found = int(given)
    if found < 0:
        raise bad_tar(where, f"the size of the entry at byte {at} is negative")
    return 0 if header.type in _WITHOUT_BYTES else found


def _skip_extension(read: Read, start: int, where: str) -> int:
    """Return where the bytes of an old sparse file begin: after the blocks that list more of its holes."""
    for end in range(start + BLOCK, start + _MAX_RECORD_BYTES, BLOCK):
        block = read(end - BLOCK, BLOCK)
        if len(block) < BLOCK:
            break
        if not block[_EXTENDED_MORE]:
            return end
    raise bad_tar(where, f"a list of holes at byte {start} without an end")


def _read_more(read: Read, header: tarfile.TarInfo, start: int, size: int, where: str) -> dict[str, str]:
    """Return what a header that stands before an entry says of it."""
    if size > _MAX_RECORD_BYTES:
        raise bad_tar(where, f"a header of {size} bytes, expected at most {_MAX_RECORD_BYTES}")
    data = read(start, size)
    if len(data) < size:
        raise bad_tar(where, f"it ends within the header at byte {start - BLOCK}")
    name = _LONG.get(header.type)
    return _pax(data, where) if name is None else {name: _text(_cut(data))}


def _entry(header: tarfile.TarInfo, given: dict[str, str], start: int, size: int, where: str) -> TarEntry:
    written = given.get(_SPARSE_NAME) or given.get("path", header.name)
    path = _plain(written)
    if header.type == tarfile.GNUTYPE_SPARSE or any(name.startswith(_SPARSE) for name in given):
        return TarEntry(path, EntryKind.SPARSE, start, size)
    if header.type in _FILES and not written.endswith("/"):
        return TarEntry(path, EntryKind.FILE, start, size)
    if header.type in _FILES and size:
        raise bad_tar(where, f"{path[:200]!r} is a folder by its name, with {size} bytes")
    if header.type in (tarfile.DIRTYPE, *_FILES):  # in old archives a folder is a file whose name ends with a slash
        return TarEntry(path, EntryKind.FOLDER, start, 0)
    if header.type == tarfile.LNKTYPE:
        return TarEntry(path, EntryKind.LINK, start, 0, _plain(given.get("linkpath", header.linkname)))
    return TarEntry(path, EntryKind.OTHER, start, size)


def _pax(data: bytes, where: str) -> dict[str, str]:
    found, at = {}, 0
    while at < len(data) and data[at]:
        match = _PAX_RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise bad_tar(where, "a pax header that is malformed")
        name = _text(match[2])
        if name in _USED or name == _SPARSE_NAME:  # nothing else is kept: records may be many, and long
            found[name] = _text(data[match.end() : end - 1])
            if not found[name] or "\0" in found[name]:
                raise bad_tar(where, f"a pax header with an empty or cut {name!r}")
        elif name.startswith(_SPARSE):
            found[_SPARSE] = ""
        at = end
    return found


def _cut(field: bytes) -> bytes:
    """Return the text of a field: up to its first zero."""
    return field.partition(b"\0")[0]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _plain(path: str) -> str:
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return "" if path == "." else path.rstrip("/")
