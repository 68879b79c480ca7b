"""One blob: what is known of it before it is fetched, the ranges that it is fetched in, and the digests of its bytes.

Law: pure. The sha256 names the content; what else the source promises is compared too, and only finds damage.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cached.contract.errors import DigestMismatch
from cached.core.listing import Checksum, promises_content
from cached.peers.chaining import ChainHasher, ChainStep
from cached.store.blob.ingest import IngestKey
from cached.transport.checksums import Hasher, new_hasher
from cached.transport.git_blob import git_blob_hasher

SEGMENT_BYTES = 32 * 1024 * 1024  # one ranged request
_REMEDY = "publish the version again, or mend its digests: the source does not hold what it promises"


@dataclass(frozen=True, slots=True)
class BlobSpec:
    """A blob to fetch. `name` is for people; `kind` is the source's metric label, `origin` the host whose connections
    are limited. `sha256` and `git_oid` if the source promises them, `checksum` if it promises only that."""

    name: str
    key: IngestKey
    sha256: str | None
    git_oid: str | None
    kind: str
    origin: str
    checksum: Checksum | None = None

    @property
    def is_promised(self) -> bool:
        """Whether the source promises the content itself."""
        return self.sha256 is not None or self.git_oid is not None or promises_content(self.checksum)

    @property
    def is_bound(self) -> bool:
        """Whether two responses can be verified to be parts of one content; else one response must have all bytes."""
        return self.is_promised or bool(self.key.validator)


@dataclass(frozen=True, slots=True)
class Verified:
    """A committed blob: its sha256 as 64 hex digits, its size in bytes, and whether it is new in the store."""

    sha256: str
    size: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A byte range `[start, end)` to request; `end` None for a stream of unknown length."""

    start: int
    end: int | None

    @property
    def length(self) -> int | None:
        """The bytes, None if unknown."""
        return None if self.end is None else self.end - self.start

    @property
    def size(self) -> int:
        """The bytes of a segment of known end."""
        assert self.end is not None
        return self.end - self.start


class NoRanges(Exception):
    """The origin answers every range request with the whole object: control flow, not an error."""


class BlobHashes:
    """The digests of a blob's bytes, which come in order: sha256, and those that its source promises."""

    def __init__(self, spec: BlobSpec, size: int | None, *, keeps_chain: bool = False) -> None:
        """`size`: None if it is known after the last byte. `keeps_chain`: the states of sha256 between the pieces are
        wanted. Raises `Permanent` (`no_checksum_library`)."""
        self._spec = spec
        self._sha256: Hasher = ChainHasher() if keeps_chain else hashlib.sha256()
        self._git = None if spec.git_oid is None or size is None else git_blob_hasher(size)
        self._checksum = None if spec.checksum is None else new_hasher(spec.checksum.algorithm)
        self._hashers = [each for each in (self._sha256, self._git, self._checksum) if each is not None]

    def update(self, piece: memoryview) -> None:
        """Absorb the next bytes."""
        for each in self._hashers:
            each.update(piece)

    def skip(self, step: ChainStep, length: int) -> bool:
        """Go over the next bytes, which were checked as a step of the chain; return False, and stay, where that is not
        the chain so far, or other digests need the bytes."""
        sha = self._sha256
        return len(self._hashers) == 1 and isinstance(sha, ChainHasher) and sha.skip(step, length)

    @property
    def lacks_git_id(self) -> bool:
        """Whether `begin_git_id` is to be called with the size, and its hasher to absorb all bytes once more."""
        return self._spec.git_oid is not None and self._git is None

    def begin_git_id(self, size: int) -> Hasher:
        """Return the hasher of the Git blob id, which begins with the size."""
        self._git = git_blob_hasher(size)
        return self._git

    def compare(self) -> str:
        """Compare the digests of all bytes with what the source promises; return the sha256 as 64 hex digits. Raises
        `DigestMismatch`."""
        spec = self._spec
        promises: list[tuple[str, str | None, Hasher | None]] = [
            ("sha256", spec.sha256, self._sha256),
            ("git blob id", spec.git_oid, self._git),
        ]
        if spec.checksum is not None:
            promises.append((spec.checksum.algorithm, spec.checksum.hex, self._checksum))
        for name, promised, hasher in promises:
            if promised is not None and hasher is not None and promised != hasher.hexdigest():
                raise DigestMismatch(f"{spec.name}: {name}", promised, hasher.hexdigest(), _REMEDY)
        return self._sha256.hexdigest()

    @property
    def states(self) -> bytes | None:
        """The states of sha256 between the pieces, if they are kept."""
        return self._sha256.states() if isinstance(self._sha256, ChainHasher) else None
