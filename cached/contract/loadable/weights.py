"""Whether a file of weights is whole, by its beginning and its end.

Law: reads only headers and a file's last bytes, in pieces. A header's JSON is scanned, not parsed: to parse ten
megabytes would keep all other threads of the process waiting.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cached.contract.loadable import gguf
from cached.contract.loadable.first_bytes import LOOKED_AT_BYTES

# Returns at most so many bytes of a file from an offset: `read(path, offset, length)`.
Read = Callable[[str, int, int], bytes]

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_PIECE_BYTES = 1 << 20
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]')
_LONGEST_OFFSETS = 256
_JSON_SPACE = b" \t\r\n"
_ZIP = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"
_MAX_ZIP_END_BYTES = 22 + 65_535  # the record, and the longest comment
_GGUF = (b"GGUF", b"FUGG")  # little and big endian
_GGUF_HEADER_BYTES = 24
_HDF5 = b"\x89HDF\r\n\x1a\n"


def find_damage(path: str, size: int, beginning: bytes, read: Read) -> str | None:
    """Return what is wrong with a file of weights whose first bytes are `beginning`, in words that follow the file's
    name; None if nothing is certainly wrong."""
    if size == 0:
        return "is empty"
    name = path.lower()
    if name.endswith(".safetensors"):
        return _safetensors_damage(path, size, beginning, read)
    if name.endswith(".gguf"):
        if not beginning.startswith(_GGUF):
            return f"is no GGUF file: expected it to begin with GGUF, found {beginning[:8]!r}"
        if size < _GGUF_HEADER_BYTES:
            return f"is cut short: a GGUF file has a header of 24 bytes, found {size}"
        end = gguf.find_end(size, lambda offset, length: _part(path, offset, length, beginning, read))
        return (
            None if end is None or end <= size else f"is cut short: its header says {end} bytes or more, found {size}"
        )
    if name.endswith((".h5", ".keras")) and not beginning.startswith((_HDF5, _ZIP)):
        return f"is no HDF5 file: found {beginning[:8]!r} at its beginning"
    if beginning.startswith(_ZIP) and name.endswith((".bin", ".pt", ".pth", ".ckpt", ".npz", ".keras")):
        length = min(size, _MAX_ZIP_END_BYTES)
        if _ZIP_END not in read(path, size - length, length):
            return f"is cut short: a zip archive ends with a directory, found none at the end of its {size} bytes"
    return None


def _safetensors_damage(path: str, size: int, beginning: bytes, read: Read) -> str | None:
    length = int.from_bytes(beginning[:8], "little")
    if len(beginning) < 9 or beginning[8:9] != b"{" or length > _MAX_HEADER_BYTES:
        return f"is no safetensors file: found {beginning[:16]!r} at its beginning"
    if 8 + length > size:
        return f"is cut short: its header says that it is {length} bytes long itself, found {size} bytes in all"
    end = 0
    rest, last, offset = b"", b"{", 8
    while offset < 8 + length:
        piece = _part(path, offset, min(_PIECE_BYTES, 8 + length - offset), beginning, read)
        if not piece:
            return None  # the file changes while it is read
        rest += piece
        for match in _OFFSETS.finditer(rest):
            end = max(end, int(match[1]))
        last = piece.rstrip(_JSON_SPACE)[-8:] or last  # a header may be padded by any length
        rest, offset = rest[-_LONGEST_OFFSETS:], offset + len(piece)
    if not last.endswith(b"}"):
        return f"is no safetensors file: its header of {length} bytes ends with {last!r}, not with a brace"
    expected = 8 + length + end
    if size < expected:
        return f"is cut short: its header says {expected} bytes, found {size}"
    return f"has bytes that no tensor owns: its header says {expected} bytes, found {size}" if size > expected else None


def _part(path: str, offset: int, length: int, beginning: bytes, read: Read) -> bytes:
    if offset + length <= len(beginning) <= LOOKED_AT_BYTES:
        return beginning[offset : offset + length]
    return read(path, offset, length)
