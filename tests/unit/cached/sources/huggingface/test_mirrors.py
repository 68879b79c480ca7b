"""Mirrors of the Hub as companies run them: less of the API, other headers, a path of their own, logins before them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from cached.contract.errors import HoldfastError
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from tests.support.choosing import chosen
from tests.support.fake_hub import FakeHub, Reply, Request
from tests.support.filling import manifest_of
from tests.support.hub_cases import CONFIG, NAME, TOKEN, URI, WEIGHTS, hub_source, refusal, write

MODEL = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "extra/a b.json": b"[]"}
_MISSING = Reply(404, {"Content-Type": "text/plain"}, b"404 page not found")


class Mirror(FakeHub):
    """A Hub that refuses what `lacking` is part of, with `refused`; `dropped` headers are never sent."""

    def __init__(self, *lacking: str, refused: Reply = _MISSING, dropped: tuple[str, ...] = ()) -> None:
        super().__init__(page_size=2)
        self.lacking = lacking
        self._refused = refused
        self._dropped = dropped

    def __enter__(self) -> Mirror:
        super().__enter__()
        return self

    def answer(self, request: Request) -> Reply:
        if any(part in request.path for part in self.lacking):
            self.requests.append(request)
            return self._refused
        reply = super().answer(request)
        return Reply(
            reply.status,
            {name: value for name, value in reply.headers.items() if name not in self._dropped},
            reply.body,
            reply.file,
        )


async def _contents(uri: str = URI) -> dict[str, bytes]:
    """What a version has, read through the client as the engine reads it."""
    client, source, found = HttpClient(HttpSettings()), hub_source(uri), {}
    for path, file in (await chosen(source)).items():
        target = await source.locate(file)
        assert isinstance(target, HttpTarget)
        assert file.sha256 is not None or file.git_oid is not None
        found[path] = client.fetch(target, 10_000_000, Cancellation()).body
    client.close()
    return found


@pytest.fixture(autouse=True)
def _no_token(hub: FakeHub) -> None:
    """The environment of `hub`, whose endpoint the mirrors of a test replace."""


def _use(mirror: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes] = MODEL) -> str:
    """Fill a mirror and point this process at it; returns the commit."""
    monkeypatch.setenv("HF_ENDPOINT", mirror.endpoint)
    return mirror.add(NAME, write(tmp_path / "mirrored", files)).refs["main"]


REFUSALS = [
    _MISSING,
    Reply(405, {}, b""),
    Reply(501, {}, b""),
    Reply(503, {"Content-Type": "text/plain"}, b"no backend"),
    Reply(404, {"X-Error-Code": "RevisionNotFound"}, b"{}"),
]


@pytest.mark.parametrize("refused", REFUSALS, ids=lambda reply: str(reply.status))
@pytest.mark.parametrize("revision", ["", "@main", "@commit"])
async def test_a_mirror_without_a_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Reply, revision: str
) -> None:
    """Without the tree API files and their ids come from the answer about the revision, and are checked like any."""
    with Mirror("/tree/", refused=refused, dropped=("X-Repo-Commit",)) as mirror:
        commit = _use(mirror, tmp_path, monkeypatch)
        assert await _contents(f"hf://{NAME}{revision.replace('commit', commit)}") == MODEL
        assert await _contents(f"hf://{NAME}/extra/") == {"a b.json": b"[]"}


class _Strict(Mirror):
    """A mirror that refuses a parameter which it does not know."""

    def answer(self, request: Request) -> Reply:
        if request.query.get("expand") == ["sha"]:
            return Reply(400, {"Content-Type": "application/json"}, b'{"error": "unknown parameter"}')
        return super().answer(request)


async def test_a_mirror_that_refuses_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that cannot be asked for the commit alone is asked for all that it says of the revision."""
    with _Strict() as mirror:
        _use(mirror, tmp_path, monkeypatch)
        assert await _contents() == MODEL


