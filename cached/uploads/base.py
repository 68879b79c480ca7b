"""What every destination of `publish` is, and the values it works with.

Law: values and one Protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cached.contract.manifest import FileEntry

PART_BYTES = 16 * 1024 * 1024  # read, hashed and sent at a time
Progress = Callable[[int], None]  # is told bytes done, from any thread


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of the version, and the `real` path its bytes are read from."""

    entry: FileEntry
    real: Path


class Destination(Protocol):
    """A version's own folder somewhere. Every method raises `Transient` or `Permanent`.

    `mark` comes before the first change and `unmark` after the manifest: in between, and after a crash there, a
    `Source` without a manifest sees the mark and does not take half a version for a whole one.
    """

    @property
    def display(self) -> str:
        """The URI to show, without credentials."""

    async def manifest(self) -> bytes | None:
        """The bytes of `holdfast.json` there, if any."""

    async def sizes(self, files: Sequence[FileEntry]) -> dict[str, int]:
        """Size in bytes of those of `files` that are there, by path."""

    async def sha256(self, path: str) -> str | None:
        """The sha256 of the file there, where the destination can vouch for it."""

    async def mark(self) -> None:
        """Leave `.holdfast/publishing`, durably."""

    async def withdraw(self) -> None:
        """Remove `holdfast.json`, durably."""

    async def put(self, upload: Upload, progress: Progress) -> None:
        """Put one file, visible only when whole, durable, and of the sha256 that its entry says."""

    async def seal(self, manifest: bytes) -> None:
        """Write `holdfast.json`, durably."""

    async def delete(self, path: str) -> None:
        """Remove one file; one that is gone is left so."""

    async def unmark(self) -> None:
        """Remove the mark and what else this publish left beside the files."""

    async def aclose(self) -> None:
        """Give back what the destination holds. Calling it again does nothing."""
