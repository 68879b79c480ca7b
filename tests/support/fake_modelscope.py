"""A stand-in for ModelScope and its CDN, written from its client (modelscope-hub 0.5, `_legacy_api.py`).

`GET /api/v1/models/{repo}/repo/files?Revision=&Recursive=True[&Root=]` lists files with `Path`, `Size`, `Sha256`,
`Type` and `Revision` inside `{"Code", "Data": {"Files", "LatestCommitter"}, "Success"}`, folders too, and silently no
more than 3,000; `GET …/repo?Revision=&FilePath=` gives a small file, and redirects to the CDN for a large one.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.support.http_server import QuietServer

TOKEN = "ms-verySecretToken"
MOST_ENTRIES = 3000
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class FakeModelScope:
    """`url`, `cdn_url`: of the site and its CDN, as they are asked for; `listing`: changes an answer with files."""

    url: str = ""
    cdn_url: str = ""
    private: bool = False
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # by repository and commit
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    signed: dict[str, bytes] = field(default_factory=dict)  # by signature
    issued: list[str] = field(default_factory=list)
    listing: Callable[[dict[str, Any]], Any] = lambda answer: answer
    says_commit: bool = True
    knows_commits: bool = True

    def commit(self, repo: str, files: Mapping[str, bytes], branch: str = "master") -> str:
        """Commit exactly `files`; return the commit."""
        text = repr((sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items()), uuid4().hex))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = dict(files)
        self.branches[repo, branch] = commit
        return commit

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files that a revision names."""
        commit = self.branches.get((repo, revision), revision if self.knows_commits else "")
        files = self.commits.get(repo, {}).get(commit)
        return None if files is None else (commit, files)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, site: FakeModelScope, is_cdn: bool, *arguments: Any) -> None:
        self._site, self._is_cdn = site, is_cdn
        super().__init__(*arguments)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if self._is_cdn:
            data = self._site.signed.get(query.get("Signature", ""))
            self._bytes(data) if data is not None else self._reply(403, b"expired", {})
            return
        match = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", parts.path)
        if self._site.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(403, {"Code": 10010101000, "Message": "no access", "Success": False})
            return
        found = self._site.find(match[1], query["Revision"]) if match else None
        if match is None or found is None:
            self._json(404, {"Code": 10010205001, "Message": "record not found", "Success": False})
        elif match[2]:
            self._list(*found, query.get("Root", ""))
        else:
            self._file(found[1].get(query["FilePath"]), query["FilePath"])

    do_HEAD = do_GET

    def _list(self, commit: str, files: Mapping[str, bytes], root: str) -> None:
        entries: list[dict[str, Any]] = []
        folders: set[str] = set()
        for path, data in sorted(files.items()):
            if root and not path.startswith(f"{root}/"):
                continue
            parts = path.split("/")
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
            entry = {"Name": parts[-1], "Path": path, "Type": "blob", "Size": len(data), "IsLFS": path.endswith(".bin")}
            entries.append({**entry, "Sha256": hashlib.sha256(data).hexdigest(), "Revision": commit})
        entries += [{"Name": path, "Path": path, "Type": "tree", "Size": 0, "Sha256": ""} for path in sorted(folders)]
        latest = {"Id": commit if self._site.says_commit else "", "ShortId": commit[:8]}
        found = {"Files": entries[:MOST_ENTRIES], "IsVisual": 0, "LatestCommitter": latest}
        self._json(200, self._site.listing({"Code": 200, "Data": found, "Message": "success", "Success": True}))

    def _file(self, data: bytes | None, path: str) -> None:
        if data is None:
            self._json(404, {"Code": 10010205001, "Message": "file not found", "Success": False})
        elif path.endswith(".bin"):
            signature = uuid4().hex
            self._site.signed[signature] = data
            self._site.issued.append(signature)
            ends = int(time.time()) + 3600
            self._reply(302, b"", {"Location": f"{self._site.cdn_url}/o.bin?Expires={ends}&Signature={signature}"})
        else:
            self._bytes(data)

    def _bytes(self, data: bytes) -> None:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            self._reply(200, data, {"Content-Type": "application/octet-stream"})
        elif int(match[1]) >= len(data):
            self._reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        else:
            start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            self._reply(206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _json(self, status: int, document: Any) -> None:
        self._reply(status, json.dumps(document).encode(), {"Content-Type": "application/json; charset=utf-8"})

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


@contextmanager
def fake_modelscope(private: bool = False) -> Iterator[FakeModelScope]:
    """Serve repositories."""
    site = FakeModelScope(private=private)
    servers = [
        QuietServer(("127.0.0.1", 0), lambda *arguments, is_cdn=is_cdn: _Handler(site, is_cdn, *arguments))
        for is_cdn in (False, True)
    ]
    site.url, site.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.01}) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield site
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
