"""A registry in this process that answers as a test says, also as none should: for lies, redirects and mirrors.

Law: real sockets on 127.0.0.1. It serves ranges, as registries do, and records what it was asked and with what.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import serve_http

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class ScriptedRegistry:
    """`answers`: by path below `/v2/`: status, headers and body; `asked`: paths with queries and their headers."""

    host: str = ""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def put(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        """Answer `path` with this; `_` in a header's name stands for `-`."""
        self.answers[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)

    def put_manifest(self, repository: str, reference: str, document: Mapping[str, Any] | bytes) -> str:
        """Answer the reference, and the digest, with a manifest; return the digest."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        kind = "application/vnd.oci.image.manifest.v1+json"
        for name in (reference, digest):
            self.put(f"{repository}/manifests/{name}", data, Content_Type=kind)
        return digest

    def put_blob(self, repository: str, data: bytes) -> dict[str, Any]:
        """Answer a blob; return its descriptor as a raw layer."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.put(f"{repository}/blobs/{digest}", data)
        return {"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": digest, "size": len(data)}

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def scripted_registry() -> Iterator[ScriptedRegistry]:
    """Serve until the end of the block."""
    state = ScriptedRegistry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.removeprefix("/v2/")
            state.asked.append((path, {name.lower(): value for name, value in self.headers.items()}))
            status, headers, body = state.answers.get(path.partition("?")[0], (404, {}, b'{"errors": []}'))
            match = _RANGE.fullmatch(self.headers.get("Range", ""))
            if status == 200 and match:
                start, end = int(match[1]), min(int(match[2]), len(body) - 1)
                headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}
                status, body = 206, body[start : end + 1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serve_http(Handler) as host:
        state.host = host
        yield state
