"""Outputs of DVC: which file names them, which remote has them, and what a repository may not choose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.front import ProxiedRequest, front_of
from cached.conformance.place import Refused
from cached.conformance.pulling import puller_in
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.trust import Trust
from cached.core.listing import Listing
from cached.sources.base import Source
from cached.sources.dvc.address import DvcAddress
from cached.sources.dvc.remotes import Remotes
from cached.sources.dvc.source import DvcSource
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.target import LocalTarget
from tests.support.clients import lone_client
from tests.support.dvc import DvcRepository, md5_of, run_dvc
from tests.support.git_host import git_host
from tests.support.hub_cases import write
from tests.support.nginx import nginx
from tests.support.places import FIXED, Opening

FILES = {"config.json": b"{}", "sub/w.bin": b"weights" * 1000, "empty.txt": b"", "ñ + % # ?.json": b"[]"}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    with lone_client(monkeypatch, tmp_path, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3") as client:
        yield client


@pytest.fixture
def repository(tmp_path: Path) -> DvcRepository:
    """A repository beside its remote, which lies in a folder."""
    made = DvcRepository(tmp_path / "repo x", tmp_path / "store", str(tmp_path / "store"))
    made.add_folder("models/m", FILES)
    made.add_file("single.bin", b"one")
    return made


def at(repository: DvcRepository, path: str, parameters: str = "") -> str:
    allowed = f"file_root={repository.store}"
    return f"dvc+{repository.folder.as_uri()}?{'&'.join(filter(None, (allowed, parameters)))}#{path}"


async def resolve(uri: str, client: HttpClient) -> Listing:
    source = open_source(uri, client)
    try:
        return await source.resolve()
    finally:
        await source.aclose()


async def read(uri: str, client: HttpClient) -> dict[str, bytes]:
    """The bytes of every file, which lie in a folder."""
    source = open_source(uri, client)
    found = {}
    for file in (await source.resolve()).files:
        target = await source.locate(file)
        assert isinstance(target, LocalTarget)
        found[file.path] = target.path.read_bytes()
    return found


async def error_of(uri: str, client: HttpClient) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await resolve(uri, client)
    assert caught.value.remedy
    return caught.value


async def test_outputs_and_what_lies_below(repository: DvcRepository, client: HttpClient) -> None:
    """A folder, a folder and a file below it, a file, and their `.dvc` files are read by their md5."""
    below = {"w.bin": FILES["sub/w.bin"]}
    for path, files in (
        ("models/m", FILES),
        ("models/m.dvc", FILES),
        ("models/m/sub", below),
        ("models/m/sub/w.bin", below),
        ("single.bin", {"single.bin": b"one"}),
        ("single.bin.dvc", {"single.bin": b"one"}),
    ):
        assert await read(at(repository, path), client) == files
    listing = await resolve(at(repository, "models/m"), client)
    assert {file.trust for file in listing.files} == {"checked"}
    assert {file.path: file.sums[0].hex for file in listing.files} == {name: md5_of(d) for name, d in FILES.items()}


async def test_outputs_of_a_pipeline(repository: DvcRepository, client: HttpClient) -> None:
    """`dvc.lock` names the outputs of stages, also above the path."""
    sum_ = repository.push(b"stage")
    lock = "schema: '2.0'\nstages:\n  train:\n    cmd: x\n    outs:\n"
    lock += f"    - path: out/w.bin\n      hash: md5\n      md5: {sum_}\n"
    write(repository.folder, {"pipe/dvc.lock": lock.encode()})
    assert await read(at(repository, "pipe/out/w.bin"), client) == {"w.bin": b"stage"}


async def test_old_sums_are_no_promise(repository: DvcRepository, client: HttpClient) -> None:
    """A text that DVC 2 tracked has an md5 of other ends of lines: it is found by it, and not compared."""
    repository.add_old("notes.txt", b"a\r\nb\r\n")
    (file,) = (await resolve(at(repository, "notes.txt"), client)).files
    assert not file.sums and await read(at(repository, "notes.txt"), client) == {"notes.txt": b"a\r\nb\r\n"}


async def test_remotes(repository: DvcRepository, client: HttpClient, tmp_path: Path) -> None:
    """The location's remote comes before the default one; a remote may be below another; a relative one is beside the
    configuration, and without any the repository's own cache is read."""
    config = "[core]\n    remote = gone\n['remote \"gone\"']\n    url = /nowhere\n"
    config += f"['remote \"base\"']\n    url = {tmp_path}\n['remote \"store\"']\n    url = remote://base/store\n"
    repository.configure(config + "['remote \"relative\"']\n    url = ../../store\n")
    for name in ("store", "relative"):
        assert await read(at(repository, "single.bin", f"remote={name}"), client) == {"single.bin": b"one"}
    assert (await error_of(at(repository, "single.bin"), client)).code == "forbidden_file"
    error = await error_of(at(repository, "single.bin", "remote=other"), client)
    assert error.code == "no_remote" and "base, gone, relative, store" in error.message
    repository.configure("")
    (repository.store / "files").rename(repository.folder / "moved")
    write(repository.folder, {".dvc/cache/x": b""})
    (repository.folder / "moved").rename(repository.folder / ".dvc" / "cache" / "files")
    assert await read(f"dvc+{repository.folder.as_uri()}#single.bin", client) == {"single.bin": b"one"}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ("url = s3://bucket/x\n    endpointurl = https://thief.example", "bad_address"),
        ("url = s3://bucket/x?endpoint_url=https://thief.example", "bad_address"),
        ("url = https://user:secret@host/x", "bad_address"),
        ("url = ssh://host/x", "unknown_store"),
        ("url = gdrive://x", "unknown_store"),
        ("url = azure://box/x", "bad_address"),
        ("url = /etc", "forbidden_file"),
        ("url = remote://store/x", "bad_index"),
        ("verify = true", "unknown_store"),
    ],
)
async def test_what_a_repository_may_not_choose(
    settings: str, code: str, repository: DvcRepository, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote's address leads to a store, and neither to another endpoint for our signatures nor to this node's
    files."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    repository.configure(f"[core]\n    remote = store\n['remote \"store\"']\n    {settings}\n")
    error = await error_of(at(repository, "single.bin"), client)
    assert (error.code, error.permanent) == (code, True) and "secret" not in str(error)


@pytest.mark.parametrize(
    ("settings", "parameters", "location"),
    [
        ({"url": "s3://b/x/", "region": "r"}, "", "s3://b/x/?region=r"),
        (
            {"url": "s3://b", "endpointurl": "http://minio"},
            "endpoint_url=http://m:1",
            "s3://b/?endpoint_url=http://m:1",
        ),
        ({"url": "gs://b/x"}, "", "gs://b/x/"),
        ({"url": "azure://box/x", "account_name": "acme"}, "", "az://acme/box/x/"),
        ({"url": "webdavs://host/x"}, "", "https://host/x/"),
    ],
)
def test_each_remote_has_its_location(
    settings: dict[str, str], parameters: str, location: str, client: HttpClient
) -> None:
    """A remote's address becomes that of the store's source, with the endpoint that the location names."""
    address = DvcAddress.parse(f"dvc+https://host/r@main?{parameters}#m".replace("?#", "#"))
    assert Remotes(address, "", "store", {"store": settings}).location(None) == location


async def test_what_is_not_there(repository: DvcRepository, client: HttpClient) -> None:
    """An output that nothing names, a folder that it has not, one that was not pushed and a folder that is no
    repository are told."""
    for path in ("gone", "models/m/gone", "models"):
        assert (await error_of(at(repository, path), client)).code == "not_found"
    for each in repository.store.rglob("*.dir"):
        each.unlink()
    error = await error_of(at(repository, "models/m"), client)
    assert error.code == "not_found" and "dvc push" in error.remedy
    (repository.folder / ".dvc" / "config").unlink()
    assert (await error_of(at(repository, "single.bin"), client)).code == "not_found"


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "outs: 7",
        "outs: [7]",
        "outs: [{md5: x}]",
        "a: [",
        "a: &x [*x",
        "a: &x {outs: []}\nb: {<<: [*x, *x]}",
        "\0",
        "outs:\n- {path: m, md5: xx}",
        "{a: " * 400_000,
        "- " * 400_000,
        *("!!timestamp x", "!!bool x", "!!float ''", "!!int x", "!!python/name:os.system ''"),
    ],
)
async def test_bad_indexes(index: str, repository: DvcRepository, client: HttpClient) -> None:
    """A `.dvc` file that is none, or names no md5, is an error."""
    write(repository.folder, {"models/m.dvc": index.encode()})
    assert (await error_of(at(repository, "models/m"), client)).code in ("bad_index", "not_found")


