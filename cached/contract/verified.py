"""Verified records: what the daemon saw of each file when its full sha256 was last computed.

Law: pure values and their JSON. Format: `.holdfast/verified.json`, design, section 3.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from cached.contract.errors import Permanent
from cached.contract.status import encode


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """What one file was when its sha256 was computed: inode, size in bytes, mtime, and when that was.

    `verity`: the fs-verity digest that it was sealed with then, as `sha256:<hex>`; None where it was not.
    """

    ino: int
    size: int
    mtime_ns: int
    verified_at: str
    verity: str | None = None

    @classmethod
    def of(cls, stat: os.stat_result, verified_at: str, verity: str | None = None) -> VerifiedFile:
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns, verified_at, verity)


@dataclass(frozen=True, slots=True)
class VerifiedRecord:
    """The record of one snapshot, by path."""

    files: dict[str, VerifiedFile]

    def encode(self) -> bytes:
        """The bytes of `verified.json`."""
        return encode({"files": {path: _document(entry) for path, entry in self.files.items()}})

    @classmethod
    def parse(cls, data: bytes) -> VerifiedRecord:
        """Read `verified.json`; raises `Permanent` (`invalid_record`) where it is not one."""
        try:
            listed = json.loads(data)["files"]
            return cls(
                {
                    path: VerifiedFile(
                        entry["ino"], entry["size"], entry["mtime_ns"], entry["verified_at"], entry.get("verity")
                    )
                    for path, entry in listed.items()
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Permanent(
                "invalid_record",
                f"not a verified record: {error!r}",
                "check that only the daemon writes the root; `holdfast verify` tells whether the bytes are intact",
            ) from error


def _document(entry: VerifiedFile) -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if value is not None}
