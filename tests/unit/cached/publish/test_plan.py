"""The order of a publish, which is what makes it safe to cut anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.publish.content import FolderContent
from cached.publish.destination import Progress, Say, Stored, Upload
from cached.publish.mark import Mark, another_publisher
from cached.publish.plan import FORCED, PLAIN, Comparisons, PublishPlan, carry_out_plan, make_plan, refuse_replacing

ENDED = ("delete .holdfast/replaced", "unmark")  # a publish over another version


class Recorder:
    """A destination in memory that writes down what is asked of it."""

    display = "mem://v1"
    keeps_chains = True
    sources: ClassVar[dict[str, bytes]] = {}  # what uploads read, by sha256

    def __init__(self, files: dict[str, bytes], manifest: bytes | None = None) -> None:
        self.files = files
        self.there = manifest
        self.chains: bytes | None = None
        self.replaced: bytes | None = None  # also the mark of a publish that did not end
        self.steps: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.lost = False  # another publisher has the mark
        self.then: dict[str, Callable[[], None]] = {}  # what others do right after a step

    def step(self, text: str) -> None:
        self.steps.append(text)
        if text in self.failing:
            raise self.failing[text]
        self.then.get(text, lambda: None)()

    async def read_manifest(self) -> bytes | None:
        return self.there

    async def list_files(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        there = {f.path: self.files[f.path] for f in files if f.path in self.files}
        return {path: Stored(len(data), Digest.of(data).hex) for path, data in there.items()}

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        return stored.tag == upload.entry.sha256

    async def get_sha256(self, path: str) -> str | None:
        return Digest.of(self.files[path]).hex if path in self.files else None

    async def read_chains(self) -> bytes | None:
        if (failure := self.failing.get("read chains")) is not None:
            raise failure
        return self.chains

    async def write_chains(self, data: bytes) -> None:
        self.step("write chains")
        self.chains = data

    async def is_marked(self) -> bool:
        return self.replaced is not None

    async def claim(self, mark: Mark, say: Say) -> None:
        self.step("claim")

    async def keep_claim(self) -> None:
        if self.lost:
            raise another_publisher(self.display, None)

    async def give_up(self) -> None:
        self.step("give up")

    async def read_replaced(self) -> bytes | None:
        return self.replaced

    async def keep_replaced(self, manifest: bytes) -> None:
        self.replaced = manifest
        self.step("keep replaced")

    async def withdraw(self) -> None:
        self.there = None
        self.step("withdraw")

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        self.files[upload.entry.path] = self.sources[upload.entry.sha256]
        progress(upload.entry.size)
        self.step(f"put {upload.entry.path}")
        return Stored(upload.entry.size, upload.entry.sha256)

    async def seal(self, manifest: bytes) -> None:
        self.there = manifest
        self.step("seal")

    async def delete(self, path: str) -> None:
        self.step(f"delete {path}")

    async def unmark(self) -> None:
        self.step("unmark")

    async def aclose(self) -> None:
        self.step("close")


def content(chains: bytes | None = None, **files: bytes) -> FolderContent:
    Recorder.sources |= {Digest.of(data).hex: data for data in files.values()}
    entries = [FileEntry(path, Digest.of(data).hex, len(data)) for path, data in files.items()]
    uploads = tuple(Upload(entry, Path("/in") / entry.path) for entry in entries)
    return FolderContent(Manifest.build(entries), uploads, chains)


async def carry_out(
    what: FolderContent, destination: Recorder, comparisons: Comparisons = FORCED
) -> tuple[PublishPlan, list[str]]:
    said: list[str] = []

    async def decide() -> PublishPlan:
        decided = await make_plan(what, destination, 2, comparisons)
        if comparisons is PLAIN:
            refuse_replacing(decided, destination.display)
        return decided

    done = await carry_out_plan(await decide(), decide, destination, 1, lambda _size: None, said.append)
    return done, said


async def test_a_first_publish_is_marked_until_its_manifest_is_there() -> None:
    """The mark comes before the first file, the manifest after the last, and the mark goes after the manifest."""
    destination = Recorder({})
    await carry_out(content(a=b"1", b=b"22"), destination)
    assert destination.steps == ["claim", "put b", "put a", "seal", "unmark"]


async def test_replacing_removes_the_old_manifest_before_it_could_lie() -> None:
    """Over another version: the old manifest goes before any file, old files only after the new manifest."""
    old = content(a=b"1", gone=b"x")
    destination = Recorder({"a": b"1", "gone": b"x"}, old.manifest.canonical())
    await carry_out(content(a=b"1", b=b"2"), destination)
    assert destination.steps == ["claim", "keep replaced", "withdraw", "put b", "seal", "delete gone", *ENDED]


async def test_the_same_version_asks_for_nothing() -> None:
    """A complete version with the same manifest is left alone."""
    same = content(a=b"1")
    destination = Recorder({"a": b"1"}, same.manifest.canonical())
    decided, _ = await carry_out(same, destination)
    assert decided.is_done and destination.steps == []


async def test_chaining_values_come_before_the_manifest() -> None:
    """They are there once the version is; published again they are left alone."""
    wanted, destination = content(b"chains", a=b"1"), Recorder({})
    await carry_out(wanted, destination)
    assert destination.steps == ["claim", "put a", "write chains", "seal", "unmark"]
    destination.steps.clear()
    decided, _ = await carry_out(wanted, destination, PLAIN)
    assert decided.is_done and destination.steps == []


@pytest.mark.parametrize("there", [None, b"of another version"])
async def test_missing_chaining_values_are_added(there: bytes | None) -> None:
    """To a version that was published without them, they are added under its manifest, as by its only publisher."""
    wanted = content(b"chains", a=b"1")
    destination = Recorder({"a": b"1"}, wanted.manifest.canonical())
    destination.chains = there
    decided, _ = await carry_out(wanted, destination, PLAIN)
    assert decided.is_published and decided.writes_chains
    assert (destination.steps, destination.chains) == (["claim", "write chains", "unmark"], b"chains")


@pytest.mark.parametrize("code", ["too_large", "forbidden"])
async def test_chaining_values_that_cannot_be_read_are_written(code: str) -> None:
    """What lies there and cannot be read is other bytes, and no failure."""
    wanted = content(b"chains", a=b"1")
    destination = Recorder({"a": b"1"}, wanted.manifest.canonical())
    destination.failing["read chains"] = Permanent(code, "no bytes", "look")
    await carry_out(wanted, destination, PLAIN)
    assert (destination.steps, destination.chains) == (["claim", "write chains", "unmark"], b"chains")


@pytest.mark.parametrize("step", ["claim", "write chains"])
async def test_chaining_values_that_cannot_be_added_are_told(step: str) -> None:
    """Where a published version may not be written any more, publishing it again succeeds, and says what is missing."""
    wanted = content(b"chains", a=b"1")
    destination = Recorder({"a": b"1"}, wanted.manifest.canonical())
    destination.failing[step] = Permanent("forbidden", "access denied", "allow s3:PutObject")
    decided, said = await carry_out(wanted, destination, PLAIN)
    assert decided.is_done and destination.chains is None
    assert len(said) == 1 and "access denied" in said[0]


async def test_a_version_is_published_without_chaining_values_where_they_fail() -> None:
    """They are a hint: where they cannot be written, the version is published, and the publisher told."""
    destination = Recorder({})
    destination.failing["write chains"] = Transient("connect", "no connection", "later")
    _, said = await carry_out(content(b"chains", a=b"1"), destination)
    assert destination.steps == ["claim", "put a", "write chains", "seal", "unmark"]
    assert len(said) == 1 and "no connection" in said[0]


async def test_chaining_values_go_with_their_version() -> None:
    """A version without any, in place of one that had some, deletes them; the same version from a platform that cannot
    find them out keeps them."""
    old = content(b"chains", a=b"1")
    destination = Recorder({"a": b"1"}, old.manifest.canonical())
    destination.chains = b"chains"
    decided, _ = await carry_out(content(a=b"1"), destination)
    assert decided.is_done and destination.steps == []
    await carry_out(content(b=b"2"), destination)
    assert sorted(destination.steps[-4:-2]) == ["delete .holdfast/chains", "delete a"]


async def test_where_there_is_no_place_none_are_written() -> None:
    """A destination whose every file is content gets none, and the version is done without them."""
    destination = Recorder({})
    destination.keeps_chains = False
    await carry_out(content(b"chains", a=b"1"), destination)
    assert destination.steps == ["claim", "put a", "seal", "unmark"]
    assert (await carry_out(content(b"chains", a=b"1"), destination))[0].is_done


async def test_a_failed_upload_writes_no_manifest() -> None:
    """One file that fails ends the publish before the manifest, as the error it is."""
    destination = Recorder({})
    destination.failing["put a"] = Transient("connect", "no connection", "later")
    with pytest.raises(Transient):
        await carry_out(content(a=b"1", b=b"22"), destination)
    assert destination.steps == ["claim", "put b", "put a", "give up"]


async def test_a_publisher_that_may_not_delete_still_publishes() -> None:
    """Tidying up that is forbidden is told, and does not fail a version that is complete."""
    destination = Recorder({})
    destination.failing["unmark"] = Permanent("forbidden", "access denied", "allow s3:DeleteObject")
    _, said = await carry_out(content(a=b"1"), destination)
    assert destination.there is not None and len(said) == 1 and "s3:DeleteObject" in said[0]


async def test_a_manifest_nobody_can_read_is_another_version() -> None:
    """What is no manifest of ours counts as another version, and names no file to delete."""
    destination = Recorder({"a": b"1"}, b"{}")
    decided = await make_plan(content(a=b"1"), destination, 2, PLAIN)
    assert decided.replaced == Digest.of(b"{}") and decided.obsolete == ()
    with pytest.raises(Permanent) as caught:
        refuse_replacing(decided, destination.display)
    assert caught.value.code == "already_published" and "--force" in caught.value.remedy


@pytest.mark.parametrize("comparisons", [PLAIN, FORCED], ids=["plain", "force"])
async def test_a_damaged_file_under_the_right_manifest_is_mended_with_force(comparisons: Comparisons) -> None:
    """Sizes are believed without --force; with it a file of other bytes is put again, under the same manifest."""
    what = content(a=b"1", b=b"22")
    destination = Recorder({"a": b"x", "b": b"22"}, what.manifest.canonical())
    decided, _ = await carry_out(what, destination, comparisons)
    assert decided.is_done == (comparisons is PLAIN)
    assert destination.steps == ([] if comparisons is PLAIN else ["claim", "put a", "unmark"])


@pytest.mark.parametrize("after", ["put a", "put b"])
async def test_bytes_of_another_publisher_are_never_sealed(after: str) -> None:
    """A file that another program writes after it was checked keeps the manifest away."""
    destination = Recorder({})
    destination.then[after] = lambda: destination.files.update(b=b"xx")
    with pytest.raises(Permanent) as caught:
        await carry_out(content(a=b"1", b=b"22"), destination)
    assert caught.value.code == "another_publisher" and destination.there is None
    assert "seal" not in destination.steps or after == "put b"
    assert destination.steps[-1] == "give up"


async def test_bytes_that_change_while_the_manifest_is_written_take_it_back() -> None:
    """What another program writes between the last look and the manifest is noticed after it, and the manifest goes."""
    destination = Recorder({})
    destination.then["seal"] = lambda: destination.files.update(a=b"x")
    with pytest.raises(Permanent):
        await carry_out(content(a=b"1"), destination)
    assert destination.there is None and destination.steps[-2:] == ["withdraw", "give up"]


async def test_a_publisher_that_lost_the_mark_stops() -> None:
    """Once the mark is another's nothing is sealed, and the manifest of the other is left alone."""
    destination = Recorder({})

    def lose() -> None:
        destination.lost, destination.there = True, b"the other's"

    destination.then["put a"] = lose
    with pytest.raises(Permanent) as caught:
        await carry_out(content(a=b"1"), destination)
    assert caught.value.code == "another_publisher" and destination.there == b"the other's"


