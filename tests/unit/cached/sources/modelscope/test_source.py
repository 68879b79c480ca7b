"""Versions on ModelScope: at a stand-in that is written from its client's source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cached.conformance.cases import CASES, digest_of, run_case
from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.conformance.place import Refused
from cached.conformance.pulling import Puller, puller_in
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import CHAINS_NAME, FileEntry, Manifest
from cached.contract.trust import Trust, least_of
from cached.core.listing import Listing
from cached.sources.base import Source
from cached.sources.modelscope.address import ModelScopeAddress
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from tests.support.fake_modelscope import MOST_ENTRIES, TOKEN, FakeModelScope, fake_modelscope

REPO = "Qwen/Qwen3-0.6B"
FILES = {"config.json": b"{}", "w/model.bin": b"weights" * 20000, "w/ä b+#?.json": b"[]", "w/empty": b""}
PAGE = b"<!doctype html><html><title>Sign in</title></html>"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, site, netrc file or proxy of the user who runs the tests."""
    ours = ("MODELSCOPE_API_TOKEN", "MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN")
    for name in (*ours, "NETRC", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def client(no_credentials: None) -> Iterator[HttpClient]:
    client = HttpClient(HttpSettings(header_timeout_s=20.0, stall_window_s=20.0))
    yield client
    client.close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModelScope]:
    with fake_modelscope() as site:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", site.url)
        site.commit(REPO, FILES)
        yield site


@pytest.fixture
def puller(tmp_path: Path, no_credentials: None) -> Iterator[Puller]:
    with puller_in(tmp_path / "root") as puller:
        yield puller


async def listed(client: HttpClient, rest: str = "") -> Listing:
    return await open_source(f"ms://{REPO}{rest}", client).resolve()


async def error_of(client: HttpClient, rest: str = "") -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await listed(client, rest)
    assert caught.value.remedy
    assert len(str(caught.value)) < 2000
    return caught.value


# --- conformance ------------------------------------------------------------------------------------------------------


class SitePlace:
    """A private repository; its weights are at the CDN."""

    trust = Trust.KNOWN
    page = 20
    refused: Mapping[str, str] = {"pagination": "a listing is one answer; one that the site may have cut is refused"}

    def __init__(self, client: HttpClient, site: FakeModelScope, fronts: Sequence[Front]) -> None:
        self._client, self._site, self.fronts = client, site, fronts
        self._files: dict[str, bytes] = {}
        self.uri, self.gone = "ms://team/m@master", "ms://team/m@gone"

    @property
    def secrets(self) -> Sequence[str]:
        return (TOKEN, *self._site.issued)

    def open(self, uri: str) -> Source:
        return open_source(uri, self._client)

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files |= files
        self._site.commit("team/m", self._files)

    def remove(self, path: str) -> None:
        del self._files[path]
        self.put({})

    def expire(self) -> None:
        self._site.signed.clear()

    def is_bytes(self, request: ProxiedRequest) -> bool:
        return ".bin" in request.path and request.headers.get("range") != "bytes=0-0"


