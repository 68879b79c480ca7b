"""An MLflow server as MLflow 3.17 answers, for tests without the real one, and for what it does only over object stores
and only to some clients: presigned addresses that end, odd listings, faults.

Law: real sockets on 127.0.0.1, in this process. Methods, forms and statuses are those of a running `mlflow server`
3.17.2 (a missing alias: 400; a missing folder: 200 `{}`; an empty file: no `file_size`; presigned addresses: 501 over a
local disk) and of its `mlflow/server/handlers.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.http_server import make_range_reply, serve_replies

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/"
RUN_ID = "60c805344c5141b8ac83bb5233c72c06"
MODEL_ID = "m-2fb37cd8bbb647d48e90e263ffcce66e"

Answer = tuple[int, Any]


@dataclass
class FakeMlflow:
    """`folder`: the artifacts, by their paths. `versions`: by model and number; `aliases`: the number of each; `runs`
    and `logged`: the artifact URI of each, perhaps with more of its record. `store_url`: where presigned addresses
    lead to, None without them; those up to number `withdrawn` are refused. `listing`: answers a listing in place of
    the folder; `fault`: any request."""

    folder: Path
    token: str = ""
    versions: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logged: dict[str, dict[str, Any]] = field(default_factory=dict)
    store_url: str | None = None
    signed: int = 0
    withdrawn: int = 0
    listing: Callable[[str], Any] | None = None
    fault: Callable[[str, str], Answer | None] = lambda _method, _path: None
    ranges: bool = True
    seen: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def add_version(self, model: str, source: str, **more: Any) -> str:
        """Register a version whose artifacts are at `source`; return its number."""
        versions = self.versions.setdefault(model, {})
        number = str(len(versions) + 1)
        versions[number] = {"name": model, "version": number, "source": source, "status": "READY"} | more
        return number

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer to a request."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.seen.append((method, target))
        fault = self.fault(method, target)
        if fault is not None:
            return _reply(fault)
        if parts.path.startswith("/store/"):
            return self._store(unquote(parts.path.removeprefix("/store/")), query, headers)
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"WWW-Authenticate": 'Basic realm="mlflow"'}, b"You are not authenticated."
        if method == "HEAD":
            return 500, {}, b""
        if parts.path.startswith(ARTIFACTS):
            return self._artifacts(parts.path.removeprefix(ARTIFACTS), query, headers)
        return _reply(self._api(method, parts.path.removeprefix(API), query, body))

    def _api(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        model, number = query.get("name", ""), query.get("version", "")
        if path == "registered-models/alias":
            if model not in self.versions:
                return _absent(f"Registered Model with name={model} not found")
            named = self.aliases.get(model, {}).get(query["alias"])
            if named is None:
                return 400, _error("INVALID_PARAMETER_VALUE", f"Registered model alias {query['alias']} not found.")
            return 200, {"model_version": self.versions[model][named]}
        if path == "registered-models/get-latest-versions":
            newest: dict[str, dict[str, Any]] = {}
            for version in self.versions.get(model, {}).values():
                newest[version.get("current_stage", "None")] = version
            chosen = [each for stage, each in newest.items() if query.get("stages", stage) == stage]
            return 200, {"model_versions": chosen} if chosen else {}
        if path == "registered-models/get":
            if model not in self.versions:
                return _absent(f"Registered Model with name={model} not found")
            return 200, {"registered_model": {"name": model}}
        if path in ("model-versions/get", "model-versions/get-download-uri"):
            found = self.versions.get(model, {}).get(number)
            if found is None:
                return _absent(f"Model Version (name={model}, version={number}) not found")
            return 200, {"model_version": found} if path.endswith("get") else {"artifact_uri": found["source"]}
        if path == "runs/get":
            run = self.runs.get(query["run_id"])
            if run is None:
                return _absent(f"Run with id={query['run_id']} not found")
            return 200, {"run": {"info": {"run_id": query["run_id"], "experiment_id": "0"} | run}}
        if path == "logged-models/search" and method == "POST":
            name = json.loads(body)["filter"].partition("'")[2].rstrip("'")
            chosen = [{"info": each} for each in self.logged.values() if each.get("name") == name]
            return 200, {"models": chosen} if chosen else {}
        if path.startswith("logged-models/"):
            logged = self.logged.get(path.removeprefix("logged-models/"))
            if logged is None:
                return _absent("Logged model not found.")
            return 200, {"model": {"info": {"status": "LOGGED_MODEL_READY"} | logged}}
        return 404, "<!doctype html>\n<title>404 Not Found</title>"

    def _artifacts(self, path: str, query: dict[str, str], headers: Any) -> tuple[int, dict[str, str], bytes]:
        kind, _, name = path.partition("/")
        name = unquote(name or query.get("path", ""))
        if "#" in name or ".." in name.split("/"):
            return _reply((400, _error("INVALID_PARAMETER_VALUE", "Invalid path")))
        if path == "artifacts":
            listed = self._list(name) if self.listing is None else self.listing(name)
            return _reply((200, listed))
        at = self.folder / unquote(name)
        if kind == "presigned":
            if self.store_url is None:
                message = "Multipart download is not supported for the current artifact repository"
                return _reply((501, {"error_code": "NOT_IMPLEMENTED", "message": message}))
            if not at.is_file():
                return _reply(_absent("Not Found"))
            self.signed += 1
            signed = f"X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}&X-Amz-Expires=300&sig={self.signed}"
            return _reply((200, {"url": f"{self.store_url}/store/{quote(name)}?{signed}", "headers": {}}))
        return _file(at, headers, self.ranges) if at.is_file() else _reply(_absent(f"No such artifact: '{name}'"))

    def _store(self, name: str, query: dict[str, str], headers: Any) -> tuple[int, dict[str, str], bytes]:
        if int(query["sig"]) <= self.withdrawn:
            return 403, {}, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
        at = self.folder / name
        return _file(at, headers, ranges=True) if at.is_file() else (404, {}, b"")

    def _list(self, path: str) -> Any:
        at = self.folder / path
        if not at.is_dir():
            return {}
        entries = []
        for each in sorted(at.iterdir()):
            size = {"file_size": each.stat().st_size} if each.is_file() and each.stat().st_size else {}
            entries.append({"path": each.name, "is_dir": each.is_dir()} | size)
        return {"files": entries} if entries else {}


def _error(code: str, message: str) -> dict[str, str]:
    return {"error_code": code, "message": message}


def _absent(message: str) -> Answer:
    return 404, _error("RESOURCE_DOES_NOT_EXIST", message)


def _reply(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    status, document = answer
    if isinstance(document, bytes):
        return status, {"Content-Type": "application/json"}, document
    if isinstance(document, str):
        return status, {"Content-Type": "text/html; charset=utf-8"}, document.encode()
    return status, {"Content-Type": "application/json"}, json.dumps(document).encode()


def _file(path: Path, headers: Any, ranges: bool) -> tuple[int, dict[str, str], bytes]:
    data, found = path.read_bytes(), path.stat()
    etag = f'"{found.st_mtime_ns}-{len(data)}"'
    sent = {"Content-Type": "application/octet-stream"}
    if ranges:
        sent |= {"ETag": etag, "Accept-Ranges": "bytes"}
    asked = headers.get("Range", "")
    if not ranges or not asked.startswith("bytes="):
        return 200, sent, data
    if headers.get("If-Match", etag) != etag:
        return 412, sent, b""
    return make_range_reply(data, asked, sent)


@contextmanager
def fake_mlflow(folder: Path) -> Iterator[FakeMlflow]:
    """Serve the artifacts in `folder` until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    fake = FakeMlflow(folder)
    with serve_replies(fake.answer) as address:
        fake.url = f"http://{address}"
        yield fake
