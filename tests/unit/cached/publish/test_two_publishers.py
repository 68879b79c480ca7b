"""Several publishers of one version: one publishes, the others are told, and no manifest describes a mixture."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.manifest import PUBLISHING_NAME
from cached.publish import object_mark
from cached.publish.azure.destination import AzureDestination
from cached.publish.content import hash_all, list_folder
from cached.publish.destination import Destination
from cached.publish.folder import FolderDestination
from cached.publish.gcs.destination import GcsDestination
from cached.publish.mark import Mark
from cached.publish.object_mark import ObjectMark
from cached.publish.plan import FORCED, PublishPlan, carry_out_plan, clear_mark, make_plan
from cached.publish.s3.destination import S3Destination
from cached.publish.s3.mark import S3MarkStore
from cached.publish.s3.objects import S3Writer
from cached.sources.s3.address import S3Address
from cached.sources.s3.client import S3Client
from tests.support.object_stores import ENVIRONMENT, Store
from tests.support.publishing import command, environment, new_bucket, objects, publish, published, tree
from tests.support.s3 import S3Server


@dataclass
class Place:
    """Where is published, and what lies there."""

    uri: str
    env: Mapping[str, str]
    files: Callable[[], dict[str, bytes]]
    put: Callable[[str, bytes], object]


@pytest.fixture(params=["folder", "moto", pytest.param("rclone", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request, request.param, tmp_path)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("rclone", "gcs", "azure")]


@pytest.fixture(params=["folder", "moto", *SLOW])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Every kind of place but a registry, for publishers of this process."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    found = make_place(request, request.param, tmp_path)
    for name, value in found.env.items():
        monkeypatch.setenv(name, value)
    return found


def make_place(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Place:
    if kind in ("gcs", "azure"):
        store: Store = request.getfixturevalue(f"{kind}_store")
        return Place(store.uri, store.environment, store.files, store.put)
    if kind == "folder":
        out = tmp_path / "out"

        def write(path: str, data: bytes) -> None:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(data)

        return Place(str(out), {}, lambda: tree(out), write)
    server: S3Server = request.getfixturevalue(kind)
    bucket = new_bucket(server)
    return Place(
        f"s3://{bucket}/m/",
        server.environment,
        lambda: {key.removeprefix("m/"): data for key, data in objects(server, bucket).items()},
        lambda path, data: server.client().put_object(Bucket=bucket, Key=f"m/{path}", Body=data),
    )


def model(folder: Path, letter: str, files: int = 6, size: int = 300_000) -> Path:
    folder.mkdir()
    for number in range(files):
        (folder / f"s{number}.bin").write_bytes(letter.encode() * size)
    return folder


def begin(folder: Path, place: Place, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, place.uri, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(place.env),
    )


@pytest.mark.parametrize("again", range(2))
def test_two_at_once_never_mix(tmp_path: Path, place: Place, again: int) -> None:
    """Of two that begin together one publishes whole, the other exits 1 and says why; the manifest is true."""
    models = [model(tmp_path / letter, letter) for letter in "AB"]
    both = [begin(each, place, "--threads", "2") for each in models]
    errors = [process.communicate(timeout=100)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], errors
    loser = errors[[process.returncode for process in both].index(1)]
    assert "another publisher" in loser or "holds another version" in loser
    stored = place.files()
    listed = {file["path"]: file["sha256"] for file in json.loads(stored.pop("holdfast.json"))["files"]}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in stored.items() if path in listed} == listed


def wait_for_mark(place: Place) -> None:
    """Wait, for a minute at most, until a publisher has left its mark."""
    deadline = time.monotonic() + 100
    while Mark.parse(place.files().get(PUBLISHING_NAME, b"")) is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_killed_publisher_is_taken_over_from(tmp_path: Path, place: Place) -> None:
    """After SIGKILL the same publish goes on, says whose place it takes, and leaves no mark."""
    folder = model(tmp_path / "A", "A", files=3, size=20_000_000)
    process = begin(folder, place, "--threads", "1")
    wait_for_mark(place)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    if "holdfast.json" in place.files():
        pytest.skip("it was done before the kill")
    done = publish(folder, place.uri, env=place.env)
    assert done.returncode == 0 and "taking over" in done.stderr, done.stderr
    assert set(place.files()) == {"holdfast.json", "s0.bin", "s1.bin", "s2.bin"}


def test_a_mark_beside_a_whole_version_is_removed(tmp_path: Path, place: Place) -> None:
    """The mark of a publisher that was killed after the manifest does not stay: the next publish removes it."""
    folder = model(tmp_path / "A", "A", files=2)
    digest = published(folder, place.uri, env=place.env)["digest"]
    place.put(PUBLISHING_NAME, replace(Mark.new(Digest.parse(digest)), ended=True).encode())
    assert published(folder, place.uri, env=place.env)["uploaded_files"] == 0
    assert set(place.files()) == {"holdfast.json", "s0.bin", "s1.bin"}


CHANGES = ("claim", "keep_replaced", "withdraw", "put", "write_chains", "seal", "delete", "unmark")


class Killed(BaseException):
    """The publisher's process ended."""