@pytest.mark.parametrize("case", CASES)
async def test_conforms(case: str, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelScope keeps each promise of `cached/conformance/cases.py`, or the place refuses the case by name."""
    with ExitStack() as stack:
        site = stack.enter_context(fake_modelscope(private=True))
        fronts = [stack.enter_context(front_of(url)) for url in (site.url, site.cdn_url)]
        site.cdn_url = fronts[1].url
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", fronts[0].url)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        puller = stack.enter_context(puller_in(tmp_path / "root"))
        try:
            await run_case(case, SitePlace(client, site, fronts), puller)
        except Refused as refused:
            pytest.skip(str(refused))


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "repo", "revision", "folder"),
    [
        ("ms://Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "master", ""),
        ("MS://models/Qwen/Qwen3-8B@v1.0", "Qwen/Qwen3-8B", "v1.0", ""),
        ("ms://models/x@main", "models/x", "main", ""),
        ("ms://Qwen/Qwen3-8B/gguf/q4/", "Qwen/Qwen3-8B", "master", "gguf/q4/"),
        ("ms://Qwen/Qwen3-8B@release%2F1/a@b", "Qwen/Qwen3-8B", "release/1", "a@b/"),
    ],
)
def test_a_location_names_repository_revision_and_folder(uri: str, repo: str, revision: str, folder: str) -> None:
    """The grammar is that of `hf://`; what is shown can be parsed again."""
    found = ModelScopeAddress.parse(uri)
    assert (found.repo, found.revision, found.folder) == (repo, revision, folder)
    assert ModelScopeAddress.parse(str(found)) == found


@pytest.mark.parametrize(
    "uri",
    [
        "ms://",
        "ms://Qwen",
        "ms://Qwen/",
        "ms://Qwen/..",
        "ms://Qwen/m@",
        "ms://Qwen/m@a..b",
        "ms://Qwen/m@v1/../x",
        "ms://Qwen/m@v1//x",
        "ms://user:sesame@Qwen/m",
        "ms://sesame@Qwen/m",
        "ms://Qwen/m?token=sesame",
        "ms://Qwen/m#x",
        "ms://datasets/Qwen/m",
    ],
)
def test_what_names_none_is_refused(uri: str) -> None:
    """A location that is none is refused with the form, and its secrets are not shown."""
    with pytest.raises(Permanent) as caught:
        ModelScopeAddress.parse(uri)
    assert caught.value.code == "invalid_source"
    assert "ms://org/name" in caught.value.remedy
    assert "sesame" not in str(caught.value)


# --- listings ---------------------------------------------------------------------------------------------------------


async def test_a_listing_is_one_request_and_known(site: FakeModelScope, client: HttpClient, puller: Puller) -> None:
    """Every file has its sha256 before a byte, the commit is told, and a folder loses its name."""
    commit = site.branches[REPO, "master"]
    found = await listed(client)
    assert (found.revision, least_of(file.trust for file in found.files)) == (commit, Trust.KNOWN)
    assert {file.path: file.sha256 for file in found.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()
    }
    source = open_source(f"ms://{REPO}@{commit}/w", client)
    files = {path.removeprefix("w/"): data for path, data in FILES.items() if path.startswith("w/")}
    assert await puller.pull(source) == digest_of(files)


async def test_a_branch_that_moves_is_still_the_listed_commit(
    site: FakeModelScope, client: HttpClient, puller: Puller
) -> None:
    """Files are read at the commit that was listed, where the site says which that is."""
    source = open_source(f"ms://{REPO}", client)
    found = await source.resolve()
    site.commit(REPO, {"config.json": b"other"})
    assert await puller.fetch(source, found) == digest_of(FILES)


@pytest.mark.parametrize(("says", "knows"), [(False, True), (True, False)])
async def test_a_site_without_commits_is_read_by_name(
    says: bool, knows: bool, site: FakeModelScope, client: HttpClient, puller: Puller
) -> None:
    """Where the site names no commit, or does not know it, the branch is read, and the sha256 decides."""
    site.says_commit, site.knows_commits = says, knows
    source = open_source(f"ms://{REPO}", client)
    found = await source.resolve()
    assert (found.revision is None) == (not says)
    assert await puller.fetch(source, found) == digest_of(FILES)


async def test_a_branch_that_moves_is_a_wrong_digest_where_no_commit_is_known(
    site: FakeModelScope, client: HttpClient, puller: Puller
) -> None:
    """Other weights of the same size under the same name are never taken for the listed ones."""
    site.says_commit = False
    source = open_source(f"ms://{REPO}", client)
    found = await source.resolve()
    site.commit(REPO, {**FILES, "w/model.bin": bytes(len(FILES["w/model.bin"]))})
    with pytest.raises(HoldfastError) as caught:
        await puller.fetch(source, found)
    assert caught.value.code == "digest_mismatch"


async def test_the_site_is_the_clients(
    site: FakeModelScope, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's older variable names the site too, and the newer one wins."""
    monkeypatch.setenv("MODELSCOPE_DOMAIN", site.url)
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    assert (await listed(client)).files
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"{site.url}/")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "ftp://x")
    assert (await listed(client)).files


