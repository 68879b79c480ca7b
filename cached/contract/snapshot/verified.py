"""Verified records: each file's metadata when the daemon last computed its full sha256.

Law: pure values and their JSON. Format: `.holdfast/verified.json`, design, section 3.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, fields

from cached.contract.errors import Permanent
from cached.contract.status import encode

NEVER = "1970-01-01T00:00:00Z"  # of a file that was put back on this node, and not hashed since


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """One file at the time `verified_at` when its sha256 was computed: inode, size in bytes, mtime. `verity`: the
    fs-verity digest of its seal at that time, as `sha256:<hex>`; None without a seal. At the time `NEVER` it was not
    computed: the rest vouches for nothing."""

    ino: int
    size: int
    mtime_ns: int
    verified_at: str
    verity: str | None = None

    @classmethod
    def of(cls, found: os.stat_result, verified_at: str, verity: str | None = None) -> VerifiedFile:
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, verified_at, verity)

    @property
    def is_hashed(self) -> bool:
        """Return whether its sha256 was computed at all."""
        return self.verified_at != NEVER

    def fits(self, found: os.stat_result) -> bool:
        """Return whether a file is as it was when it was hashed, if it was; ignore its seal."""
        is_same = VerifiedFile.of(found, self.verified_at, self.verity) == self
        return self.is_hashed and is_same and stat.S_ISREG(found.st_mode)


_KEYS = tuple(f.name for f in fields(VerifiedFile))


@dataclass(frozen=True, slots=True)
class VerifiedRecord:
    """The record of one snapshot, by path."""

    files: dict[str, VerifiedFile]

    def encode(self) -> bytes:
        """Return the bytes of `verified.json`."""
        files = {
            path: {key: value for key in _KEYS if (value := getattr(entry, key)) is not None}
            for path, entry in self.files.items()
        }
        return encode({"files": files})

    @classmethod
    def parse(cls, data: bytes) -> VerifiedRecord:
        """Parse `verified.json`. Raises `Permanent` (`invalid_record`)."""
        try:
            listed = json.loads(data)["files"]
            return cls(
                {
                    path: VerifiedFile(e["ino"], e["size"], e["mtime_ns"], e["verified_at"], e.get("verity"))
                    for path, e in listed.items()
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Permanent(
                "invalid_record",
                f"not a verified record: {error!r}",
                "check that only the daemon writes the root; `holdfast verify` tells whether the bytes are intact",
            ) from error
