"""A fake Hugging Face Hub with its CDN on another port, in threads of this process or as a program of its own:
`python -m tests.support.fake_hub DIR --port N` serves every `DIR/<org>/<name>/` and prints its address.

Law: answers as huggingface_hub 2.4 expects (its `hf_api.py`, `file_download.py`, `utils/_http.py`) and as the Hub's
API documents; listens on loopback only; records every request, and everything that should never have been sent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.fake_hub_repos import LFS_THRESHOLD, Access, HubFile, Repository

_NAME = r"(?P<repo>[^/]+(?:/(?!revision/|tree/|resolve/)[^/]+)?)"
_API = re.compile(rf"/api/models/{_NAME}(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?")
_FILE = re.compile(rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_CACHED_FILE = re.compile(r"/api/resolve-cache/models/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Request:
    """One request as it came: `server` is `hub` or `cdn`, header names are in lower case."""

    server: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str] = field(repr=False)


@dataclass
class Fault:
    """A scripted answer for the next `times` requests with `match` in their path: with a `status`, that instead of the
    usual answer; without, the usual answer with `headers` put over its own."""

    match: str
    status: int | None
    headers: dict[str, str]
    times: int
    server: str


@dataclass(frozen=True)
class Reply:
    """What to send: `body` as it is, or the bytes of `file`, which may be asked for in ranges."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    file: Path | None = None