@pytest.mark.parametrize(("count", "is_cut"), [(MOST_ENTRIES - 1, False), (MOST_ENTRIES, True), (3500, True)])
async def test_a_listing_that_may_be_cut_is_refused(
    count: int, is_cut: bool, site: FakeModelScope, client: HttpClient
) -> None:
    """A listing as long as the site's limit is refused, and a folder of the repository is named as the way."""
    site.commit(REPO, {f"f{number:05}.json": b"{}" for number in range(count)})
    if not is_cut:
        assert len((await listed(client)).files) == count
        return
    error = await error_of(client)
    assert (error.code, error.permanent) == ("too_many_files", True)
    assert "folder" in error.remedy


async def test_a_manifest_among_the_files_decides(site: FakeModelScope, client: HttpClient, puller: Puller) -> None:
    """What `holdfast.json` does not list is no part of the version; one that contradicts the site is refused."""
    files = {path: data for path, data in FILES.items() if path != "w/empty"}
    manifest = Manifest.build(FileEntry(p, hashlib.sha256(d).hexdigest(), len(d)) for p, d in files.items())
    site.commit(REPO, {**FILES, "holdfast.json": manifest.canonical(), CHAINS_NAME: b"chains"})
    found = await listed(client)
    assert found.manifest == manifest
    assert found.chains is not None
    assert (found.chains.size, {file.path for file in found.files}) == (6, set(files))
    assert await puller.pull(open_source(f"ms://{REPO}", client)) == manifest.digest
    site.commit(REPO, {"config.json": b"other", "holdfast.json": manifest.canonical()})
    problems = {file.problem.code for file in (await listed(client)).files if file.problem is not None}
    assert problems == {"invalid_manifest"}


def _change(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    def change(answer: dict[str, Any]) -> Any:
        answer["Data"]["Files"][0].update(fields)
        return answer

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _answer: [], "bad_response"),
        (lambda _answer: {}, "bad_response"),
        (lambda _answer: {"Data": {"Files": "x"}}, "bad_response"),
        (lambda _answer: {"Code": 10010205001, "Success": False, "Message": "no such model"}, "refused"),
        (lambda answer: {**answer, "Data": {"Files": [*answer["Data"]["Files"]] * 2}}, "bad_response"),
        (lambda answer: {**answer, "Data": {"Files": []}}, "not_found"),
        (_change(Path=""), "bad_response"),
        (_change(Path=7), "bad_response"),
    ],
)
async def test_an_answer_that_is_no_listing_is_an_error(
    change: Callable[[dict[str, Any]], Any], code: str, site: FakeModelScope, client: HttpClient
) -> None:
    """An answer of another form, a file twice, or 200 with an error inside, is an error with a remedy."""
    site.listing = change
    assert (await error_of(client)).code == code


@pytest.mark.parametrize(
    "fields",
    [
        {"Size": -1},
        {"Size": 10**30},
        {"Size": "7"},
        {"Size": None},
        {"Sha256": "a" * 63},
        {"Sha256": "../../etc/passwd"},
        {"Type": "commit"},
    ],
)
async def test_a_bad_entry_is_a_problem_of_that_file(
    fields: dict[str, Any], site: FakeModelScope, client: HttpClient
) -> None:
    """An absurd size, a malformed sum and what is no file concern that file alone."""
    site.listing = _change(**fields)
    found = await listed(client)
    assert [file.path for file in found.files if file.problem is not None] == ["config.json"]


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a\\b", "w/../../x"])
async def test_a_path_trick_is_refused_where_it_is_chosen(
    path: str, site: FakeModelScope, client: HttpClient, puller: Puller
) -> None:
    """A path that no version may have is refused by name, and does no harm where it is left out."""
    site.listing = _change(Path=path)
    source = open_source(f"ms://{REPO}", client)
    with pytest.raises(Permanent) as caught:
        await puller.pull(source)
    assert caught.value.code == "bad_name"
    assert await puller.pull(source, ["w/model.bin"]) == digest_of({"w/model.bin": FILES["w/model.bin"]})


async def test_a_path_outside_the_folder_is_a_bad_response(site: FakeModelScope, client: HttpClient) -> None:
    """A listing of a folder has paths below it only."""
    site.listing = _change(Path="elsewhere/x")
    assert (await error_of(client, "@master/w")).code == "bad_response"


