"""Versions in Git repositories, at Git's own server: revisions, folders, and what a host must not be able to do."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cached.conformance.front import Front, front_of
from cached.conformance.pulling import Puller, puller_in
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import CHAINS_NAME, FileEntry, Manifest
from cached.contract.trust import Trust, least_of
from cached.core.listing import Listing, RemoteFile
from cached.sources.git import remote
from cached.sources.git.access import variable_of
from cached.sources.git.lfs import MAX_OBJECTS
from cached.sources.git.pack import object_id
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from cached.transport.urls import Address
from tests.support.git_host import BASIC, TOKEN, USER, GitHost, Repository, commit_of, pointer_to

CONFIG, WEIGHTS, VOCABULARY = b'{"a": 1}\n', b"weights" * 20000, b"vocabulary " * 2000
FILES = {"config.json": CONFIG, "w/model.bin": WEIGHTS, "w/tokenizer.json": VOCABULARY, "w/empty": b""}
LIES = (
    b"<!doctype html><html><title>Sign in</title></html>",
    b"0000",
    b"zzzz",
    b"001",
    b"ffff",
    b"0009ERR x",
    b"\0" * 9,
)


def digest_of(files: Mapping[str, bytes]) -> Digest:
    """The manifest digest of files."""
    return Manifest.build(FileEntry(p, hashlib.sha256(data).hexdigest(), len(data)) for p, data in files.items()).digest


@pytest.fixture
def repository(host: GitHost) -> Repository:
    return host.create()


@pytest.fixture(scope="module")
def committed(shared_host: GitHost) -> Repository:
    """A repository that tests only read."""
    repository = shared_host.create()
    repository.commit(FILES)
    return repository


@pytest.fixture
def puller(tmp_path: Path, no_credentials: None) -> Iterator[Puller]:
    with puller_in(tmp_path / "root") as puller:
        yield puller


class At:
    """A repository as sources see it."""

    def __init__(self, host: GitHost, repository: Repository, client: HttpClient, url: str = "") -> None:
        self.place = f"git+{url or host.url}/{host.name_of(repository)}"
        self._client = client

    async def list(self, rest: str = "") -> Listing:
        source = open_source(self.place + rest, self._client)
        try:
            return await source.resolve()
        finally:
            await source.aclose()

    async def error(self, rest: str = "") -> HoldfastError:
        with pytest.raises(HoldfastError) as caught:
            await self.list(rest)
        assert caught.value.remedy
        assert len(str(caught.value)) < 2000
        return caught.value

    async def pull(self, puller: Puller, rest: str = "") -> Digest:
        source = open_source(self.place + rest, puller.client)
        try:
            return await puller.pull(source)
        finally:
            await source.aclose()


@pytest.fixture
def at(host: GitHost, repository: Repository, client: HttpClient) -> At:
    return At(host, repository, client)


def nth(number: int) -> Callable[[object], bool]:
    """Choose the request of that number, from 0."""
    numbers = itertools.count()
    return lambda _request: next(numbers) == number


def find(listing: Listing, path: str) -> RemoteFile:
    return next(file for file in listing.files if file.path == path)


# --- revisions --------------------------------------------------------------------------------------------------------


async def test_every_name_of_a_commit_leads_to_it(repository: Repository, at: At) -> None:
    """A branch, tags of all kinds, a full, an upper-case and an abbreviated id name one commit."""
    first = repository.commit({"config.json": b"1"})
    second = repository.commit({"config.json": b"2"})
    repository.git("branch", "release/v1", first)
    repository.git("tag", "light", first)
    repository.git(*_AS_SOMEBODY, "tag", "-a", "-m", "m", "heavy", first)
    repository.git(*_AS_SOMEBODY, "tag", "-a", "-m", "m", "heavier", "heavy")
    tag = repository.git("rev-parse", "refs/tags/heavy")
    for rest in ("release/v1", "light", "heavy", "heavier", "refs/tags/heavy", first, first.upper(), first[:7], tag):
        assert (await at.list(f"@{rest}")).revision == first, rest
    for rest in ("", "@HEAD", "@main", "@refs/heads/main", "@heads/main", f"@{second[:10]}"):
        assert (await at.list(rest)).revision == second, rest


async def test_a_tag_comes_before_a_branch_and_a_name_before_an_abbreviated_id(repository: Repository, at: At) -> None:
    """Git's own order of names decides."""
    first, second = repository.commit({"a.json": b"1"}), repository.commit({"a.json": b"2"})
    repository.git("branch", "v1", second)
    repository.git("tag", "v1", first)
    repository.git("branch", first[:8], second)
    assert (await at.list("@v1")).revision == first
    assert (await at.list(f"@{first[:8]}")).revision == second


