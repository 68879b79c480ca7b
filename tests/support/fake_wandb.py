"""Weights & Biases as its client `wandb` 0.31 asks it (`sdk/artifacts`: the operations of `_generated`, the
manifest of `artifact_manifest_v1.py`, the addresses of `wandb_storage_policy.py`): no server of theirs runs here.

Law: real sockets on 127.0.0.1, in this process. The service answers GraphQL and redirects requests for files to signed
addresses of its store, which end.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.http_server import make_range_reply, serve_replies

KEY = "verySecretKey" + "a1" * 14
BASIC = base64.b64encode(f"api:{KEY}".encode()).decode()

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class FakeWandb:
    """`artifacts`: by `entity/project/name:alias` and by id: the record, with its `entries`. `layout`: of the store;
    `store_url`: where signed addresses lead to; those up to number `withdrawn` are refused. `serves_itself`: the server
    sends files itself, as a small one of one's own does."""

    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    layout: str = "V2"
    serves_itself: bool = False
    store_url: str = ""
    url: str = ""
    signed: int = 0
    withdrawn: int = 0
    fault: Callable[[str, str], Answer | None] = lambda _method, _path: None
    seen: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], **more: Any) -> dict[str, Any]:
        """Log an artifact with files; `more`: of its record. Returns the record, whose entries may be changed."""
        number = len(self.artifacts) + 1
        entity, project, collection = name.partition(":")[0].split("/")
        record = {
            **{"id": base64.b64encode(f"Artifact:{number}".encode()).decode(), "state": "COMMITTED"},
            "versionIndex": number,
            "artifactSequence": {"name": collection, "project": {"name": project, "entityName": entity}},
            "entries": {path: self.entry(data) for path, data in files.items()},
            **more,
        }
        self.artifacts[name] = self.artifacts[record["id"]] = record
        return record

    def entry(self, data: bytes) -> dict[str, Any]:
        """Store a file; return its entry of a manifest."""
        digest = hashlib.md5(data).digest()
        self.files[digest.hex()] = data
        return {"digest": base64.b64encode(digest).decode(), "size": len(data), "birthArtifactID": "QXJ0aWZhY3Q6MQ=="}

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        """Return status, headers and body of the answer to a request."""
        self.seen.append((method, target))
        parts = urlsplit(target)
        fault = self.fault(method, target)
        if fault is not None:
            return fault
        if parts.path.startswith("/store/"):
            if "Authorization" in headers:
                return 400, {}, b"<Error><Code>InvalidArgument</Code></Error>"  # as S3 of a signed address with more
            if int(parse_qs(parts.query)["sig"][0]) <= self.withdrawn:
                return 403, {}, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            return self._stored(parts.path.removeprefix("/store/"), headers)
        if headers.get("Authorization") != f"Basic {BASIC}":
            return 401, {"Content-Type": "application/json"}, b'{"errors":[{"message":"user is not logged in"}]}'
        if parts.path == "/graphql" and method == "POST":
            document = {"data": self._query(json.loads(body)["variables"])}
            return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()
        names = [unquote(part) for part in parts.path.split("/")]
        if names[1] == "artifactsV2" and len(names) == 9 and self.layout == "V2":
            return self._file(names[7], headers)
        if names[1] == "artifacts" and len(names) == 4 and self.layout == "V1":
            return self._file(names[3], headers)
        return 404, {"Content-Type": "text/html"}, b"<!doctype html><title>404</title>"

    def _query(self, variables: dict[str, str]) -> dict[str, Any]:
        if "id" in variables:
            return {"artifact": self._record(variables["id"])}
        place = f"{variables['entity']}/{variables['project']}/"
        if not any(name.startswith(place) for name in self.artifacts):
            return {"project": None}
        return {"project": {"artifact": self._record(place + variables["name"])}}

    def _record(self, name: str) -> dict[str, Any] | None:
        found = self.artifacts.get(name)
        if found is None:
            return None
        manifest = {
            "version": 1,
            "storagePolicy": "wandb-storage-policy-v1",
            "storagePolicyConfig": {"storageLayout": self.layout, "storageRegion": "default"},
            "contents": found["entries"],
        }
        data = json.dumps(manifest).encode()
        key = hashlib.md5(data).hexdigest()
        self.files[key] = data
        record = {"currentManifest": {"file": {"directUrl": self._sign(key)}}} | found
        return {each: value for each, value in record.items() if each != "entries"}

    def _file(self, key: str, headers: Any) -> Answer:
        if self.serves_itself:
            return self._stored(key, headers)
        return 307, {"Location": self._sign(key)}, b""

    def _sign(self, key: str) -> str:
        self.signed += 1
        signed = f"X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}&X-Amz-Expires=900&sig={self.signed}"
        return f"{self.store_url or self.url}/store/{key}?{signed}"

    def _stored(self, key: str, headers: Any) -> Answer:
        data = self.files.get(key)
        if data is None:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        asked = headers.get("Range", "")
        sent = {"Content-Type": "application/octet-stream", "ETag": f'"{key}"', "Accept-Ranges": "bytes"}
        return make_range_reply(data, asked, sent)


@contextmanager
def fake_wandb() -> Iterator[FakeWandb]:
    """Serve until the end of the block."""
    fake = FakeWandb()
    with serve_replies(fake.answer) as address:
        fake.url = f"http://{address}"
        yield fake
