"""The cases: each asks a place for one promise of the Protocol `Source`.

Law: a case puts its own files, and says in its docstring what must hold. `CASES` has all of them by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from cached.conformance.front import Front, front_of
from cached.conformance.place import NotConforming, Place, Refused, expect
from cached.conformance.pulling import Puller
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.trust import Trust, least_of
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import Source
from cached.transport.checksums import new_hasher
from cached.transport.git_blob import git_blob_hasher

WEIGHTS = bytes(range(256)) * 8000  # 2 MB, more than is received at once
FILES: Mapping[str, bytes] = {
    "config.json": b'{"hidden_size": 8}\n',
    "model.bin": WEIGHTS,
    "sub dir/deep/tokenizer.json": b"[]",
}
ODD: Mapping[str, bytes] = {
    "a b/with space.bin": b"space",
    "späß-ñ.bin": b"accents",
    "plus+percent%25#hash.bin": b"url",
    "question?&=amp;.bin": b"query",
    "-dash,comma;'quote'(1)[2].bin": b"marks",
    "日本語/模型.bin": b"wide",
}

Case = Callable[[Place, Puller], Awaitable[None]]


def digest_of(files: Mapping[str, bytes]) -> Digest:
    """Return the manifest digest of files, which does not depend on their source."""
    entries = (FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items())
    return Manifest.build(entries).digest


async def run_case(name: str, place: Place, puller: Puller) -> None:
    """Run the case `name`. Raises `Refused` where the place refuses it, `NotConforming` for a broken promise."""
    if name in place.refused:
        raise Refused(name, place.refused[name])
    await CASES[name](place, puller)


# --- what is there ---------------------------------------------------------------------------------------------------


async def listing(place: Place, puller: Puller) -> None:
    """Every file below the location is listed once, by its path and with its size if the source has sizes; the pulled
    version has the manifest digest of the contents."""
    found = await _expect_pulled(place, puller, FILES, "the manifest digest of the contents")
    expect(len(found.identity) == 64, "expected an identity of 64 hex digits", found.identity)
    expect(len({file.key for file in found.files}) == len(FILES), "expected a key of its own for each file")


async def odd_names(place: Place, puller: Puller) -> None:
    """Spaces, accents, `%`, `+`, `#`, `?`, `&` and other scripts are part of names, in listings and in addresses."""
    await _expect_pulled(place, puller, ODD, "the bytes of files with odd names")


async def dot_files(place: Place, puller: Puller) -> None:
    """A name that begins with a dot is a name."""
    files = {".hidden.json": b"{}", "config.json": b"{}", ".folder/model.bin": b"x"}
    await _expect_pulled(place, puller, files, "the files whose names begin with a dot")


async def empty_files(place: Place, puller: Puller) -> None:
    """A file without bytes is a file."""
    files = {"config.json": b"{}", "empty.txt": b"", "sub/empty.bin": b""}
    await _expect_pulled(place, puller, files, "empty files in the version")


async def pagination(place: Place, _puller: Puller) -> None:
    """A listing of several pages is read to its end, each file once."""
    files = {f"layer-{number:05}.json": b"%d" % number for number in range(place.page + 1)}
    place.put(files)
    async with _opened(place) as source:
        _expect_files(await source.resolve(), files)


async def filters(place: Place, puller: Puller) -> None:
    """Files with names that no version may have are listed: refused by name where they are chosen, harmless where the
    filters leave them out."""
    files = {"config.json": b"{}", "model.bin": b"weights"}
    place.put({**files, "MODEL.bin": b"other"})
    async with _opened(place) as source:
        expect(
            await puller.pull(source, include=["config.json", "model.bin"]) == digest_of(files),
            "expected the chosen files, whatever else lies there",
        )
        error = await _error(puller.pull(source))
        expect(error is not None and error.code == "bad_name", "expected bad_name for names that collide", error)


async def missing(place: Place, puller: Puller) -> None:
    """A location of nothing is permanent and says what to do; a file that went after the listing ends the pull."""
    place.put(FILES)
    async with _opened(place, place.gone) as source:
        error = await _error(puller.pull(source))
        expect(isinstance(error, Permanent) and bool(error.remedy), "expected a Permanent with a remedy", error)
    async with _opened(place) as source:
        found = await source.resolve()
        place.remove("model.bin")
        error = await _error(puller.fetch(source, found))
        codes = ("not_found", "gone", "source_changed", "forbidden")
        if error is None:  # a commit is immutable
            expect(bool(found.revision), "expected an error for a file that was deleted after the listing")
        else:
            expect(error.code in codes, f"expected one of {', '.join(codes)}", error)


async def promises(place: Place, _puller: Puller) -> None:
    """What the listing vouches for is so: every sum is that of the bytes, and the version's trust is the place's."""
    place.put(FILES)
    async with _opened(place) as source:
        found = await source.resolve()
    for file in found.files:
        data = FILES[file.path]
        expect(file.sha256 in (None, hashlib.sha256(data).hexdigest()), f"{file.path}: expected its sha256", file)
        git = git_blob_hasher(len(data))
        git.update(data)
        expect(file.git_oid in (None, git.hexdigest()), f"{file.path}: expected its git blob id", file)
        for checksum in file.sums:
            hasher = new_hasher(checksum.algorithm)
            hasher.update(memoryview(data))
            expect(checksum.hex == hasher.hexdigest(), f"{file.path}: expected its {checksum.algorithm}", checksum)
    trust = least_of(file.trust for file in found.files)
    expect(trust is place.trust, f"expected the trust {place.trust}", trust)


# --- bytes -----------------------------------------------------------------------------------------------------------


async def ranges(place: Place, puller: Puller) -> None:
    """Any range of a file is read from its address: the first byte, the last one, and one across."""
    place.put(FILES)
    async with _opened(place) as source:
        file = _find(await source.resolve(), "model.bin")
        size = len(WEIGHTS)
        for offset, length in ((0, 1), (1, 70_000), (size - 1, 1), (size // 2, size - size // 2)):
            target = await source.locate(file)
            found = await asyncio.to_thread(puller.read, target, offset, length)
            expect(found == WEIGHTS[offset : offset + length], f"expected {length} bytes from {offset}", len(found))


async def resume(place: Place, puller: Puller) -> None:
    """A pull that was broken off goes on: another listing by another source gives an unchanged file the same identity,
    key and version, and its address the rest of the same bytes."""
    place.put(FILES)
    async with _opened(place) as source:
        before = await source.resolve()
        first = _find(before, "model.bin")
        half = await asyncio.to_thread(puller.read, await source.locate(first), 0, len(WEIGHTS) // 2)
    async with _opened(place) as source:
        after = await source.resolve()
        second = _find(after, "model.bin")
        if place.trust is not Trust.SIZED:
            names = [(one.identity, file.key, file.version) for one, file in ((before, first), (after, second))]
            expect(names[0] == names[1], "expected one name of an unchanged file in two listings", names)
        rest = await asyncio.to_thread(puller.read, await source.locate(first), len(half), len(WEIGHTS) - len(half))
        expect(half + rest == WEIGHTS, "expected the rest of the file from another source's address")


async def changed_underneath(place: Place, puller: Puller) -> None:
    """A file that is replaced by one of the same size after the listing never passes for the listed one: the pull ends
    with `source_changed` (or a digest that does not fit), or still gives the listed bytes. Then a new listing has the
    new ones."""
    other = bytes(len(WEIGHTS))
    place.put(FILES)
    async with _opened(place) as source:
        found = await source.resolve()
        place.put({"model.bin": other})
        try:
            digest = await puller.fetch(source, found)
        except HoldfastError as error:
            codes = ("source_changed", "digest_mismatch", "bad_response", "not_found")
            expect(error.code in codes, f"expected one of {', '.join(codes)}", error)
        else:
            allowed = [digest_of(FILES)]
            if place.trust is Trust.SIZED:  # nothing tells the two apart, but never parts of both
                allowed.append(digest_of({**FILES, "model.bin": other}))
            expect(digest in allowed, "expected the listed bytes, or an error")
    async with _opened(place) as source:
        digest = await puller.pull(source)
        expect(digest == digest_of({**FILES, "model.bin": other}), "expected the new bytes from a new listing")


async def truncated(place: Place, puller: Puller) -> None:
    """A body that ends early is fetched again, and never taken for the file."""
    place.put(FILES)
    async with _opened(place) as source:
        found = await source.resolve()
        for front in place.fronts:
            front.cut(1000, choose=place.is_bytes)
        digest = await puller.fetch(source, found)
        expect(digest == digest_of(FILES), "expected the whole file after a cut answer")
        expect(bool(puller.metrics.failures), "expected the cut answer to count as a failure")


async def throttled(place: Place, puller: Puller) -> None:
    """429 and 503 are tried again: of a listing as `Transient`, of bytes within the pull."""
    place.put(FILES)
    busy = {"Retry-After": "0"}
    async with _opened(place) as source:
        place.fronts[0].answer(503, headers=busy, times=None)
        error = await _error(source.resolve())
        expect(isinstance(error, Transient), "expected a Transient from a listing while the service is busy", error)
        place.fronts[0].mend()
        found = await source.resolve()
        for front in place.fronts:
            front.answer(429, headers=busy, choose=place.is_bytes)
        expect(await puller.fetch(source, found) == digest_of(FILES), "expected the version once it is busy no more")


# --- credentials -----------------------------------------------------------------------------------------------------


async def unauthorised(place: Place, puller: Puller) -> None:
    """401 and 403 for every request are permanent, with a remedy."""
    place.put(FILES)
    for status in (401, 403):
        for front in place.fronts:
            front.mend()
            front.answer(status, times=None)
        async with _opened(place) as source:
            error = await _error(puller.pull(source))
            expect(isinstance(error, Permanent), f"expected a Permanent for {status}", error)
            expect(bool(error and error.remedy), "expected a remedy", error)
    expect(puller.blobs() == [], "expected nothing fetched")


async def expired_in_the_middle(place: Place, puller: Puller) -> None:
    """Credentials or addresses that end between two requests for bytes are renewed, and the pull goes on."""
    files = {**FILES, "second.bin": WEIGHTS[::-1], "third.bin": WEIGHTS[1:]}
    place.put(files)
    async with _opened(place) as source:
        found = await source.resolve()
        place.fronts[-1].before(place.expire, choose=place.is_bytes, skip=1)
        expect(await puller.fetch(source, found) == digest_of(files), "expected the version in spite of the end")
        expect(bool(puller.metrics.failures), "expected a refusal of what had ended", puller.metrics.failures)


async def credentials_never_told(place: Place, puller: Puller) -> None:
    """A secret is in no message, log line, key or display, and reaches no host that a redirect leads to."""
    place.put(FILES)
    with _logged() as lines:
        told: list[object] = []
        async with _opened(place) as source:
            found = await source.resolve()
            targets = [await source.locate(file) for file in found.files]
            told += [source.display, repr(source), repr(found), repr(targets), *(file.key for file in found.files)]
        for status, body in ((403, b""), (401, b""), (500, b""), (200, b"<!doctype html><title>Sign in</title>")):
            for front in place.fronts:
                front.mend()
                front.answer(status, body, {"Content-Type": "text/html"}, times=None)
            async with _opened(place) as source:
                told.append(await _error(source.resolve()))
            if status != 500:  # which is tried again for as long as the version is wanted
                async with _opened(place) as source:
                    told.append(await _error(puller.fetch(source, found)))
        for front in place.fronts:
            front.mend()
        async with _opened(place, place.gone) as source:
            told.append(await _error(puller.pull(source)))
    texts = [*lines, *(f"{each} {each!r}" for each in told)]
    for secret in place.secrets:
        showing = [text for text in texts if secret in text]
        expect(not showing, "expected no secret in any text", [text.replace(secret, "<secret>") for text in showing])


async def credentials_stay(place: Place, puller: Puller) -> None:
    """A service that redirects a request for bytes to another host does not get our credentials sent there."""
    place.put(FILES)
    with _sink() as sink:
        async with _opened(place) as source:
            found = await source.resolve()
            for front in place.fronts:
                front.answer(307, headers={"Location": f"{sink.url}/taken"}, times=None, choose=place.is_bytes)
            await _error(puller.fetch(source, found))
        for request in sink.seen:
            for secret in place.secrets:
                expect(secret not in str(request), "expected no secret at a host that a redirect leads to")


# --- bad answers -----------------------------------------------------------------------------------------------------


async def bad_answers(place: Place, puller: Puller) -> None:
    """A web page, a cut and an absurdly long answer in place of a listing are errors of bounded size with a remedy;
    nothing is taken for a version."""
    place.put(FILES)
    front = place.fronts[0]
    page = b"<!doctype html><html><title>Sign in</title></html>"
    for body, kind in (
        (page, "text/html"),
        (b'{"items": [{"name": "mod', "application/json"),
        (b"<?xml version='1.0'?><List><Na", "application/xml"),
        (b"", "application/json"),
        (b" " * (40 << 20), "application/json"),
    ):
        front.mend()
        front.answer(200, body, {"Content-Type": kind}, times=None)
        async with _opened(place) as source:
            try:
                found = await source.resolve()
            except HoldfastError as error:
                expect(bool(error.remedy), "expected a remedy", error)
                expect(len(str(error)) < 2000, "expected a short message", len(str(error)))
            else:
                taken = [file for file in found.files if file.problem is None and file.trust is not Trust.SIZED]
                expect(not taken, f"expected an error for {body[:30]!r} as {kind}", found)
    front.mend()
    async with _opened(place) as source:
        expect(await puller.pull(source) == digest_of(FILES), "expected the version once the answers are right")


async def ends_twice(place: Place, _puller: Puller) -> None:
    """A source sends no request when it is made, has a bounded label, and may be closed again."""
    seen = sum(len(front.seen) for front in place.fronts)
    source = place.open(place.uri)
    expect(sum(len(front.seen) for front in place.fronts) == seen, "expected no request by the constructor")
    expect(source.kind.isidentifier() or source.kind.isprintable(), "expected a label", source.kind)
    await source.aclose()
    await source.aclose()


CASES: Mapping[str, Case] = {
    case.__name__: case
    for case in (
        *(listing, odd_names, dot_files, empty_files, pagination, filters, missing, promises),
        *(ranges, resume, changed_underneath, truncated, throttled),
        *(unauthorised, expired_in_the_middle, credentials_never_told, credentials_stay),
        *(bad_answers, ends_twice),
    )
}


# --- parts -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _opened(place: Place, uri: str | None = None) -> AsyncIterator[Source]:
    source = place.open(uri or place.uri)
    try:
        yield source
    finally:
        await source.aclose()


async def _error(attempt: Awaitable[object]) -> HoldfastError | None:
    """Return the error of an attempt, None if it succeeds; anything else than ours is raised."""
    try:
        await attempt
    except HoldfastError as error:
        return error
    return None


async def _expect_pulled(place: Place, puller: Puller, files: Mapping[str, bytes], what: str) -> Listing:
    """Put files and expect that they are listed, and pulled as a version; return the listing."""
    place.put(files)
    async with _opened(place) as source:
        found = await source.resolve()
        _expect_files(found, files)
        expect(await puller.fetch(source, found) == digest_of(files), f"expected {what}")
        return found


def _expect_files(found: Listing, files: Mapping[str, bytes]) -> None:
    listed = sorted((file.path, file.size) for file in found.files)
    paths = [path for path, _ in listed]
    expect(paths == sorted(files), "expected each file once", sorted(set(files) ^ set(paths)) or paths)
    wrong = [(path, size) for path, size in listed if size not in (None, len(files[path]))]
    expect(not wrong, "expected the sizes of the files", wrong)
    problems = [file.problem for file in found.files if file.problem is not None]
    expect(not problems, "expected no problem", problems)


def _find(found: Listing, path: str) -> RemoteFile:
    for file in found.files:
        if file.path == path:
            return file
    raise NotConforming(f"expected {path} in the listing")


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect what a daemon with `--log-level debug` logs: everything of ours, and the warnings of libraries."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler, root, ours = Collect(), logging.getLogger(), logging.getLogger("cached")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])


@contextmanager
def _sink() -> Iterator[Front]:
    """Serve a host that only notes what comes."""
    with front_of("http://127.0.0.1:9") as front:
        front.answer(404, times=None)
        yield front
