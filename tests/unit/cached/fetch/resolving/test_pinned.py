"""A pinned version whose manifest is at hand: what its source is asked, and what it may not answer."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.core.listing import Listing, RemoteFile
from cached.fetch.resolving.pinned import PinnedSource
from cached.sources.local.source import LocalSource
from cached.transport.target import local_validator

MANIFEST = Manifest.build([FileEntry("a", "0" * 64, 3), FileEntry("b", "1" * 64, 4)])


class Origin:
    """Lists files, slowly enough that all who ask wait for the same listing; counts the listings."""

    def __init__(self, *answers: HoldfastError | tuple[RemoteFile, ...]) -> None:
        self._answers = list(answers)
        self.listings = 0

    async def list_files(self) -> Listing:
        self.listings += 1
        await asyncio.sleep(0.01)
        answer = self._answers.pop(0)
        if isinstance(answer, HoldfastError):
            raise answer
        return Listing(answer, "i")


def pinned(folder: Path, origin: Origin) -> PinnedSource:
    return PinnedSource(LocalSource(f"file://{folder}"), MANIFEST, origin.list_files)


def listed(folder: Path, path: str, sha256: str | None, size: int | None) -> RemoteFile:
    """A file that is there, of which the source promises this."""
    (folder / path).touch()
    return RemoteFile(path, str(folder / path), size, local_validator(os.lstat(folder / path)), sha256)


async def test_the_listing_is_the_manifests(tmp_path: Path) -> None:
    """The version has exactly the files of its manifest, and no source is asked."""
    origin = Origin()
    listing = await pinned(tmp_path, origin).resolve()
    found = [(each.path, each.sha256, each.size) for each in listing.files]
    assert found == [("a", "0" * 64, 3), ("b", "1" * 64, 4)]
    assert origin.listings == 0


async def test_addresses_share_one_listing(tmp_path: Path) -> None:
    """The source is listed once for all addresses, also where it promises nothing of a file; after it failed, all that
    waited fail alike, and the next one asks again."""
    files = tuple(listed(tmp_path, each.path, None, None) for each in MANIFEST.files)
    origin = Origin(Transient("connect", "down", ""), files)
    source = pinned(tmp_path, origin)
    wanted = (await source.resolve()).files * 3
    failed = await asyncio.gather(*map(source.locate, wanted), return_exceptions=True)
    assert {str(each) for each in failed} == {str(Transient("connect", "down", ""))}
    assert origin.listings == 1
    await asyncio.gather(*map(source.locate, wanted))
    assert origin.listings == 2


@pytest.mark.parametrize(
    "change", [{"path": "c"}, {"size": 4}, {"sha256": "f" * 64}, {"problem": Permanent("unreadable", "b", "")}]
)
async def test_another_file_is_not_the_pinned_one(tmp_path: Path, change: dict[str, object]) -> None:
    """A source that has not this file, by name, size or sha256, gives no address; nor one that cannot be read."""
    own = listed(tmp_path, "a", "0" * 64, 3)
    source = pinned(tmp_path, Origin((replace(own, **change),)))  # type: ignore[arg-type]
    with pytest.raises(HoldfastError) as caught:
        await source.locate((await source.resolve()).files[0])
    assert caught.value.code == ("unreadable" if "problem" in change else "source_changed")