class FakeHub:
    """The Hub and its CDN. Start with `with`; `endpoint` is what goes into HF_ENDPOINT.

    `tokens` are valid; `violations` says what was sent where it must not be; `requests` is everything that came.
    Without `lists_blobs` the metadata of a revision has no ids, as of a mirror that drops the parameter `blobs`.
    """

    def __init__(self, *, port: int = 0, page_size: int = 1000, lfs_threshold: int = LFS_THRESHOLD) -> None:
        self.page_size = page_size
        self.lfs_threshold = lfs_threshold
        self.lists_blobs = True
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self._fronts: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._blobs: dict[str, HubFile] = {}
        self._generation = 0
        self._lock = threading.Lock()
        self._servers = [_Server(self, "hub", port), _Server(self, "cdn", 0)]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]

    @property
    def endpoint(self) -> str:
        """Where it is asked; what stands before it says another address."""
        return self._fronts.get("hub", self._servers[0].address)

    @property
    def cdn(self) -> str:
        return self._fronts.get("cdn", self._servers[1].address)

    @property
    def behind(self) -> tuple[str, str]:
        """The addresses of the Hub and its CDN themselves."""
        return self._servers[0].address, self._servers[1].address

    def stand_behind(self, hub: str, cdn: str) -> None:
        """Other servers stand before this one, at these addresses: it names those from now on."""
        self._fronts = {"hub": hub, "cdn": cdn}

    def __enter__(self) -> FakeHub:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for server in self._servers:
            server.stop()
        for thread in self._threads:
            thread.join()

    def add(self, name: str, folder: Path, access: Access = Access.PUBLIC) -> Repository:
        """Make the repository `name` whose branch `main` has `folder`'s files."""
        repository = self.repositories[name] = Repository(name, access)
        self.commit(name, folder)
        return repository

    def commit(self, name: str, folder: Path, branch: str = "main") -> str:
        """Point `branch` to a new commit with `folder`'s files; returns the commit."""
        repository = self.repositories[name]
        commit = repository.commit(folder, branch, self.lfs_threshold)
        self._blobs |= {file.sha256: file for file in repository.commits[commit].values() if file.sha256}
        return commit

    def fail(
        self, status: int, match: str = "", headers: Mapping[str, str] | None = None, *, times: int = 1, at: str = "hub"
    ) -> None:
        """Answer the next `times` requests to `at` (`hub` or `cdn`) with `match` in their path with `status`."""
        self._faults.append(Fault(match, status, dict(headers or {}), times, at))

    def alter(self, match: str, headers: Mapping[str, str], *, times: int = 1) -> None:
        """Put `headers` over those of the Hub's next `times` answers to requests with `match` in their path."""
        self._faults.append(Fault(match, None, dict(headers), times, "hub"))

    def expire_urls(self) -> None:
        """Let every signed URL given out so far end."""
        self._generation += 1

    def count(self, match: str, method: str = "GET", server: str = "hub") -> int:
        """How many requests had `match` in their path."""
        return sum(1 for r in self.requests if match in r.path and r.method == method and r.server == server)

    def answer(self, request: Request) -> Reply:
        """The answer to `request`, which is recorded."""
        with self._lock:
            self.requests.append(request)
            fault = next((f for f in self._faults if f.server == request.server and f.match in request.path), None)
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
        if fault is not None and fault.status is not None:
            return Reply(fault.status, fault.headers, b'{"error":"scripted"}')
        reply = self._from_hub(request) if request.server == "hub" else self._from_cdn(request)
        return Reply(reply.status, reply.headers | (fault.headers if fault else {}), reply.body, reply.file)

    def _from_hub(self, request: Request) -> Reply:
        for pattern, respond in ((_CACHED_FILE, self._file), (_API, self._api), (_FILE, self._file)):
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            repository = self.repositories.get(match["repo"])
            refused = self._access(request, repository, reads=respond == self._file)
            if refused is not None or repository is None:
                return refused or _error(404, "RepoNotFound", "Repository not found")
            revision = unquote(match["revision"] or "main")
            commit = repository.resolve(revision)
            if commit is None:
                return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return respond(request, repository, commit, match)
        return _error(404, None, "Not found")

    def _access(self, request: Request, repository: Repository | None, *, reads: bool) -> Reply | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            return _error(401, None, "Invalid credentials in Authorization header")
        granted = repository is not None and token in repository.granted
        if repository is None or (repository.access is Access.PRIVATE and not granted):
            # The Hub does not tell whether a repository exists that the client may not see.
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.access is Access.DISABLED:
            return _error(403, None, "Access to this resource is disabled.")
        if repository.access is Access.GATED and reads and not granted:
            return _error(403 if token else 401, "GatedRepo", f"Access to model {repository.name} is restricted")
        return None

    def _api(self, request: Request, repository: Repository, commit: str, match: re.Match[str]) -> Reply:
        if match["what"] == "tree":
            return self._tree(request, repository, commit, unquote(match["path"] or ""))
        if request.query.get("expand") == ["sha"]:  # only the named fields, as of `model_info(expand=…)`
            return _json({"id": repository.name, "sha": commit}, {"X-Repo-Commit": commit})
        siblings = repository.siblings(commit, with_blobs="blobs" in request.query and self.lists_blobs)
        about = {"id": repository.name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        return _json(about, {"X-Repo-Commit": commit})

    def _tree(self, request: Request, repository: Repository, commit: str, folder: str) -> Reply:
        entries = repository.tree(commit, folder)
        if entries is None:
            return _error(404, "EntryNotFound", f"{folder} does not exist")
        start = int(request.query.get("cursor", ["0"])[0])
        end = start + self.page_size
        headers = {"X-Repo-Commit": commit}
        if end < len(entries):
            following = f"{self.endpoint}{request.path}?recursive=true&expand=false&cursor={end}"
            headers["Link"] = f'<{following}>; rel="next"'
        return _json(entries[start:end], headers)

    def _file(self, request: Request, repository: Repository, commit: str, match: re.Match[str]) -> Reply:
        file = repository.commits[commit].get(unquote(match["path"]))
        if file is None:
            return _error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.sha256 is None:
            return Reply(200, headers | {"ETag": f'"{file.oid}"', "Content-Type": "text/plain"}, file=file.disk)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        return Reply(302, headers | {"Location": self._signed(repository.name, file.sha256)}, b"Found. Redirecting")

    def _signed(self, repository: str, sha256: str) -> str:
        query = f"Expires={self._generation}&Signature={_signature(sha256, self._generation)}&Key-Pair-Id=FAKE"
        return f"{self.cdn}/repos/{quote(repository)}/{sha256}?{query}"

    def _from_cdn(self, request: Request) -> Reply:
        if "authorization" in request.headers:
            self.violations.append(f"{request.method} {request.path} came to the CDN with an Authorization header")
            return Reply(400, {}, b"<Error><Code>InvalidArgument</Code></Error>")
        sha256 = request.path.rpartition("/")[2]
        signature = request.query.get("Signature", [""])[0]
        if signature != _signature(sha256, self._generation):
            return Reply(403, {"Content-Type": "text/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        file = self._blobs.get(sha256)
        if file is None:
            return Reply(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        # The ETag of an upload in parts: no digest of the whole file, though it looks like one.
        etag = hashlib.md5(sha256.encode()).hexdigest()
        return Reply(200, {"ETag": f'"{etag}-2"', "Accept-Ranges": "bytes"}, file=file.disk)


class _Server(ThreadingHTTPServer):
    """One of the two ports, whose connections end when it stops, however long a client would keep them."""

    def __init__(self, hub: FakeHub, name: str, port: int) -> None:
        self.hub = hub
        self.name = name
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        self.daemon_threads = False
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        self.shutdown()
        for connection in tuple(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                self._open.discard(connection)  # its client was faster
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and its body are two writes: 40 ms apart otherwise
    server: _Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.name, self.command, parts.path, parse_qs(parts.query), headers)
        try:
            self._send(self.server.hub.answer(request), headers.get("range", ""))
        except ConnectionError:
            self.close_connection = True

    do_HEAD = do_GET

    def _send(self, reply: Reply, asked: str) -> None:
        size = reply.file.stat().st_size if reply.file else len(reply.body)
        status, start, length, headers = reply.status, 0, size, dict(reply.headers)
        wanted = _RANGE.fullmatch(asked) if reply.file else None
        if wanted and (wanted[1] or wanted[2]):
            start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
            end = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
            status, length = (206, end - start) if start < end else (416, 0)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}" if status == 206 else f"bytes */{size}"
        self.send_response_only(status)
        for name, value in ({"Date": self.date_time_string(), "Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(reply, start, length)

    def _send_body(self, reply: Reply, start: int, length: int) -> None:
        if reply.file is None:
            self.wfile.write(reply.body)
            return
        with reply.file.open("rb") as opened:
            opened.seek(start)
            while length > 0 and (chunk := opened.read(min(_CHUNK, length))):
                self.wfile.write(chunk)
                length -= len(chunk)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests are recorded."""


def _signature(sha256: str, generation: int) -> str:
    return hashlib.sha256(f"{sha256}:{generation}".encode()).hexdigest()[:32]


def _json(document: Any, headers: dict[str, str]) -> Reply:
    return Reply(200, {"Content-Type": "application/json"} | headers, json.dumps(document).encode())


def _error(status: int, code: str | None, message: str) -> Reply:
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    return Reply(status, headers, json.dumps({"error": message}).encode())


def main(arguments: list[str]) -> int:
    """Serve a folder of repositories until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.fake_hub", description="Serve DIR/<org>/<name>/.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--port", type=int, default=0, help="of the Hub on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--cdn", help="another server that has /repos/<org>/<name>/<sha256>, as the CDN")
    options = parser.parse_args(arguments)
    with FakeHub(port=options.port) as hub:
        for folder in sorted(path for path in options.folder.glob("*/*") if path.is_dir()):
            hub.add(folder.relative_to(options.folder).as_posix(), folder)
        if options.cdn:
            hub.stand_behind(hub.endpoint, options.cdn)
        sys.stdout.write(f"HF_ENDPOINT={hub.endpoint}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