@pytest.mark.parametrize(
    "text",
    [
        *("<!doctype html>", "[{", "{}", "[7]", json.dumps([{"md5": "x", "relpath": "a"}])),
        *(json.dumps([{"md5": "0" * 32}]), json.dumps([{"md5": "0" * 32, "relpath": "a"}] * 2)),
    ],
)
async def test_bad_folders(text: str, repository: DvcRepository, client: HttpClient) -> None:
    """A folder's listing that is cut, foreign, or not what its md5 says is none."""
    name = repository.push(text.encode(), ".dir")
    write(repository.folder, {"models/m.dvc": f"outs:\n- {{md5: {name}.dir, hash: md5, path: m}}\n".encode()})
    assert (await error_of(at(repository, "models/m"), client)).code == "bad_response"
    (listing,) = repository.store.rglob(f"{name[2:]}.dir")
    listing.write_text("[]")
    error = await error_of(at(repository, "models/m"), client)
    assert error.code == "bad_response" and "expected the md5" in error.message


async def test_names_with_path_tricks(repository: DvcRepository, client: HttpClient) -> None:
    """A name that leads out of the folder is refused when it is chosen."""
    repository.add_folder("tricks", {"../../etc/passwd": b"x", "fine": b"y"})
    with puller_in(repository.store.parent / "root") as puller:
        source = open_source(at(repository, "tricks"), client)
        with pytest.raises(Permanent) as caught:
            await puller.pull(source)
        assert caught.value.code == "bad_name"


