"""The entries of a tar archive, found by reading its headers only.

Law: pure; bytes come from the given function, in reads of bounded size and number. An archive that contradicts itself
is an error, never a shorter list: a missing file must not go unnoticed. Formats: POSIX.1-2001 (ustar, pax), GNU tar's
long names. `tarfile` parses single headers; its reader takes a damaged header for the end of the archive.
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
_MAX_RECORD_BYTES = 1024 * 1024  # of one pax header or long name
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_USED, _SPARSE = frozenset({"path", "linkpath", "size"}), "GNU.sparse."
_GLOBAL, _LOCAL = tarfile.XGLTYPE, (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class EntryKind(Enum):
    """What an entry is. `LINK`: a hard link to an earlier entry; `OTHER`: no content (a symlink, a device)."""

    FILE = auto()
    FOLDER = auto()
    LINK = auto()
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
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    while total is None or at + BLOCK <= total:
        block = read(at, BLOCK)
        if not block:
            return None  # some writers leave the two empty blocks out
        if len(block) < BLOCK:
            raise bad_tar(where, f"it ends within the header at byte {at}")
        if not any(block):
            return at + BLOCK
        count += 1
        if count > max_entries:
            raise Permanent("too_large", f"{where}: expected at most {max_entries} entries", "split the archive")
        header = _header(block, at, where)
        size = _size(header.size, own.get("size"), at, where)
        start, at = at + BLOCK, at + BLOCK + -(-size // BLOCK) * BLOCK
        if total is not None and start + size > total:
            raise bad_tar(where, f"the entry at byte {start - BLOCK} promises {size} bytes, more than are left")
        if header.type in (_GLOBAL, *_LOCAL, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if size > _MAX_RECORD_BYTES:
                raise bad_tar(where, f"a header of {size} bytes, expected at most {_MAX_RECORD_BYTES}")
            data = read(start, size)
            if len(data) < size:
                raise bad_tar(where, f"it ends within the header at byte {start - BLOCK}")
            if header.type == tarfile.GNUTYPE_LONGNAME:
                own["path"] = _text(data.rstrip(b"\0"))
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                own["linkpath"] = _text(data.rstrip(b"\0"))
            else:
                (shared if header.type == _GLOBAL else own).update(_pax(data, where))
            continue
        given, own = {**shared, **own}, {}
        yield _entry(header, given, start, size)
    if at < total and any(read(at, total - at)):
        raise bad_tar(where, f"it ends within the header at byte {at}")
    return None


def bad_tar(where: str, problem: str) -> Permanent:
    """Return the error of an archive that is none, or a damaged one."""
    return Permanent("bad_tar", f"{where}: expected a tar archive: {problem}", "pack it again")


def _header(block: bytes, at: int, where: str) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        compressed = {b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstd data"} if at == 0 else {}
        found = next((name for magic, name in compressed.items() if block.startswith(magic)), "no header")
        raise bad_tar(where, f"found {found} at byte {at}") from error


def _size(found: int, given: str | None, at: int, where: str) -> int:
    if given is not None:
        if not (given.isascii() and given.isdecimal() and len(given) <= 18):
            raise bad_tar(where, f"the size of the entry at byte {at} is no number")
        found = int(given)
    if found < 0:
        raise bad_tar(where, f"the size of the entry at byte {at} is negative")
    return found


def _entry(header: tarfile.TarInfo, given: dict[str, str], start: int, size: int) -> TarEntry:
    path = _plain(given.get("path", header.name))
    is_sparse = header.type == tarfile.GNUTYPE_SPARSE or _SPARSE in given
    if header.type in _FILES and not is_sparse:
        # In old archives a folder is a file whose name ends with a slash.
        is_folder = header.type == tarfile.AREGTYPE and given.get("path", header.name).endswith("/")
        return TarEntry(path, EntryKind.FOLDER if is_folder else EntryKind.FILE, start, size)
    if header.type == tarfile.DIRTYPE:
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
        if name in _USED or name.startswith(_SPARSE):  # nothing else is kept: records may be many, and long
            found[_SPARSE if name.startswith(_SPARSE) else name] = _text(data[match.end() : end - 1])
        at = end
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _plain(path: str) -> str:
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return "" if path == "." else path.rstrip("/")
