"""The Protocol of a destination of `publish`, and its values. Law: values and one Protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cached.contract.manifest import FileEntry
from cached.publish.mark import Mark

PART_BYTES = 16 * 1024 * 1024  # read, hashed and sent at a time
Progress = Callable[[int], None]  # called with the bytes done, from any thread
Say = Callable[[str], None]  # called with a message for a person


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of the version, and the `real` path of its bytes."""

    entry: FileEntry
    real: Path


@dataclass(frozen=True, slots=True)
class Stored:
    """A file at the destination: `size` in bytes, and a `tag` that changes with each write of the file."""

    size: int
    tag: str


class Destination(Protocol):
    """A version's own folder. Every method raises `Transient` or `Permanent`. `claim` comes before the first change and
    `unmark` after the manifest: in between, and after a crash there, a `Source` without a manifest sees the mark and
    refuses the incomplete version. While the mark is this publisher's, another one is refused (`another_publisher`).
    `keeps_chains`: whether there is a place for `.holdfast/chains`, the chaining values, which are no content."""

    keeps_chains: bool

    @property
    def display(self) -> str:
        """The URI to show, without credentials."""

    async def read_manifest(self) -> bytes | None:
        """Return the bytes of `holdfast.json`, None if there is none."""

    async def list_files(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        """Return those of `files` that exist, by path."""

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        """Return whether the destination's own checksum proves that it has the upload's bytes."""

    async def get_sha256(self, path: str) -> str | None:
        """Return a stored file's sha256, computed by the store or from the bytes read; None if there is no file."""

    async def read_chains(self) -> bytes | None:
        """Return the bytes of that file, None if there is none. Raises `Permanent` (`too_large`) too."""

    async def write_chains(self, data: bytes) -> None:
        """Write that file, durably, over another one."""

    async def claim(self, mark: Mark, say: Say) -> None:
        """Write the mark as the only publisher, durably; replace that of a dead publisher, and report that."""

    async def is_marked(self) -> bool:
        """Return whether the mark of any publisher was there when the files were listed last."""

    async def keep_claim(self) -> None:
        """Renew the mark; raises `another_publisher` if it is no longer this publisher's."""

    async def read_replaced(self) -> bytes | None:
        """Return the manifest that `keep_replaced` wrote, of a publish that did not end; None if there is none. Asked
        only where `is_marked`."""

    async def keep_replaced(self, manifest: bytes) -> None:
        """Write the manifest of the version that is replaced to `.holdfast/replaced`, durably, over another one."""

    async def withdraw(self) -> None:
        """Remove `holdfast.json`, durably."""

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        """Store one file, visible only when complete and durable; check the stored bytes against its sha256, by the
        store's own checksum or by reading them back."""

    async def seal(self, manifest: bytes) -> None:
        """Write `holdfast.json`, durably, if there is none."""

    async def delete(self, path: str) -> None:
        """Delete one file, if it exists."""

    async def unmark(self) -> None:
        """Delete the mark, if it is this publisher's, and this publish's temporary files."""

    async def give_up(self) -> None:
        """Keep the mark, and note in it that this publisher has ended."""

    async def aclose(self) -> None:
        """Release all resources. Calling it again does nothing."""