async def test_a_mirror_that_knows_branches_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commit that a branch was said to be is unknown, all is asked for by the branch's name."""
    with Mirror() as mirror:
        commit = _use(mirror, tmp_path, monkeypatch)
        mirror.lacking = (commit,)
        assert await _contents() == MODEL
        manifest = manifest_of(MODEL)
        mirror.lacking = (mirror.commit(NAME, write(tmp_path / "mirrored", {"holdfast.json": manifest.canonical()})),)
        assert await _contents() == MODEL


async def test_a_branch_that_moves_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is asked for by a branch's name and is another one by then is not read."""
    with Mirror(dropped=("X-Repo-Commit",)) as mirror:
        mirror.lacking = (_use(mirror, tmp_path, monkeypatch),)
        source = hub_source(URI)
        config = (await chosen(source))["config.json"]
        target = await source.locate(config)
        assert isinstance(target, HttpTarget) and target.if_match == f'"{config.git_oid}"'
        mirror.commit(NAME, write(tmp_path / "other", {"config.json": b"[1]" * 100}))
        assert (await refusal(source, config)).code == "source_changed"


async def test_a_mirror_that_knows_the_repository_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an API for revisions the default branch comes from the answer about the repository."""
    with Mirror("/revision/", "/tree/") as mirror:
        _use(mirror, tmp_path, monkeypatch)
        assert await _contents() == MODEL
        error = await refusal(hub_source(f"hf://{NAME}@v2"))
        assert (error.code, error.permanent) == ("not_found", True)
        assert "this mirror has no revision API" in error.message and "HF_ENDPOINT" in error.remedy


@pytest.mark.parametrize(("status", "code", "permanent"), [(404, "not_found", True), (503, "http_503", False)])
async def test_a_mirror_that_lists_no_files_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, permanent: bool
) -> None:
    """Without the tree API, and without ids in the answer about the revision, the version says what is missing."""
    with Mirror("/tree/", refused=Reply(status, {}, b"")) as mirror:
        mirror.lists_blobs = False
        _use(mirror, tmp_path, monkeypatch)
        error = await refusal(hub_source(URI))
        assert (error.code, error.permanent) == (code, permanent)
        assert "this mirror has no tree API" in error.message
        assert mirror.endpoint in error.message and "HF_ENDPOINT" in error.remedy


async def test_a_repository_that_is_missing_is_not_called_a_lack_of_the_mirrors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a Hub names as missing is told as that, and asked for no other way."""
    with Mirror() as mirror:
        _use(mirror, tmp_path, monkeypatch)
        for uri in ("hf://acme/none", f"hf://{NAME}@none", f"hf://{NAME}/none"):
            error = await refusal(hub_source(uri))
            assert (error.code, "mirror" in error.message) == ("not_found", False)
        assert len(mirror.requests) == 4


@pytest.mark.parametrize("api", [True, False])
async def test_a_mirror_that_sends_on_to_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: bool
) -> None:
    """Redirects to another Hub are followed, for its API and for files; the mirror's token stays with the mirror."""

    class SendsOn(FakeHub):
        def answer(self, request: Request) -> Reply:
            if not api and request.path.startswith("/api/"):
                return super().answer(request)
            self.requests.append(request)
            query = "&".join(f"{name}={quote(value[0])}" for name, value in request.query.items())
            return Reply(307, {"Location": f"{hub.endpoint}{request.path}" + (f"?{query}" if query else "")})

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add(NAME, write(tmp_path / "hubs", MODEL))
    with SendsOn(page_size=2) as mirror:
        mirror.tokens.add(TOKEN)
        _use(mirror, tmp_path, monkeypatch)
        assert await _contents() == MODEL
        assert any("authorization" in request.headers for request in mirror.requests)
    assert not [request for request in hub.requests if "authorization" in request.headers]
    assert hub.violations == []


async def test_a_next_page_that_names_the_hub_is_asked_of_the_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that passes on the Hub's link to the next page is asked for that page itself."""

    class PassesLinksOn(Mirror):
        def answer(self, request: Request) -> Reply:
            reply = super().answer(request)
            link = reply.headers.get("Link", "").replace(self.endpoint, "https://huggingface.example")
            return Reply(reply.status, reply.headers | ({"Link": link} if link else {}), reply.body, reply.file)

    with PassesLinksOn() as mirror:
        mirror.lists_blobs = False
        _use(mirror, tmp_path, monkeypatch)
        assert await _contents() == MODEL
        assert mirror.count("/tree/") > 1