class CutDestination:
    """A destination whose publisher is killed before its change number `last`: from then on it does nothing."""

    def __init__(self, destination: Destination, last: int) -> None:
        self._destination = destination
        self._left = last

    def __getattr__(self, name: str) -> Any:
        self._left -= name in CHANGES
        if self._left < 0:
            raise Killed
        return getattr(self._destination, name)


async def replace_version(folder: Path, place: Place, last: int) -> bool:
    """Publish a folder over another version, up to a change; return whether it was killed there."""
    content = hash_all(list_folder(folder, None, None).files, 1, lambda _size: None)
    destination: Any = FolderDestination(Path(place.uri))
    for scheme, kind in {"s3:": S3Destination, "gs:": GcsDestination, "az:": AzureDestination}.items():
        if place.uri.startswith(scheme):
            destination = kind(place.uri, 1)
    cut: Any = CutDestination(destination, last)

    async def decide() -> PublishPlan:
        return await make_plan(content, cut, 1, FORCED)

    try:
        plan = await decide()
        if plan.is_done:
            await clear_mark(plan, cut, 1, print)
        else:
            await carry_out_plan(plan, decide, cut, 1, lambda _size: None, print)
    except BaseException as error:  # of the task group, or its own
        if not isinstance(error, Killed | BaseExceptionGroup):
            raise
        return True
    finally:
        await destination.aclose()
    return False


def check_readable(place: Place) -> None:
    """A reader finds a manifest that is right of every file, or the mark."""
    stored = place.files()
    listed = {
        file["path"]: file["sha256"] for file in json.loads(stored.get("holdfast.json", '{"files": []}'))["files"]
    }
    assert {path: hashlib.sha256(stored[path]).hexdigest() for path in listed} == listed
    assert listed or PUBLISHING_NAME in stored


FLAT = {"tokenizer": b"one", "old.bin": b"old", "w.bin": b"w1"}
NESTED = {"tokenizer/a.json": b"two", "tokenizer/b/c.json": b"three", "w.bin": b"w2"}


@pytest.mark.parametrize(
    ("before", "after"), [(FLAT, NESTED), (NESTED, FLAT)], ids=["folder for file", "file for folder"]
)
async def test_a_replacement_may_be_killed_anywhere(
    tmp_path: Path, anywhere: Place, monkeypatch: pytest.MonkeyPatch, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    """Killed before any of its changes, a publish over another version leaves nothing that reads as a mix; the next
    one publishes whole, and leaves no file of the version before, also where a folder takes a file's place."""
    monkeypatch.setattr(object_mark, "_SILENCE_S", 0.0)
    place = anywhere
    folders = [tmp_path / "before", tmp_path / "after"]
    for folder, files in zip(folders, (before, after), strict=True):
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    last = 0
    while True:
        assert not await replace_version(folders[0], place, 99)
        assert {path: data for path, data in place.files().items() if path != "holdfast.json"} == before
        was_killed = await replace_version(folders[1], place, last)
        check_readable(place)
        assert not await replace_version(folders[1], place, 99)
        assert {path: data for path, data in place.files().items() if path != "holdfast.json"} == after
        if not was_killed:
            break
        last += 1
    assert last > len(after) + 5  # it was killed at each step


def test_unfinished_uploads_of_a_killed_publisher_are_aborted(tmp_path: Path, moto: S3Server) -> None:
    """The parts that it left, which nothing lists and which are paid for, go with its mark; an upload of another
    program's file stays."""
    folder, bucket, client = model(tmp_path / "A", "A", files=2), new_bucket(moto), moto.client()
    for path in ("s0.bin", "s0.bin", "other.bin"):
        client.create_multipart_upload(Bucket=bucket, Key=f"m/{path}")
    mark = replace(Mark.new(Digest.of(b"")), ended=True).encode()
    client.put_object(Bucket=bucket, Key=f"m/{PUBLISHING_NAME}", Body=mark)
    published(folder, f"s3://{bucket}/m/", env=moto.environment)
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["m/other.bin"]


def test_a_publisher_that_gave_up_is_followed_at_once(tmp_path: Path, place: Place) -> None:
    """A publish that failed by itself says so in its mark: the next one need not wait."""
    folder = model(tmp_path / "A", "A", files=3, size=20_000_000)
    process = begin(folder, place, "--threads", "1")
    wait_for_mark(place)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode in (0, 1)
    assert "looking" not in publish(folder, place.uri, env=place.env).stderr


async def test_a_folder_is_locked_while_it_is_published(tmp_path: Path) -> None:
    """A second publisher is told who publishes, and may begin once the first has let go."""
    first, second = FolderDestination(tmp_path / "out"), FolderDestination(tmp_path / "out")
    mark = Mark.new(Digest.of(b"first"))
    await first.claim(mark, print)
    with pytest.raises(Permanent) as caught:
        await second.claim(Mark.new(Digest.of(b"second")), print)
    assert caught.value.code == "another_publisher" and mark.host in caught.value.message
    await first.give_up()
    said: list[str] = []
    await second.claim(Mark.new(Digest.of(b"second")), said.append)
    assert len(said) == 1 and mark.host in said[0]
    await second.unmark()
    assert not (tmp_path / "out" / ".holdfast").exists()


async def test_a_mark_that_was_removed_by_hand_stops_its_publisher(tmp_path: Path) -> None:
    """A publisher whose mark is gone, or is another file, does not go on."""
    destination = FolderDestination(tmp_path / "out")
    await destination.claim(Mark.new(Digest.of(b"")), print)
    (tmp_path / "out" / PUBLISHING_NAME).unlink()
    with pytest.raises(Permanent) as caught:
        await destination.keep_claim()
    assert caught.value.code == "another_publisher"
    await destination.aclose()


@pytest.fixture(params=["moto", pytest.param("rclone", marks=pytest.mark.slow), "gcs", "azure"])
async def marks(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[], ObjectMark]]:
    """Marks of several publishers at one place, with little patience."""
    if request.param in ("gcs", "azure"):
        store: Store = request.getfixturevalue(f"{request.param}_store")
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        destinations: list[GcsDestination | AzureDestination] = []

        def make_one() -> ObjectMark:
            opened = (GcsDestination if request.param == "gcs" else AzureDestination)(store.uri, 2)
            destinations.append(opened)
            return opened.mark

        monkeypatch.setattr(object_mark, "_SILENCE_S", 3.0)
        monkeypatch.setattr(object_mark, "_LOOK_S", 0.1)
        yield make_one
        for each in destinations:
            await each.aclose()
        return
    server: S3Server = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_mark, "_SILENCE_S", 3.0)
    monkeypatch.setattr(object_mark, "_LOOK_S", 0.1)
    monkeypatch.setattr(object_mark, "_SETTLE_S", 0.2)
    clients: list[S3Client] = []
    bucket = new_bucket(server)

    def make() -> ObjectMark:
        client = S3Client(S3Address.parse(f"s3://{bucket}/m/"), attempts=2, connections=2, read_timeout_s=60)
        clients.append(client)
        return ObjectMark(S3MarkStore(client, S3Writer(client), f"m/{PUBLISHING_NAME}"), client.address.display)

    yield make
    for client in clients:
        await client.aclose()


