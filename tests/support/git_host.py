"""A Git host on loopback: repositories served by Git's own `git http-backend`, and a Git LFS server beside it.

The LFS server is a stub written from the specification of its batch API (git-lfs, docs/api/batch.md): addresses with a
token of their own in `header`, errors per object, ranges. It knows no token before it issued one, and none after
`expire`.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest

from tests.support.http_server import QuietServer
from tests.support.object_stores import serving
from tests.support.ports import free_port

USER, TOKEN = "reader", "verySecretGitToken"
BASIC = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
_QUIET = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "PATH": os.environ.get("PATH", ""),
}
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
Tree = Mapping[str, tuple[str, bytes]]


def pointer_to(data: bytes) -> bytes:
    """The pointer file of `data` in Git LFS."""
    oid = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()


def commit_of(tree: str, message: str = "m") -> bytes:
    """The bytes of a commit."""
    who = "t <t@example.com> 1700000000 +0000"
    return f"tree {tree}\nauthor {who}\ncommitter {who}\n\n{message}\n".encode()


@dataclass
class Repository:
    """A bare repository, written by `git fast-import`."""

    path: Path
    lfs: dict[str, bytes] = field(default_factory=dict)

    def git(self, *arguments: str, data: bytes = b"") -> str:
        """Run a command of Git in the repository; return what it prints."""
        run = subprocess.run(
            ["git", *arguments], cwd=self.path, input=data, capture_output=True, check=True, env=_QUIET
        )
        return run.stdout.decode().strip()

    def commit(self, files: Mapping[str, bytes], branch: str = "main", weights: str = ".bin") -> str:
        """Commit exactly `files`; those whose names end in `weights` go into Git LFS. Return the commit's id."""
        stream = [f"commit refs/heads/{branch}\ncommitter t <t@example.com> 1700000000 +0000\ndata 1\nm\n".encode()]
        if self.find(f"refs/heads/{branch}"):
            stream.append(f"from refs/heads/{branch}^0\n".encode())
        stream.append(b"deleteall\n")
        for path, data in files.items():
            kept = data
            if path.endswith(weights):
                self.lfs[hashlib.sha256(data).hexdigest()] = data
                kept = pointer_to(data)
            name = path.replace("\\", "\\\\").replace('"', '\\"')
            stream.append(f'M 100644 inline "{name}"\ndata {len(kept)}\n'.encode() + kept + b"\n")
        self.git("fast-import", "--quiet", "--force", data=b"".join(stream))
        return self.find(f"refs/heads/{branch}")

    def find(self, name: str) -> str:
        """The id of a ref that was written here; empty without one."""
        ref = self.path / name
        return ref.read_text().strip() if ref.exists() else ""

    def write_tree(self, entries: list[tuple[str, bytes, str]]) -> str:
        """Write a tree of `(mode, name, id)` as it is, also one that Git itself would refuse."""
        data = b"".join(f"{mode} ".encode() + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)
        return self.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=data)

    def write_blob(self, data: bytes) -> str:
        """Write a blob; return its id."""
        return self.git("hash-object", "-w", "--stdin", data=data)

    def write_commit(self, tree: str, message: str = "m") -> str:
        """Write a commit that no branch has; return its id."""
        return self.git("hash-object", "-t", "commit", "-w", "--stdin", data=commit_of(tree, message))

    def commit_tree(self, tree: str, branch: str = "main") -> str:
        """Commit a tree; return the commit's id."""
        commit = self.write_commit(tree)
        self.git("update-ref", f"refs/heads/{branch}", commit)
        return commit


