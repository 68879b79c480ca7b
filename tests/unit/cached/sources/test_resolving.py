"""Resolvers: what they lead to is read there, with what both sides vouch for."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.core.listing import Algorithm, Checksum, Listing, RemoteFile
from cached.sources.base import Opener, Source
from cached.sources.registry import open_source
from cached.sources.resolving import Named, Referral, Resolution, ResolvedSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import LocalTarget, Target

FILES = {"config.json": b"{}", "sub/w.bin": b"weights"}


NO_CLIENT = HttpClient(HttpSettings())
NO_CLIENT.close()  # these places are folders


@pytest.fixture
def opener() -> Iterator[Opener]:
    client = HttpClient(HttpSettings())
    yield partial(open_source, client=client)
    client.close()


def folder(path: Path, files: dict[str, bytes] = FILES) -> str:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path.as_uri()


def resolver(opener: Opener, *referrals: Referral, revision: str | None = None) -> ResolvedSource:
    return ResolvedSource("test", "test:m/3", NO_CLIENT, opener, lambda _cancellation: Resolution(referrals, revision))


async def read(source: ResolvedSource) -> dict[str, bytes]:
    """Every file's bytes, located by another instance of the source."""
    found = {}
    for file in (await source.resolve()).files:
        target = await source.locate(file)
        assert isinstance(target, LocalTarget)
        found[file.path] = target.path.read_bytes()
    return found


async def test_one_place_is_read_as_it_would_be_directly(tmp_path: Path, opener: Opener) -> None:
    """A file has the same key and identity by a resolver and directly, so that it is one partial blob."""
    uri = folder(tmp_path / "m")
    source, direct = resolver(opener, Referral(uri), revision="3"), opener(uri)
    listing, directly = await source.resolve(), await direct.resolve()
    assert (listing.files, listing.identity) == (directly.files, directly.identity)
    assert listing.revision == "3"
    assert await read(source) == FILES
    await source.aclose()
    await source.aclose()


async def test_a_manifest_at_the_place_stays_one(tmp_path: Path, opener: Opener) -> None:
    """A published version that a resolver leads to has its manifest's digests: it is known."""
    uri = folder(tmp_path / "m")
    entries = (FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in FILES.items())
    (tmp_path / "m" / "holdfast.json").write_bytes(Manifest.build(entries).canonical())
    listing = await resolver(opener, Referral(uri)).resolve()
    assert listing.manifest is not None
    assert {file.trust for file in listing.files} == {"known"}


async def test_several_places_are_one_version(tmp_path: Path, opener: Opener) -> None:
    """Files of several places lie under their folders, and each is located at its own place."""
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", {"w.bin": b"adapter"})
    source = resolver(opener, Referral(one), Referral(two, under="lora/"))
    assert await read(source) == {**FILES, "lora/w.bin": b"adapter"}
    keys = [file.key for file in (await source.resolve()).files]
    assert len(set(keys)) == 3
    another = resolver(opener, Referral(one), Referral(two, under="lora/"))
    (lora,) = (file for file in (await source.resolve()).files if file.path == "lora/w.bin")
    assert isinstance(target := await another.locate(lora), LocalTarget)
    assert target.path.read_bytes() == b"adapter"


async def test_an_index_decides_neither_how_many_places_nor_how_many_at_once(tmp_path: Path, opener: Opener) -> None:
    """Who writes an index may name as many places as files: some are listed at once, too many are refused unopened."""
    uris = [folder(tmp_path / f"p{number}", {f"f{number}": b"x"}) for number in range(40)]
    listing_now: list[int] = []

    def counting(uri: str, *, chosen_by: str | None = None) -> Source:
        return _Counted(opener(uri, chosen_by=chosen_by), listing_now)

    files = (await resolver(counting, *map(Referral, uris)).resolve()).files
    assert len(files) == 40 and 1 < max(listing_now) <= 16

    def refusing(uri: str, *, chosen_by: str | None = None) -> Source:
        raise AssertionError(f"{uri} was opened")

    with pytest.raises(Permanent) as caught:
        await resolver(refusing, *(Referral(f"s3://bucket-{number}/") for number in range(2000))).resolve()
    assert caught.value.code == "too_many_places" and caught.value.remedy


class _Counted:
    """A source that notes how many of its kind are listed at once."""

    def __init__(self, source: Source, running: list[int]) -> None:
        self._source = source
        self._running = running
        self.kind, self.display = source.kind, source.display

    async def resolve(self) -> Listing:
        self._running.append(sum(self._running[-1:]) + 1)
        try:
            await asyncio.sleep(0.001)
            return await self._source.resolve()
        finally:
            self._running.append(self._running[-1] - 1)

    async def locate(self, file: RemoteFile) -> Target:
        return await self._source.locate(file)

    async def aclose(self) -> None:
        await self._source.aclose()