async def test_a_version_published_in_between_is_not_replaced() -> None:
    """Another publisher that ended between the plan and the mark is found: refused as it would have been before."""
    destination, other = Recorder({}), content(a=b"2")

    def end() -> None:
        destination.there, destination.files = other.manifest.canonical(), {"a": b"2"}

    destination.then["claim"] = end
    with pytest.raises(Permanent) as caught:
        await carry_out(content(a=b"1"), destination, PLAIN)
    assert caught.value.code == "already_published"
    assert destination.steps == ["claim", "unmark"] and destination.files == {"a": b"2"}


async def test_a_manifest_of_one_that_lost_the_mark_is_taken_away() -> None:
    """The holder of the mark finds another's manifest over files that it has changed: neither manifest stays."""
    destination = Recorder({})
    destination.failing["seal"] = another_publisher(destination.display, None)
    with pytest.raises(Permanent):
        await carry_out(content(a=b"1"), destination)
    assert destination.there is None
    assert destination.steps == ["claim", "put a", "seal", "withdraw", "give up"]


async def test_a_mark_that_is_lost_after_the_manifest_leaves_the_manifest() -> None:
    """A publisher that has the mark by then has seen the manifest, or will; the files are still those that it lists."""
    destination = Recorder({})

    def lose() -> None:
        destination.lost = True

    destination.then["seal"] = lose
    with pytest.raises(Permanent) as caught:
        await carry_out(content(a=b"1"), destination)
    assert caught.value.code == "another_publisher" and destination.there is not None
    assert "withdraw" not in destination.steps


async def test_a_publisher_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is long on its way the mark is kept, and a mark that is lost in that time ends the upload."""
    monkeypatch.setattr("cached.publish.plan.BEAT_S", 0.01)
    destination = Recorder({})
    waited: list[bool] = []

    async def put(upload: Upload, progress: Progress) -> Stored:
        destination.lost = True
        try:
            await asyncio.sleep(60)
        finally:
            waited.append(True)
        raise AssertionError

    monkeypatch.setattr(destination, "put", put)
    with pytest.raises(Permanent) as caught:
        await carry_out(content(a=b"1"), destination)
    assert caught.value.code == "another_publisher" and waited == [True]