@dataclass
class GitHost:
    """`url`: the host's; `private`: whether it asks for `USER` and `TOKEN`; `seen`: the requests, as method, path and
    body; `batch`: changes an answer of the LFS server; `issued`: the tokens of its addresses; `lfs_url`: a server
    that is asked in its place."""

    root: Path
    url: str = ""
    public_url: str = ""  # what the LFS server's addresses begin with
    private: bool = False
    protocol: int = 2  # of Git: 0 as hosts that do not know the newer ones
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    batch: Callable[[dict[str, Any]], Any] = lambda answer: answer
    lfs_url: str = ""  # of another LFS server, in place of the stub
    issued: list[str] = field(default_factory=list)
    good: set[str] = field(default_factory=set)
    repositories: dict[str, Repository] = field(default_factory=dict)

    def create(self, name: str = "", filters: bool = True, gives_any: bool = True) -> Repository:
        """Create an empty repository `name`. `gives_any`: any object by its id, which version 0 must allow."""
        name = name or f"team/{uuid4().hex[:12]}"
        path = self.root / f"{name}.git"
        path.mkdir(parents=True)
        (path / "objects").mkdir()
        (path / "refs").mkdir()
        (path / "HEAD").write_text("ref: refs/heads/main\n")
        allowed = f"allowFilter = {filters}\n\tallowAnySHA1InWant = {gives_any}"
        (path / "config").write_text(
            f"[core]\n\trepositoryformatversion = 0\n\tbare = true\n[uploadpack]\n\t{allowed}\n"
        )
        repository = self.repositories[name] = Repository(path)
        return repository

    def create_lfs(self, *objects: bytes) -> str:
        """Create an LFS server with `objects` and without a repository; return its address."""
        name = f"lfs/{uuid4().hex[:12]}"
        by_oid = {hashlib.sha256(each).hexdigest(): each for each in objects}
        self.repositories[name] = Repository(self.root, by_oid)
        return f"{self.url}/{name}.git/info/lfs"

    def name_of(self, repository: Repository) -> str:
        """The name of a repository, as in its address."""
        return str(repository.path.relative_to(self.root)).removesuffix(".git")

    def expire(self) -> None:
        """End the tokens of all addresses that the LFS server gave."""
        self.good.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and its body are two writes: 40 ms apart otherwise

    def __init__(self, host: GitHost, *arguments: Any) -> None:
        self._host = host
        super().__init__(*arguments)

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._host.seen.append((self.command, self.path, body))
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/lfs-objects/"):
            self._object(path.rpartition("/")[2])
        elif self._host.lfs_url and "/info/lfs/objects/storage/" in path:
            self._pass_on(body)
        elif self._host.private and self.headers.get("Authorization") != f"Basic {BASIC}":
            self._reply(401, b"", {"WWW-Authenticate": 'Basic realm="git"'})
        elif self._host.lfs_url and "/info/lfs/" in path:
            self._pass_on(body)
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(path.removesuffix("/info/lfs/objects/batch").removesuffix(".git").strip("/"), body)
        else:
            self._git(path, body)

    do_POST = do_HEAD = do_GET

    def _pass_on(self, body: bytes) -> None:
        """Answer as the other LFS server does, whose addresses are then this host's."""
        connection = http.client.HTTPConnection(self._host.lfs_url.removeprefix("http://"), timeout=120)
        try:
            headers = {name: value for name, value in self.headers.items() if value != f"Basic {BASIC}"}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            kept = ("Content-Type", "Content-Range", "ETag", "Last-Modified")
            sent = {name: value for name in kept if (value := answer.getheader(name)) is not None}
            self._reply(answer.status, answer.read(), sent)
        finally:
            connection.close()

    def _git(self, path: str, body: bytes) -> None:
        name, suffix = re.fullmatch(r"/(.*?)(?:\.git)?((?:/info/refs|/git-upload-pack|/HEAD)?)", path).groups()  # type: ignore[union-attr]
        environment = {
            **_QUIET,
            "GIT_PROJECT_ROOT": str(self._host.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{name}.git{suffix}",
            "REQUEST_METHOD": self.command,
            "QUERY_STRING": urlsplit(self.path).query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", "") if self._host.protocol else "",
            "REMOTE_USER": USER,
        }
        run = subprocess.run(["git", "http-backend"], input=body, capture_output=True, check=False, env=environment)
        head, _, content = run.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self._reply(int(headers.pop("Status", "200 OK").split()[0]), content, headers)

    def _batch(self, name: str, body: bytes) -> None:
        asked = json.loads(body)
        assert asked["operation"] == "download"
        assert "basic" in asked["transfers"]
        assert len(asked["objects"]) <= 100
        assert self.headers["Accept"] == self.headers["Content-Type"] == "application/vnd.git-lfs+json"
        answers = []
        for each in asked["objects"]:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] in self._host.repositories[name].lfs:
                token = uuid4().hex
                self._host.issued.append(token)
                self._host.good.add(token)
                href = f"{self._host.public_url or self._host.url}/lfs-objects/{name}/{each['oid']}"
                header = {"Authorization": f"RemoteAuth {token}"}
                answer["actions"] = {"download": {"href": href, "header": header, "expires_in": 900}}
            else:
                answer["error"] = {"code": 404, "message": "Object does not exist"}
            answers.append(answer)
        content = json.dumps(self._host.batch({"transfer": "basic", "objects": answers})).encode()
        self._reply(200, content, {"Content-Type": "application/vnd.git-lfs+json"})

    def _object(self, oid: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("RemoteAuth ")
        data = next((each.lfs[oid] for each in self._host.repositories.values() if oid in each.lfs), None)
        if token not in self._host.good or data is None:
            self._reply(403 if data is not None else 404, b"", {})
            return
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            self._reply(200, data, {"Content-Type": "application/octet-stream"})
            return
        start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        self._reply(206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _reply(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


_GIFTLESS = """
import os, sys, warnings
warnings.simplefilter("ignore")
from giftless.app import init_app
from werkzeug.serving import run_simple
app = init_app(additional_config={"LEGACY_ENDPOINTS": False, "TRANSFER_ADAPTERS": {"basic": {"options": {
    "storage_options": {"path": sys.argv[2]}}}}})
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
"""


@contextmanager
def giftless(folder: Path) -> Iterator[str]:
    """Run the LFS server giftless over the objects in `folder`; yields its URL. Skips the test without one."""
    python = os.environ.get("HOLDFAST_TEST_GIFTLESS")
    if not python:
        pytest.skip("giftless is not installed: name a Python that has it in HOLDFAST_TEST_GIFTLESS")
    port = free_port()
    with serving([python, "-c", _GIFTLESS, str(port), str(folder)], port, folder / "giftless.log"):
        # Its first answer has an address without a token.
        body = {"operation": "download", "objects": [{"oid": "0" * 64, "size": 1}]}
        headers = {"Content-Type": "application/vnd.git-lfs+json", "Accept": "application/vnd.git-lfs+json"}
        first = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        first.request("POST", "/a/b.git/info/lfs/objects/batch", json.dumps(body), headers)
        first.getresponse().read()
        first.close()
        yield f"http://127.0.0.1:{port}"


@contextmanager
def git_host(root: Path, private: bool = False) -> Iterator[GitHost]:
    """Serve repositories under `root`. Skips the test without Git."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed: its `git http-backend` is the server of this test")
    host = GitHost(root, private=private)
    with QuietServer(("127.0.0.1", 0), lambda *arguments: _Handler(host, *arguments)) as server:
        host.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield host
        finally:
            server.shutdown()
            thread.join()