async def test_a_repository_at_a_host_is_opened_by_its_source(repository: DvcRepository, client: HttpClient) -> None:
    """`dvc+https` reads the commit by the source of Git, whatever its revision, and names the host in errors only."""
    asked: list[str] = []

    def opener(uri: str, *, chosen_by: str | None = None) -> Source:
        asked.append(uri)
        local = repository.folder.as_uri() if uri.startswith("git+") else uri
        return open_source(local, client, chosen_by=chosen_by)

    uri = f"dvc+https://me:secret@host/org/repo@release/1?file_root={repository.store}#models/m"
    source = DvcSource(uri, client, opener)
    assert {file.path for file in (await source.resolve()).files} == set(FILES)
    assert asked[0] == "git+https://me:secret@host/org/repo@release/1"
    assert source.display == "dvc+https://host/org/repo@release/1#models/m"


async def test_a_commit_at_a_git_host(repository: DvcRepository, client: HttpClient, tmp_path: Path) -> None:
    """A branch of a repository at a real Git host is read by its commit, which is the revision."""
    with git_host(tmp_path / "git") as host:
        hosted = host.create()
        tracked = [path for path in repository.folder.rglob("*") if path.is_file()]
        files = {path.relative_to(repository.folder).as_posix(): path.read_bytes() for path in tracked}
        commit = hosted.commit(files, weights="none")
        uri = f"dvc+{host.url}/{host.name_of(hosted)}@main?file_root={repository.store}#models/m"
        assert await read(uri, client) == FILES
        assert (await resolve(uri, client)).revision == commit