async def test_a_living_publisher_is_not_taken_over_from(marks: Callable[[], ObjectMark]) -> None:
    """A mark that is written again while another publisher looks at it keeps that one away."""
    first, second = marks(), marks()
    await first.claim(Mark.new(Digest.of(b"1")), print)

    async def live() -> None:
        while True:
            await asyncio.sleep(0.2)
            await first.keep()

    living = asyncio.create_task(live())
    with pytest.raises(Permanent) as caught:
        await second.claim(Mark.new(Digest.of(b"2")), print)
    living.cancel()
    assert caught.value.code == "another_publisher" and caught.value.remedy
    await first.keep()
    await first.remove()


async def test_a_publisher_that_stood_still_finds_that_it_lost(marks: Callable[[], ObjectMark]) -> None:
    """One that was taken for dead and wakes up stops at its next look, and leaves the other's mark alone."""
    first, second = marks(), marks()
    await first.claim(Mark.new(Digest.of(b"1")), print)
    said: list[str] = []
    await second.claim(Mark.new(Digest.of(b"2")), said.append)
    assert any("taking over" in text for text in said)
    for stop in (first.keep, first.remove):
        with pytest.raises(Permanent) as caught:
            await stop()
        assert caught.value.code == "another_publisher" and str(Digest.of(b"2")) in caught.value.message
    await first.give_up()
    await second.keep()


async def test_of_many_that_begin_together_one_goes_on(marks: Callable[[], ObjectMark]) -> None:
    """Whether or not the store knows conditions, claims at the same moment leave one publisher."""
    several = [marks() for _ in range(4)]
    claims = [each.claim(Mark.new(Digest.of(b"1")), lambda _text: None) for each in several]
    ended = await asyncio.gather(*claims, return_exceptions=True)
    looks = await asyncio.gather(*(each.keep() for each in several), return_exceptions=True)
    won = [claim is None and look is None for claim, look in zip(ended, looks, strict=True)]
    assert won.count(True) == 1
    assert all(isinstance(error, Permanent | AssertionError) for error in (*ended, *looks) if error is not None)


def test_another_version_is_told_by_its_digest(tmp_path: Path, place: Place) -> None:
    """One after the other is no race: the second is refused as ever, and leaves no mark."""
    published(model(tmp_path / "A", "A"), place.uri, env=place.env)
    before = place.files()
    refused = publish(model(tmp_path / "B", "B"), place.uri, env=place.env)
    assert refused.returncode == 1 and "holds another version" in refused.stderr
    assert place.files() == before