async def test_a_file_without_sha256_has_the_commit_that_wrote_it(site: FakeModelScope, client: HttpClient) -> None:
    """Without a sum a file is read at its commit, and versioned; without that too it is sized."""
    site.listing = _change(Sha256="")
    (file,) = (each for each in (await listed(client)).files if each.path == "config.json")
    assert (file.trust, file.sha256) == (Trust.VERSIONED, None)
    target = await open_source(f"ms://{REPO}", client).locate(file)
    assert isinstance(target, HttpTarget)
    assert site.branches[REPO, "master"] in target.url
    site.listing = _change(Sha256="", Revision="")
    (file,) = (each for each in (await listed(client)).files if each.path == "config.json")
    assert file.trust is Trust.SIZED


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["Bearer", "none", "wrong"])
async def test_a_private_repository_needs_the_token(
    given: str, site: FakeModelScope, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token goes to the site as the client sends it, not to the CDN; a refusal says what to set."""
    site.private = True
    if given != "none":
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN if given == "Bearer" else "wrongToken")
    if given == "Bearer":
        source = open_source(f"ms://{REPO}", client)
        found = await source.resolve()
        target = await source.locate(next(file for file in found.files if file.path == "w/model.bin"))
        assert isinstance(target, HttpTarget)
        assert target.url.startswith(site.cdn_url)
        assert target.headers == ()
        assert 3500 < (target.lifetime_s or 0) <= 3600
        return
    error = await error_of(client)
    assert (error.code, error.permanent) == ("forbidden", True)
    assert ("MODELSCOPE_API_TOKEN" in error.remedy) == (given == "none")
    assert "wrongToken" not in str(error)


@pytest.mark.parametrize(
    ("status", "code", "permanent"),
    [
        (401, "unauthorized", True),
        (403, "forbidden", True),
        (404, "not_found", True),
        (429, "http_429", False),
        (500, "http_500", False),
        (503, "http_503", False),
    ],
)
async def test_each_status_has_its_error(
    status: int,
    code: str,
    permanent: bool,
    site: FakeModelScope,
    client: HttpClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal is permanent where a person must act, of a listing and of a file, and quotes the site."""
    with front_of(site.url) as front:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", front.url)
        source = open_source(f"ms://{REPO}", client)
        found = await source.resolve()
        front.answer(status, b'{"Code": 1, "Message": "because of it"}', {"Retry-After": "7"}, times=None)
        error = await error_of(client)
        assert (error.code, error.permanent) == (code, permanent)
        with pytest.raises(HoldfastError) as caught:
            await source.locate(found.files[0])
        assert (caught.value.code, caught.value.permanent) == (code, permanent)
        if permanent:
            assert "because of it" in error.message
        else:
            assert isinstance(error, Transient)
            assert error.retry_after_s == 7


@pytest.mark.parametrize(
    ("endpoint", "token", "code"),
    [
        ("ftp://x", "", "invalid_source"),
        ("https://user:sesame@modelscope.cn", "", "invalid_source"),
        ("https://modelscope.cn?x=sesame", "", "invalid_source"),
        ("http://modelscope.example.invalid", TOKEN, "invalid_source"),
        ("https://modelscope.example.invalid", f"{TOKEN}\r\nX: y", "unauthorized"),
        ("https://modelscope.example.invalid", f"{TOKEN}; x", "unauthorized"),
    ],
)
async def test_settings_that_cannot_be_used_are_refused(
    endpoint: str, token: str, code: str, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site's address that is none, a token that no header can carry, and one that would cross the network in the
    clear are refused before anything is sent."""
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", endpoint)
    if token:
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", token)
    error = await error_of(client)
    assert (error.code, error.permanent) == (code, True)
    assert "sesame" not in str(error)
    assert TOKEN not in str(error)


async def test_a_page_in_place_of_an_answer_is_told(
    site: FakeModelScope, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login page with status 200 is `bad_response`, for a listing and for a manifest."""
    with front_of(site.url) as front:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", front.url)
        front.answer(200, PAGE, {"Content-Type": "text/html"})
        assert (await error_of(client)).code == "bad_response"
        site.commit(REPO, {**FILES, "holdfast.json": b"{}"})
        front.answer(200, PAGE, {"Content-Type": "text/html"}, choose=lambda request: "FilePath" in request.path)
        assert (await error_of(client)).code in ("bad_response", "source_changed")