async def test_an_abbreviated_id_of_two_commits_is_ambiguous(repository: Repository, at: At) -> None:
    """Digits that several commits begin with are refused, and the commits are named."""
    tree = repository.write_tree([("100644", b"a.json", repository.write_blob(b"{}"))])
    by_digits: dict[str, list[str]] = {}
    for message in map(str, range(100_000)):
        same = by_digits.setdefault(object_id("commit", commit_of(tree, message))[:4], [])
        same.append(message)
        if len(same) == 2:
            break
    commits = [repository.write_commit(tree, message) for message in same]
    for number, commit in enumerate(commits):
        repository.git("update-ref", f"refs/heads/b{number}", commit)
    error = await at.error(f"@{commits[0][:4]}")
    assert error.code == "ambiguous"
    assert all(commit in error.message for commit in commits)


async def test_a_revision_that_is_not_there_names_those_that_are(repository: Repository, at: At) -> None:
    """An unknown branch, tag, abbreviated or full id is `not_found`; of names, those of the repository are told."""
    repository.commit({"a.json": b"1"}, branch="stable")
    error = await at.error("@v9")
    assert (error.code, error.permanent) == ("not_found", True)
    assert "stable" in error.message
    for rest in ("@deadbeef", "@" + "deadbeef" * 5, "@HEAD", ""):
        error = await at.error(rest)
        assert (error.code, error.permanent) == ("not_found", True), rest


async def test_an_empty_repository_and_a_tag_of_a_file_are_told(host: GitHost, at: At, repository: Repository) -> None:
    """A repository without commits, and a name of something else than a commit, are `not_found` with the reason."""
    assert "empty repository" in (await at.error("@main")).message
    repository.commit({"a.json": b"1"})
    repository.git("tag", "blob", repository.write_blob(b"x"))
    repository.git(*_AS_SOMEBODY, "tag", "-a", "-m", "m", "tree", "main^{tree}")
    assert "expected a commit, found a blob" in (await at.error("@blob")).message
    assert "expected a commit, found a tree" in (await at.error("@tree")).message


