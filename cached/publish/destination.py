"""What every destination of `publish` is, and the values it works with.

Law: values and one Protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cached.contract.manifest import FileEntry
from cached.publish.mark import Mark

PART_BYTES = 16 * 1024 * 1024  # read, hashed and sent at a time
Progress = Callable[[int], None]  # is told bytes done, from any thread
Say = Callable[[str], None]  # is told what a person should know


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of the version, and the `real` path its bytes are read from."""

    entry: FileEntry
    real: Path


@dataclass(frozen=True, slots=True)
class Stored:
    """A file at the destination: `size` in bytes, and a `tag` that changes when somebody writes the file again."""

    size: int
    tag: str


class Destination(Protocol):
    """A version's own folder somewhere. Every method raises `Transient` or `Permanent`.

    `claim` comes before the first change and `unmark` after the manifest: in between, and after a crash there, a
    `Source` without a manifest sees the mark and does not take half a version for a whole one. While the mark is this
    publisher's, another one stays away (`another_publisher`).
    """

    @property
    def display(self) -> str:
        """The URI to show, without credentials."""

    async def manifest(self) -> bytes | None:
        """The bytes of `holdfast.json` there, if any."""

    async def listing(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        """Those of `files` that are there, by path."""

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        """Tell whether the destination's own checksum says that the bytes there are the upload's."""

    async def sha256(self, path: str) -> str | None:
        """The sha256 of the bytes there: the store's own where it computed one, else of what is read; None if gone."""

    async def claim(self, mark: Mark, say: Say) -> None:
        """Leave the mark as the only publisher there, durably; takes over from one that died, and says so."""

    async def keep_claim(self) -> None:
        """Show a sign of life; raises `another_publisher` where the mark is not this publisher's any more."""

    async def withdraw(self) -> None:
        """Remove `holdfast.json`, durably."""

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        """Put one file, visible only when whole, durable, and of the sha256 that its entry says: what is stored is
        checked, by the store's own checksum or by reading it back."""

    async def seal(self, manifest: bytes) -> None:
        """Write `holdfast.json`, where there is none, durably."""

    async def delete(self, path: str) -> None:
        """Remove one file; one that is gone is left so."""

    async def unmark(self) -> None:
        """Remove the mark, if it is this publisher's, and what else this publish left beside the files."""

    async def give_up(self) -> None:
        """Leave the mark, and say in it that this publisher has ended."""

    async def aclose(self) -> None:
        """Give back what the destination holds. Calling it again does nothing."""
