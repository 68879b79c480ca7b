"""SHA-256's chaining values: the hash's inner state at the boundaries of a file's pieces.

Law: pure. With the states before and after a piece, the piece is checked alone, in any order and in parallel, and the
steps that join from the first state to the file's sha256 are that sha256: a file costs one hash, however its pieces
came. A state is public and proves nothing by itself: only the bytes that lead from one to the next do.

hashlib keeps the state to itself, so the functions of libcrypto are called by ctypes: `SHA256_Init`, `SHA256_Update`,
`SHA256_Final` and their `SHA256_CTX` (openssl/sha.h), deprecated since OpenSSL 3.0 and kept there. They use the same
instructions as hashlib, and ctypes releases the interpreter's lock. Where they are missing, or give other digests than
hashlib, there is no chaining.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cached.peers.pieces import PIECE_BYTES

_log = logging.getLogger(__name__)

STATE_BYTES = 32
_BLOCK_BYTES = 64
_WIRE = struct.Struct(">8I")
_FIRST = bytes.fromhex("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19")  # FIPS 180-4, 5.3.3


class _Context(ctypes.Structure):
    """`SHA256_CTX` of openssl/sha.h: the state, the length in bits, and the block that is not full yet."""

    _fields_ = [
        ("h", ctypes.c_uint32 * 8),
        ("low", ctypes.c_uint32),
        ("high", ctypes.c_uint32),
        ("data", ctypes.c_uint32 * 16),
        ("num", ctypes.c_uint),
        ("md_len", ctypes.c_uint),
    ]


class NoChaining(Exception):
    """This platform's libcrypto does not have the functions: pieces are checked by a sha256 of their own."""


@dataclass(frozen=True, slots=True)
class ChainStep:
    """A piece of a blob between two states: `start` in bytes, `before`, and `after`; the `sha256` of the blob (64 hex
    digits) in place of `after` for its last piece."""

    start: int
    before: bytes
    after: bytes | None
    sha256: str


class ChainHasher:
    """SHA-256 of a blob, with its states. Raises `NoChaining` where there is no chaining."""

    def __init__(self, position: int = 0, state: bytes = _FIRST) -> None:
        """Begin within the blob: `position` in bytes, at a boundary of pieces, and the state there."""
        self._library = _load()
        self._context = _Context()
        self._library.SHA256_Init(ctypes.byref(self._context))
        self.position = position
        self._states: dict[int, bytes] = {}
        self._digest: str | None = None
        self._set(position, state)

    def _set(self, position: int, state: bytes) -> None:
        if position % _BLOCK_BYTES or len(state) != STATE_BYTES:
            raise ValueError(
                f"expected a state of {STATE_BYTES} bytes at a block's end, found {len(state)}, {position}"
            )
        self._context.h[:] = _WIRE.unpack(state)
        self._context.low = position * 8 & 0xFFFFFFFF
        self._context.high = position * 8 >> 32
        self.position = position

    @property
    def state(self) -> bytes:
        """The state now, at a boundary of pieces."""
        return _WIRE.pack(*self._context.h)

    def update(self, data: memoryview | bytes | bytearray, /) -> None:
        """Absorb bytes, and note the state at each boundary that they reach."""
        view = memoryview(data)
        while view:
            left = PIECE_BYTES - self.position % PIECE_BYTES
            self._absorb(view[:left])
            if left <= len(view):
                self._states[self.position] = self.state
            view = view[left:]

    def _absorb(self, view: memoryview) -> None:
        length = len(view)
        if view.readonly:
            self._library.SHA256_Update(ctypes.byref(self._context), bytes(view), length)
        else:
            place = ctypes.c_char.from_buffer(view)
            self._library.SHA256_Update(ctypes.byref(self._context), ctypes.byref(place), length)
        self.position += length

    def skip(self, step: ChainStep, length: int) -> bool:
        """Go over a piece of `length` bytes that was checked as this step; return False, and stay, where the step does
        not begin with this state."""
        if (self.position, self.state) != (step.start, step.before) or self._digest is not None:
            return False
        if step.after is None:
            self._digest = step.sha256
            self.position += length
        else:
            self._set(self.position + length, step.after)
            self._states[self.position] = step.after
        return True

    def hexdigest(self) -> str:
        """Return the sha256 of all that was absorbed and skipped."""
        if self._digest is None:
            context, digest = _Context.from_buffer_copy(self._context), ctypes.create_string_buffer(32)
            self._library.SHA256_Final(digest, ctypes.byref(context))
            return digest.raw.hex()
        return self._digest

    def states(self) -> bytes:
        """Return the states between each two pieces so far, one after the other."""
        return b"".join(self._states[at] for at in sorted(self._states) if at < self.position)

    def ends_as(self, step: ChainStep) -> bool:
        """Return whether the bytes of a step, absorbed from its first state on, lead to its end."""
        return self.hexdigest() == step.sha256 if step.after is None else self.state == step.after


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Return whether there is chaining on this platform; the log says once why not."""
    try:
        _load()
    except NoChaining as error:
        _log.info("pieces are hashed twice: no chaining values of SHA-256: %s", error)
        return False
    return True


def begin(step: ChainStep) -> ChainHasher:
    """Return the hasher of a step's bytes."""
    return ChainHasher(step.start, step.before)


def step_at(sha256: str, start: int, states: bytes) -> ChainStep:
    """Return the step of the piece at `start` of a blob, of which `states` has those between its pieces."""
    at = start // PIECE_BYTES * STATE_BYTES
    before = states[at - STATE_BYTES : at] if at else _FIRST
    return ChainStep(start, before, states[at : at + STATE_BYTES] or None, sha256)


def _candidates() -> Iterator[str]:
    """Yield the libcrypto that hashlib has loaded, then the system's."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    yield from dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if "/libcrypto" in line)
    found = ctypes.util.find_library("crypto")
    if found is not None:
        yield found


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL:
    """Return the library; raises `NoChaining`."""
    hashlib.sha256(b"")  # loads it
    reason = "no libcrypto"
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            for name in ("SHA256_Init", "SHA256_Update", "SHA256_Final"):
                getattr(library, name).restype = ctypes.c_int
            library.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        except (OSError, AttributeError) as error:
            reason = str(error)
            continue
        if _agrees_with_hashlib(library):
            return library
        reason = f"{path}: other digests than hashlib's"
    raise NoChaining(reason)


def _agrees_with_hashlib(library: ctypes.CDLL) -> bool:
    """Return whether a hash that is taken up in the middle is hashlib's; the context's layout is that of the header."""
    data = bytes(range(251)) * 3
    context, digest = _Context(), ctypes.create_string_buffer(32)
    library.SHA256_Init(ctypes.byref(context))
    if _WIRE.pack(*context.h) != _FIRST or context.md_len != 32:
        return False
    library.SHA256_Update(ctypes.byref(context), data[:512], 512)
    other = _Context()
    library.SHA256_Init(ctypes.byref(other))
    other.h[:], other.low = context.h[:], 512 * 8
    library.SHA256_Update(ctypes.byref(other), data[512:], len(data) - 512)
    library.SHA256_Final(digest, ctypes.byref(other))
    return digest.raw == hashlib.sha256(data).digest()