async def test_the_tag_of_a_listing_is_confirmed_by_refs_alone(
    repository: Repository, at: At, host: GitHost, client: HttpClient
) -> None:
    """A listing is confirmed without another one, a commit's id without any request."""
    commit = repository.commit(FILES)
    source, pinned = (open_source(f"{at.place}@{name}", client) for name in ("main", commit))
    tag = (await source.resolve()).tag
    assert tag == commit
    host.seen.clear()
    assert await source.is_current(tag)  # type: ignore[attr-defined]
    assert len(host.seen) == 1
    assert b"command=ls-refs" in host.seen[0][2]
    assert await pinned.is_current(commit)  # type: ignore[attr-defined]
    assert len(host.seen) == 1
    repository.commit({"config.json": b"2"})
    assert not await source.is_current(tag)  # type: ignore[attr-defined]


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_listing_is_four_requests_and_says_what_is_known(repository: Repository, at: At, host: GitHost) -> None:
    """Files in LFS have sha256 and size, other ones an id and a size; whatever their number, a listing is four
    requests."""
    shards = {f"model-{number}.bin": b"%d" % number for number in range(40)}
    repository.commit({**FILES, **shards})
    found = await at.list("@main")
    assert [path.rpartition("/")[2] for _, path, _ in host.seen] == [
        "refs?service=git-upload-pack",
        *["git-upload-pack"] * 3,
    ]
    weights, small, large = (find(found, path) for path in ("w/model.bin", "config.json", "w/tokenizer.json"))
    assert (weights.sha256, weights.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert (small.size, small.trust) == (len(CONFIG), Trust.CHECKED)
    assert (large.size, large.trust) == (len(VOCABULARY), Trust.CHECKED)
    assert least_of(file.trust for file in found.files) is Trust.CHECKED


async def test_a_server_that_tells_no_sizes(
    committed: Repository, host: GitHost, client: HttpClient, puller: Puller
) -> None:
    """Where the server does not tell sizes, larger files outside of LFS have none, and are checked as well."""
    with front_of(host.url) as front:
        front.alter = lambda _request, _headers, body: body.replace(b"0010object-info\n", b"")
        at = At(host, committed, client, front.url)
        assert find(await at.list(), "w/tokenizer.json").size is None
        assert len(front.seen) == 3
        assert await at.pull(puller) == digest_of(FILES)


async def test_a_size_that_is_not_the_files_is_an_error(committed: Repository, host: GitHost, puller: Puller) -> None:
    """A file of another size than was listed is never whole."""
    source = open_source(At(host, committed, puller.client).place, puller.client)
    found = await source.resolve()
    lying = replace(find(found, "w/tokenizer.json"), size=7)
    with pytest.raises(HoldfastError):
        await puller.fetch(source, replace(found, files=(lying,)))


async def test_files_that_are_located_together_share_a_request(
    repository: Repository, at: At, host: GitHost, puller: Puller
) -> None:
    """The LFS server is asked for many objects at once, and never for more than it takes."""
    files = {f"model-{number}.bin": b"%d" % number for number in range(60)}
    repository.commit(files)
    assert await at.pull(puller) == digest_of(files)
    asked = [json.loads(body)["objects"] for _, path, body in host.seen if path.endswith("/objects/batch")]
    assert len(asked) <= 15
    assert max(len(each) for each in asked) <= MAX_OBJECTS


@pytest.mark.parametrize(
    ("rest", "paths"),
    [("", list(FILES)), ("#w", ["model.bin", "tokenizer.json", "empty"]), ("#w/model.bin", ["model.bin"])],
)
async def test_a_folder_or_a_file_of_the_commit(
    rest: str, paths: list[str], repository: Repository, at: At, puller: Puller
) -> None:
    """What follows `#` is a folder, whose files lose its name, or a single file."""
    repository.commit(FILES)
    by_name = {path.rpartition("/")[2] if rest else path: data for path, data in FILES.items()}
    assert await at.pull(puller, rest) == digest_of({path: by_name[path] for path in paths})


async def test_a_folder_that_is_not_there_is_told(repository: Repository, at: At) -> None:
    """A folder that the commit lacks, or a part of its path that is a file, is `not_found`."""
    repository.commit(FILES)
    for rest in ("#v", "#config.json/x", "#w/model.bin/x"):
        assert (await at.error(rest)).code == "not_found"


@pytest.mark.parametrize(
    ("protocol", "filters", "gives_any"), [(2, False, True), (0, True, True), (0, False, True), (0, True, False)]
)
async def test_the_same_files_have_one_digest_whatever_a_host_can_do(
    protocol: int, filters: bool, gives_any: bool, host: GitHost, client: HttpClient, puller: Puller
) -> None:
    """A host without partial clone, one of the protocol's first version, and one that gives no single file have the
    same version for the same commit, by every name of it."""
    repository = host.create(filters=filters, gives_any=gives_any)
    commit = repository.commit(FILES)
    repository.git(*_AS_SOMEBODY, "tag", "-a", "-m", "m", "heavy", commit)
    host.protocol = protocol
    at = At(host, repository, client)
    for rest in ("", "@main", "@heavy", f"@{commit}", f"@{commit[:8]}"):
        assert (await at.list(rest)).revision == commit, rest
    assert await at.pull(puller) == digest_of(FILES)
    found = await at.list()
    source = open_source(at.place, puller.client)  # of which nothing was listed
    file = replace(find(found, "w/tokenizer.json"), validator="another", key=find(found, "w/tokenizer.json").key)
    assert await puller.fetch(source, replace(found, files=(file,))) == digest_of({"w/tokenizer.json": VOCABULARY})
    assert (await At(host, host.create(), client).error()).code == "not_found"
    assert (await at.error("@nowhere")).code == "not_found"


async def test_a_server_without_partial_clone_and_a_large_commit_is_refused(
    host: GitHost, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server sends all files, more than fits into the limit is `too_large`, and the remedy names the setting
    of the server."""
    repository = host.create(filters=False)
    monkeypatch.setattr(remote, "MAX_OBJECTS_BYTES", 1 << 20)
    repository.commit({"model.safetensors": bytes(1 << 20)})
    error = await At(host, repository, client).error()
    assert (error.code, error.permanent) == ("too_large", True)
    assert "uploadpack.allowFilter" in error.remedy
    repository.git("config", "uploadpack.allowFilter", "true")
    assert find(await At(host, repository, client).list(), "model.safetensors").git_oid


async def test_a_manifest_among_the_files_decides(repository: Repository, at: At, puller: Puller) -> None:
    """With `holdfast.json` every file is known, and what it does not list is no part of the version."""
    files = {path: data for path, data in FILES.items() if data}
    manifest = Manifest.build(FileEntry(p, hashlib.sha256(d).hexdigest(), len(d)) for p, d in files.items())
    records = {"holdfast.json": manifest.canonical(), CHAINS_NAME: b"chains", ".holdfast/publishing": b"{}"}
    repository.commit({**files, "more.txt": b"no part", **records})
    found = await at.list()
    assert found.chains is not None
    assert (found.chains.size, {file.path for file in found.files}) == (6, set(files))
    assert least_of(file.trust for file in found.files) is Trust.KNOWN
    assert all(file.size is not None for file in found.files)
    assert await at.pull(puller) == manifest.digest
    repository.commit({"config.json": b"other", "holdfast.json": manifest.canonical()})
    assert {file.problem.code for file in (await at.list()).files if file.problem} == {"invalid_manifest"}


# --- what a repository may hold ---------------------------------------------------------------------------------------


async def test_what_no_checkout_writes_is_a_problem_of_that_file(
    repository: Repository, at: At, puller: Puller
) -> None:
    """Path tricks, links and submodules are refused where they are chosen, and do no harm to the other files."""
    blob, commit = repository.write_blob(b"{}"), repository.commit({"a.json": b"{}"})
    inner = repository.write_tree([("100644", b"x", blob)])
    names = [b"..", b".", b".git", b".GIT", b"a/b", b"a\\b", b"new\nline", b"\xff\xfe", b"../../x"]
    entries = [("100644", name, blob) for name in names]
    entries += [("40000", b".Git", inner), ("120000", b"link", blob), ("160000", b"module", commit)]
    entries += [("100644", b"config.json", blob), ("100755", b"run.json", blob)]
    repository.commit_tree(repository.write_tree(entries))
    found = await at.list()
    problems = {file.path: file.problem for file in found.files if file.problem is not None}
    assert len(problems) == len(names) + 1
    assert {error.code for error in problems.values()} == {"bad_name", "not_a_file"}
    assert sorted(each.path for each in found.unlisted) == [".Git/", "module/"]
    assert {file.path for file in found.files if file.problem is None} == {"config.json", "run.json"}
    source = open_source(at.place, puller.client)
    assert await puller.pull(source, ["*.json"], [".Git/", "module/"]) == digest_of(
        {"config.json": b"{}", "run.json": b"{}"}
    )
    for pattern in ("link", "../../x", "module/*"):
        with pytest.raises(Permanent):
            await puller.pull(source, include=["config.json", pattern])


async def test_names_that_differ_in_case_alone_are_refused(repository: Repository, at: At, puller: Puller) -> None:
    """Two names that one file system may take for one are `bad_name`."""
    repository.commit({"a.json": b"1", "A.json": b"2"})
    with pytest.raises(Permanent) as caught:
        await at.pull(puller)
    assert caught.value.code == "bad_name"


async def test_a_name_twice_and_a_malformed_tree_are_bad_responses(repository: Repository, at: At) -> None:
    """A tree that Git would not make is no listing."""
    blob = repository.write_blob(b"{}")
    repository.commit_tree(repository.write_tree([("100644", b"a", blob), ("100644", b"a", blob)]))
    assert (await at.error()).code == "bad_response"
    repository.commit_tree(repository.write_tree([("10x644", b"a", blob)]))
    assert (await at.error()).code in ("bad_response", "refused")


async def test_a_tree_that_repeats_itself_is_bounded(repository: Repository, at: At) -> None:
    """Few objects that stand for billions of files are refused, and soon."""
    tree = repository.write_tree([("100644", b"f%02d" % number, repository.write_blob(b"{}")) for number in range(10)])
    for _ in range(10):
        tree = repository.write_tree([("40000", b"d%02d" % number, tree) for number in range(10)])
    repository.commit_tree(tree)
    error = await at.error()
    assert (error.code, error.permanent) == ("too_many_files", True)


async def test_submodules_count_as_files_do(repository: Repository, at: At) -> None:
    """Few objects that stand for billions of submodules are refused, and soon."""
    commit = repository.commit({"a": b"{}"})
    tree = repository.write_tree([("160000", b"m%02d" % number, commit) for number in range(100)])
    for _ in range(2):
        tree = repository.write_tree([("40000", b"d%02d" % number, tree) for number in range(25)])
    repository.commit_tree(tree)
    assert (await at.error()).code == "too_many_files"


async def test_a_long_name_in_many_folders_takes_no_memory_for_each(repository: Repository, at: At) -> None:
    """A name that no file system takes is a problem of that file, of which no more is kept than shows that."""
    inner = repository.write_tree([("100644", b"n" * 1_000_000, repository.write_blob(b"{}"))])
    repository.commit_tree(repository.write_tree([("40000", b"d%03d" % number, inner) for number in range(200)]))
    files = (await at.list()).files
    assert {file.problem.code for file in files if file.problem} == {"bad_name"}
    assert len(files) == 200 and sum(len(file.path) for file in files) < 200 * 300


@pytest.mark.parametrize(
    "pointer",
    [
        b"oid sha256:" + b"a" * 64 + b"\nsize 99999999999999999999\n",
        b"oid sha256:" + b"a" * 64 + b"\nsize -1\n",
        b"oid sha256:" + b"a" * 64 + b"\n",
        b"oid sha1:" + b"a" * 40 + b"\nsize 1\n",
        b"oid sha256:../../etc\nsize 1\n",
        b"ext-0-foo sha256:" + b"b" * 64 + b"\noid sha256:" + b"a" * 64 + b"\nsize 1\n",
        b"",
    ],
)
async def test_a_pointer_that_names_no_file_is_a_problem_of_that_file(
    pointer: bytes, repository: Repository, at: At
) -> None:
    """An absurd size, another hash, an extension or nothing at all is `bad_pointer`, and never a file of that text."""
    text = b"version https://git-lfs.github.com/spec/v1\n" + pointer
    repository.commit({"model.safetensors": text, "config.json": b"{}"})
    found = await at.list()
    problem = find(found, "model.safetensors").problem
    assert problem is not None
    assert problem.code == "bad_pointer"
    assert find(found, "config.json").problem is None


async def test_a_pointer_is_one_by_its_bytes_alone(repository: Repository, at: At, puller: Puller) -> None:
    """Without a word in `.gitattributes` a pointer is a file in LFS; a longer file that begins as one is none, and the
    older forms are pointers too."""
    old = pointer_to(WEIGHTS).replace(b"https://git-lfs", b"https://hawser").replace(b"\n", b"\r\n")
    long = pointer_to(WEIGHTS) + b"x" * 1024
    repository.lfs[hashlib.sha256(WEIGHTS).hexdigest()] = WEIGHTS
    repository.commit({"old.model": old, "long.txt": long})
    assert await at.pull(puller) == digest_of({"old.model": WEIGHTS, "long.txt": long})


# --- Git LFS ----------------------------------------------------------------------------------------------------------


async def test_lfsconfig_names_the_lfs_server(
    host: GitHost, repository: Repository, at: At, puller: Puller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lfs.url` of the commit's `.lfsconfig` is asked in place of the host's own, without the repository's token; also
    where that file is at the root and a folder is read."""
    with front_of(host.url) as front, front_of(host.url) as lfs:
        host.private, host.public_url = True, lfs.url
        monkeypatch.setenv(variable_of(Address.parse(front.url).origin), TOKEN.join((f"{USER}:", "")))
        lfs_url = f"{lfs.url}/{host.name_of(repository)}.git/info/lfs"
        config = f'[core]\n\turl = no\n[lfs]\n\turl = "{lfs_url}"\n'.encode()
        repository.commit({**FILES, ".lfsconfig": config})
        at = At(host, repository, puller.client, front.url)
        with pytest.raises(Permanent) as caught:
            await at.pull(puller, "#w")
        assert caught.value.code == "unauthorized"
        assert variable_of(Address.parse(lfs.url).origin) in caught.value.remedy
        assert not any("authorization" in request.headers for request in lfs.seen)
        monkeypatch.setenv(variable_of(Address.parse(lfs.url).origin), f"{USER}:{TOKEN}")
        files = {path.removeprefix("w/"): data for path, data in FILES.items() if path.startswith("w/")}
        assert await at.pull(puller, "#w") == digest_of(files)


@pytest.mark.parametrize("url", ["ssh://git@host/x", "file:///etc", "host/x", "http://"])
async def test_an_lfs_server_that_cannot_be_asked_is_refused(url: str, repository: Repository, at: At) -> None:
    """An `lfs.url` that is no http(s) address is `bad_source`."""
    repository.commit({"a.bin": b"x", ".lfsconfig": f"[lfs]\nurl={url}\n".encode()})
    assert (await at.error()).code == "bad_source"


@pytest.mark.parametrize(
    ("status", "code", "permanent"),
    [
        (401, "unauthorized", True),
        (403, "forbidden", True),
        (404, "not_found", True),
        (429, "http_429", False),
        (503, "http_503", False),
    ],
)
@pytest.mark.parametrize("at_request", [0, 2])
async def test_each_refusal_of_a_host_has_its_error(
    at_request: int,
    status: int,
    code: str,
    permanent: bool,
    committed: Repository,
    host: GitHost,
    client: HttpClient,
) -> None:
    """A refusal of any request is permanent where a person must act, and says what to do."""
    with front_of(host.url) as front:
        front.answer(status, choose=nth(at_request))
        error = await At(host, committed, client, front.url).error()
    assert (error.code, error.permanent) == (code, permanent)


# --- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["uri", "variable", "token alone", "netrc"])
async def test_a_private_repository_is_read_with_a_token(
    way: str,
    committed: Repository,
    host: GitHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A token comes from the URI, the host's variable or a netrc file; without one the error names the variable."""
    host.private = True
    place = f"git+{host.url}/{host.name_of(committed)}"
    variable = variable_of(Address.parse(host.url).origin)
    if way == "uri":
        place = place.replace("://", f"://{USER}:{TOKEN}@")
    elif way == "variable":
        monkeypatch.setenv(variable, f"{USER}:{TOKEN}")
    elif way == "netrc":
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {TOKEN}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    else:
        monkeypatch.setenv(variable, TOKEN)  # for hosts that take any user
    client = HttpClient(HttpSettings())
    try:
        source = open_source(place, client)
        if way == "token alone":
            with pytest.raises(Permanent, match="credentials that were sent are refused") as caught:
                await source.resolve()
            assert TOKEN not in str(caught.value)
        else:
            assert isinstance(await source.locate(find(await source.resolve(), "w/model.bin")), HttpTarget)
    finally:
        client.close()


async def test_a_token_of_another_host_is_not_sent(
    committed: Repository, host: GitHost, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables of other hosts are not looked at, and the error without a token names the one to set."""
    host.private = True
    for name in ("GH_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN", "HF_TOKEN", "HOLDFAST_GIT_TOKEN_127_0_0_1"):
        monkeypatch.setenv(name, f"{USER}:{TOKEN}")
    error = await At(host, committed, client).error()
    assert error.code == "unauthorized"
    assert variable_of(Address.parse(host.url).origin) in error.remedy


async def test_a_token_does_not_cross_the_network_in_the_clear(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of the environment for another machine is not sent over plain HTTP."""
    monkeypatch.setenv("HOLDFAST_GIT_TOKEN_GIT_EXAMPLE_INVALID", TOKEN)
    with pytest.raises(Permanent, match="expected https") as caught:
        await open_source("git+http://git.example.invalid/a/m", client).resolve()
    assert TOKEN not in str(caught.value)


async def test_a_redirect_to_another_host_gets_no_token(
    repository: Repository, host: GitHost, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that moved is followed for all requests; its new host gets none of the old one's tokens."""
    repository.commit(FILES)
    name = host.name_of(repository)
    with front_of(host.url) as old, front_of(host.url) as new:
        monkeypatch.setenv(variable_of(Address.parse(old.url).origin), f"{USER}:{TOKEN}")
        where = {"Location": f"{new.url}/{name}.git/info/refs?service=git-upload-pack"}
        old.answer(301, headers=where, times=None, choose=lambda request: "/info/refs" in request.path)
        found = await At(host, repository, client, old.url).list()
        assert find(found, "config.json").size == len(CONFIG)
        assert len(new.seen) == 5  # the redirect drops the header of the protocol
        assert BASIC not in str(new.seen)
        assert len(old.seen) == 1


@pytest.mark.parametrize("body", LIES)
@pytest.mark.parametrize(("protocol", "at_request"), [(2, 0), (2, 1), (2, 2), (2, 3), (0, 2)])
async def test_what_is_no_answer_of_git_is_an_error(
    body: bytes, protocol: int, at_request: int, committed: Repository, host: GitHost, client: HttpClient
) -> None:
    """A web page, a cut and a malformed packet in place of any answer are errors with a remedy; nothing is listed."""
    host.protocol = protocol
    with front_of(host.url) as front:
        front.answer(200, body, {"Content-Type": "text/html"}, choose=nth(at_request))
        if (at_request, body) == (3, b"0000"):  # no sizes: they are not needed
            assert (await At(host, committed, client, front.url).list()).files
            return
        error = await At(host, committed, client, front.url).error()
    assert error.code in ("bad_response", "refused", "unsupported", "not_found")


@pytest.mark.parametrize("length", [3, 30, 250])
@pytest.mark.parametrize("protocol", [0, 2])
async def test_a_cut_pack_is_a_bad_response(
    protocol: int, length: int, committed: Repository, host: GitHost, client: HttpClient
) -> None:
    """An answer that ends early, though whole as HTTP, is `bad_response` wherever it is cut."""
    host.protocol = protocol
    with front_of(host.url) as front:
        front.alter = lambda request, _headers, body: body[:length] if request.method == "POST" else body
        error = await At(host, committed, client, front.url).error("@" + committed.find("refs/heads/main"))
    assert error.code == "bad_response"


async def test_a_file_with_other_bytes_than_its_id_is_never_whole(
    repository: Repository, host: GitHost, puller: Puller
) -> None:
    """A host that sends another object in place of a file's is a wrong digest, and the file is not kept."""
    other = host.create()
    repository.commit({"tokenizer.json": VOCABULARY})
    other.commit({"tokenizer.json": VOCABULARY[::-1]})
    ids = [each.git("rev-parse", "main:tokenizer.json").encode() for each in (repository, other)]
    with front_of(host.url) as front:
        swapped = Swapping(front, host.name_of(repository), host.name_of(other), *ids)
        at = At(host, repository, puller.client, swapped.url)
        with pytest.raises(HoldfastError) as caught:
            await at.pull(puller)
    assert caught.value.code == "digest_mismatch"
    assert puller.blobs() == []


class Swapping:
    """A host that answers a request for one blob with another one, of another repository."""

    def __init__(self, front: Front, name: str, other: str, old: bytes, new: bytes) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        from urllib.request import Request, urlopen

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.replace(name, other) if b"want " + old in body else self.path
                asked = Request(
                    front.url + path, body.replace(b"want " + old, b"want " + new) or None, dict(self.headers.items())
                )
                with urlopen(asked) as answer:
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers["Content-Type"])
                    self.end_headers()
                    self.wfile.write(answer.read())

            do_POST = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"


@pytest.mark.parametrize("protocol", [0, 2])
async def test_another_object_format_is_refused_by_name(
    protocol: int, host: GitHost, repository: Repository, client: HttpClient
) -> None:
    """A repository of sha256 objects is `unsupported`, in each version of the protocol."""
    path = str(repository.path / "x.git")
    repository.git("init", "--quiet", "--bare", "--object-format=sha256", path)
    tree = repository.git("--git-dir", path, "hash-object", "-t", "tree", "-w", "--stdin")
    commit = repository.git("--git-dir", path, "hash-object", "-t", "commit", "-w", "--stdin", data=commit_of(tree))
    repository.git("--git-dir", path, "update-ref", "refs/heads/master", commit)
    host.protocol = protocol
    with pytest.raises(Permanent, match="sha256") as caught:
        await open_source(f"git+{host.url}/{host.name_of(repository)}.git/x", client).resolve()
    assert caught.value.code == "unsupported"


async def test_a_host_that_cannot_be_read_from_is_told(
    committed: Repository, host: GitHost, client: HttpClient
) -> None:
    """A host that lacks what a listing needs is `unsupported`, and the lacking part is named."""
    host.protocol = 0
    with front_of(host.url) as front:
        front.alter = lambda _request, _headers, body: body.replace(b" shallow ", b" shadows ")
        error = await At(host, committed, client, front.url).error()
    assert (error.code, error.permanent) == ("unsupported", True)
    assert "shallow" in error.message


async def test_a_silent_host_is_told_within_the_common_limits(repository: Repository, no_credentials: None) -> None:
    """A host that takes a request and says nothing ends the listing as any server does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = HttpClient(HttpSettings(header_timeout_s=0.2, stall_window_s=0.2))
        try:
            with pytest.raises(Transient) as caught:
                await open_source(f"git+http://127.0.0.1:{silent.getsockname()[1]}/a/m", client).resolve()
        finally:
            client.close()
    assert caught.value.code in ("stalled", "timeout")


_AS_SOMEBODY = ("-c", "user.name=t", "-c", "user.email=t@example.com")