async def test_named_files_have_the_promises_of_the_index(tmp_path: Path, opener: Opener) -> None:
    """A resolver's index renames files and adds its sums; what the place vouches for itself stays."""
    uri = folder(tmp_path / "store", {"files/md5/ab/cd": b"weights", "files/md5/ab/ef": b"other"})
    md5 = Checksum(Algorithm.MD5, hashlib.md5(b"weights").hexdigest())
    source = resolver(opener, Referral(uri, named=(Named("model.bin", "files/md5/ab/cd", sums=(md5,)),)))
    (file,) = (await source.resolve()).files
    assert (file.path, file.size, file.checksum, file.trust) == ("model.bin", 7, md5, "checked")
    assert file.validator
    assert await read(source) == {"model.bin": b"weights"}


async def test_an_index_that_its_store_contradicts(tmp_path: Path, opener: Opener) -> None:
    """A named file that is missing, or of another size, has the problem; the others are fine."""
    uri = folder(tmp_path / "store", {"a": b"1", "b": b"22"})
    named = (Named("a", "a", 1), Named("b", "b", 3), Named("c", "c", 1))
    files = (await resolver(opener, Referral(uri, named=named)).resolve()).files
    assert [None if file.problem is None else file.problem.code for file in files] == [
        None,
        "size_mismatch",
        "not_found",
    ]


async def test_a_manifest_among_named_files_decides(tmp_path: Path, opener: Opener) -> None:
    """A `holdfast.json` that an index names makes the version known, and of its files only; what it lists and the index
    has not, or with another size, has the problem. Records of ours are no content without one."""
    entries = [FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in FILES.items()]
    extra = [*entries, FileEntry("gone", "0" * 64, 1)]
    stored = {"a": FILES["config.json"], "b": FILES["sub/w.bin"], "m": Manifest.build(entries).canonical()}
    uri = folder(tmp_path / "store", {**stored, "x": Manifest.build(extra).canonical(), "r": b"{}"})
    named = [Named("config.json", "a"), Named("sub/w.bin", "b"), Named("more.txt", "r")]
    at_root = Named("holdfast.json", "m")
    listing = await resolver(opener, Referral(uri, named=(*named, at_root))).resolve()
    assert listing.manifest is not None and {file.trust for file in listing.files} == {"known"}
    assert {file.path for file in listing.files} == set(FILES)
    listing = await resolver(opener, Referral(uri, named=(*named, Named("holdfast.json", "x")))).resolve()
    assert [file.path for file in listing.files if file.problem is not None] == ["gone"]
    with pytest.raises(HoldfastError) as caught:
        await resolver(opener, Referral(uri, named=(*named, Named("holdfast.json", "r")))).resolve()
    assert caught.value.code == "invalid_manifest"
    with pytest.raises(Transient) as unfinished:
        await resolver(opener, Referral(uri, named=(*named, Named(".holdfast/publishing", "r")))).resolve()
    assert unfinished.value.code == "publishing"
    listing = await resolver(opener, Referral(uri, named=(*named, Named(".holdfast/other", "r")))).resolve()
    assert len(listing.files) == len(named)


async def test_errors_name_the_way(tmp_path: Path, opener: Opener) -> None:
    """An error of the place says which resolver led there; a URI that no source reads names the scheme only."""
    gone = (tmp_path / "gone").as_uri()
    with pytest.raises(Permanent, match=f"test:m/3, which leads to {gone}: ") as caught:
        await resolver(opener, Referral(gone)).resolve()
    assert caught.value.code == "not_found"
    with pytest.raises(Permanent, match="test:m/3 leads to a place that cannot be opened") as caught:
        await resolver(opener, Referral("dbfs://user:s3cret@x/y")).resolve()
    assert caught.value.code == "unknown_scheme" and "s3cret" not in str(caught.value)
    with pytest.raises(Permanent, match="expected a place of files, found none"):
        await resolver(opener).resolve()


async def test_a_resolver_that_fails_is_asked_again(tmp_path: Path, opener: Opener) -> None:
    """An error of the resolver's service is the version's; the next call asks anew, and after success not again."""
    uri, answers = folder(tmp_path / "m"), [Transient("http_503", "busy", "")]
    asked: list[Cancellation] = []

    def find(cancellation: Cancellation) -> Resolution:
        asked.append(cancellation)
        if answers:
            raise answers.pop()
        return Resolution((Referral(uri),))

    source = ResolvedSource("test", "test:m/3", NO_CLIENT, opener, find)
    with pytest.raises(Transient, match="busy"):
        await source.resolve()
    assert await read(source) == FILES
    assert len(asked) == 2


async def test_a_service_elsewhere_does_not_lead_to_this_machine(opener: Opener) -> None:
    """An http address that a service elsewhere names is refused on loopback and at the metadata service, as a redirect
    there is."""
    for place in ("http://127.0.0.1:9/m/", "http://169.254.169.254/latest/meta-data/"):
        with pytest.raises(Permanent) as caught:
            await resolver(opener, Referral(place, chosen_by="http://192.0.2.1/")).resolve()
        assert caught.value.code == "insecure_redirect"


async def test_resolvers_in_a_circle_are_refused() -> None:
    """Each opener counts the resolvers on the way: a reference to itself ends with an error, not with the stack."""
    client = HttpClient(HttpSettings())
    client.close()
    with pytest.raises(HoldfastError, match="after 5 others that lead to it") as caught:
        open_source("/models/m", client, resolvers=5)
    assert caught.value.code == "circular_source"