@pytest.mark.parametrize(
    "uri",
    [
        "dvc+https://host/org/repo@main",
        "dvc+https://#x",
        "dvc+file:///repo#../x",
        "dvc+file:///repo?token=sesame#x",
        "dvc+file:///repo?file_root=sesame#x",
        "dvc+file:///repo?remote=a&remote=b#x",
    ],
)
def test_locations_that_are_none(uri: str, client: HttpClient) -> None:
    """A location without an output, or with parameters of something else, is refused with the right form."""
    with pytest.raises(Permanent) as caught:
        open_source(uri, client)
    assert caught.value.code == "bad_source" and "#models/llama" in caught.value.remedy
    assert "sesame" not in str(caught.value)


async def test_what_dvc_itself_wrote(client: HttpClient, tmp_path: Path) -> None:
    """A repository and a remote that DVC wrote are read: a tracked folder, a file, and a stage's output."""
    folder, store = tmp_path / "repo", tmp_path / "store"
    write(folder, {f"models/m/{path}": data for path, data in FILES.items()})
    write(folder, {"single.bin": b"one"})
    dvc = partial(run_dvc, folder)
    dvc("init", "--no-scm", "-q")
    dvc("remote", "add", "-q", "-d", "store", str(store))
    dvc("add", "-q", "models/m", "single.bin")
    dvc("stage", "add", "-q", "-n", "train", "-o", "out", "mkdir out && printf y > out/w.bin")
    dvc("repro", "-q")
    dvc("push", "-q")
    made = DvcRepository.__new__(DvcRepository)
    made.folder, made.store = folder, store
    assert await read(at(made, "models/m"), client) == FILES
    assert await read(at(made, "models/m/sub"), client) == {"w.bin": FILES["sub/w.bin"]}
    assert await read(at(made, "single.bin"), client) == {"single.bin": b"one"}
    assert await read(at(made, "out"), client) == {"w.bin": b"y"}
    listing = await resolve(at(made, "models/m"), client)
    assert {file.trust for file in listing.files} == {"checked"}


class Tracked(Opening):
    """A tracked folder whose remote is a web server."""

    trust = Trust.CHECKED
    refused: Mapping[str, str] = {
        "expired_in_the_middle": FIXED,
        "pagination": "DVC's listing of a folder has no pages",
    }

    def __init__(self, client: HttpClient, repository: DvcRepository) -> None:
        super().__init__(client)
        self._repository, self._files = repository, dict[str, bytes]()
        self.uri = f"dvc+{repository.folder.as_uri()}#m"
        self.gone = f"dvc+{repository.folder.as_uri()}#gone"

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files |= files
        self._repository.add_folder("m", self._files)

    def remove(self, path: str) -> None:
        name = md5_of(self._files.pop(path))
        (self._repository.store / "files" / "md5" / name[:2] / name[2:]).unlink()

    def expire(self) -> None:
        """The addresses of a web server do not end: the case is in `refused`."""

    def is_bytes(self, request: ProxiedRequest) -> bool:
        place = self._repository.store / request.path.lstrip("/")
        return request.method == "GET" and place.is_file() and place.stat().st_size > 100_000


@pytest.mark.parametrize("case", CASES)
async def test_conforms(case: str, client: HttpClient, tmp_path: Path) -> None:
    """A tracked folder at a web server keeps each promise of `cached/conformance/cases.py`, or refuses it by name."""
    store = tmp_path / "store"
    store.mkdir()
    with (
        nginx(tmp_path / "nginx", store) as behind,
        front_of(behind) as front,
        puller_in(tmp_path / "root") as puller,
    ):
        place = Tracked(client, DvcRepository(tmp_path / "repo", store, front.url))
        place.fronts = (front,)
        try:
            await run_case(case, place, puller)
        except Refused as refused:
            assert case in place.refused
            pytest.skip(str(refused))