async def test_a_mirror_under_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_ENDPOINT may have a path, as Artifactory's has."""

    class UnderPath(Mirror):
        def answer(self, request: Request) -> Reply:
            prefix = "/artifactory/api/huggingfaceml/repo"
            if not request.path.startswith(prefix):
                self.violations.append(request.path)
            shorter = Request(
                request.server, request.method, request.path.removeprefix(prefix), request.query, request.headers
            )
            return super().answer(shorter)

    class Streams(UnderPath):
        def answer(self, request: Request) -> Reply:
            reply = super().answer(request)
            if reply.status != 302:
                return reply
            sha256 = reply.headers["X-Linked-Etag"].strip('"')
            return Reply(200, {"ETag": f'"{sha256}"'}, file=self._blobs[sha256].disk)

    with Streams(dropped=("X-Repo-Commit", "Link")) as mirror:
        mirror.page_size = 1000
        _use(mirror, tmp_path, monkeypatch)
        monkeypatch.setenv("HF_ENDPOINT", f"{mirror.endpoint}/artifactory/api/huggingfaceml/repo/")
        assert await _contents() == MODEL
        assert mirror.violations == []


@pytest.mark.parametrize("head", [Reply(405, {}), Reply(501, {}), Reply(200, {"Content-Length": "0"})])
async def test_a_mirror_that_knows_no_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Reply) -> None:
    """A HEAD that is refused, or says nothing of the size, keeps no file back."""

    class NoHead(Mirror):
        def answer(self, request: Request) -> Reply:
            return head if request.method == "HEAD" else super().answer(request)

    with NoHead() as mirror:
        _use(mirror, tmp_path, monkeypatch)
        assert await _contents() == MODEL


async def test_a_login_page_in_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose address leads to a login at the mirror itself is told as a web page, not as another file."""

    class Portal(Mirror):
        def answer(self, request: Request) -> Reply:
            if request.path == "/login":
                return Reply(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
            if "/resolve/" in request.path:
                return Reply(302, {"Location": "/login?next=s3cret"})
            return super().answer(request)

    with Portal() as mirror:
        _use(mirror, tmp_path, monkeypatch)
        source = hub_source(URI)
        error = await refusal(source, (await chosen(source))["model.safetensors"])
        assert error.code == "bad_response"
        assert f"a web page (HTML) at {mirror.endpoint}/login" in error.message and "s3cret" not in str(error)


PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>"


@pytest.mark.parametrize("part", ["/revision/", "/tree/", "holdfast.json"])
@pytest.mark.parametrize("elsewhere", [True, False])
async def test_a_login_page_in_place_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, elsewhere: bool
) -> None:
    """A web page in place of an answer is told as one, with its URL and what lets this node pass."""

    class Portal(Mirror):
        def answer(self, request: Request) -> Reply:
            if request.path == "/login":
                return Reply(200, {"Content-Type": "text/html"}, PAGE)
            if part not in request.path:
                return super().answer(request)
            if elsewhere:
                return Reply(302, {"Location": "/login?next=s3cret"})
            return Reply(200, {"Content-Type": "text/html"}, PAGE)

    with Portal() as mirror:
        mirror.lists_blobs = part != "/tree/"
        _use(mirror, tmp_path, monkeypatch, MODEL | {"holdfast.json": manifest_of(MODEL).canonical()})
        error: HoldfastError = await refusal(hub_source(URI))
        assert (error.code, error.permanent) == ("bad_response", False)
        assert "a web page (HTML) at " + (f"{mirror.endpoint}/login" if elsewhere else mirror.endpoint) in error.message
        assert "NO_PROXY" in error.remedy and "HF_ENDPOINT" in error.remedy and "s3cret" not in str(error)
