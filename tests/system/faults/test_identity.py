"""What one address answers is never taken for what another does, however alike they look when shown."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess
from tests.support.http_server import serve_http

SIZE = 3_000_000
PIECE = 500_000
VERSIONS = ("1", "2", "3")
MODIFIED = "Mon, 02 Nov 2026 10:00:00 GMT"
VALIDATORS = {
    "none": {},
    "modified": {"Last-Modified": MODIFIED},
    "weak": {"ETag": 'W/"same"'},
    "strong": {"ETag": '"same"'},
}


@contextmanager
def _answering(choose: Callable[[BaseHTTPRequestHandler], str | None], validators: dict[str, str]) -> Iterator[str]:
    """A server whose files are one character over and over, which `choose` takes from the request (None: 404). It is
    slow enough for fetches to overlap."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            chosen = choose(self)
            if chosen is None:
                self.send_error(404)
                return
            first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or SIZE - 1) + 1
            self.send_response(206 if "Range" in self.headers else 200)
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{SIZE}")
            self.send_header("Content-Length", str(end - start))
            for name, value in validators.items():
                self.send_header(name, value)
            self.end_headers()
            for at in range(start, end if with_body else start, PIECE):
                self.wfile.write(chosen.encode() * (min(end, at + PIECE) - at))
                time.sleep(0.1)

    with serve_http(Handler) as host:
        yield host


def _contents(daemon: DaemonProcess, model: str) -> dict[str, set[bytes]]:
    """The distinct pieces of each version's file."""
    found = {}
    for version in VERSIONS:
        ref = ModelRef(model, version)
        daemon.wait_ready(ref)
        (data,) = daemon.files(ref).values()
        assert len(data) == SIZE
        found[version] = {data[at : at + PIECE] for at in range(0, SIZE, PIECE)}
    return found


def _own() -> dict[str, set[bytes]]:
    return {version: {version.encode() * PIECE} for version in VERSIONS}


@pytest.mark.parametrize("validators", VALIDATORS.values(), ids=VALIDATORS.keys())
@pytest.mark.parametrize("path", ["/dl/model.safetensors?model={name}&rev={version}", "/dl/m;rev={version}/x.bin"])
def test_versions_that_differ_in_what_is_not_shown(
    daemon: DaemonProcess, path: str, validators: dict[str, str]
) -> None:
    """Versions whose addresses differ in the query alone, wanted together, each have their own bytes; the query is
    nowhere in what is told."""

    def choose(request: BaseHTTPRequestHandler) -> str | None:
        parts = urlsplit(request.path)
        if parts.path == "/dl/model.safetensors":
            return parse_qs(parts.query)["rev"][0]
        return parts.path[len("/dl/m;rev=")] if parts.path.endswith("/x.bin") else None

    with _answering(choose, validators) as host:
        daemon.write_catalog({"m": {"source": f"http://{host}{path}", "prefetch": {"versions": [*VERSIONS]}}})
        daemon.start()
        assert _contents(daemon, "m") == _own()
    assert "&rev=" not in daemon.log() + daemon.get("/v1/status")[1]


def test_users_who_may_see_different_things(daemon: DaemonProcess) -> None:
    """Versions whose addresses differ in the user or the password alone each have their own bytes."""
    contents = {b"ann:s3cret-a": "1", b"bob:s3cret-a": "2", b"bob:s3cret-b": "3"}

    def choose(request: BaseHTTPRequestHandler) -> str | None:
        user = base64.b64decode((request.headers["Authorization"] or "").removeprefix("Basic "))
        return contents[user] if request.path == "/m.bin" else None

    with _answering(choose, {"ETag": '"same"'}) as host:
        sources = {content: f"http://{user.decode()}@{host}/m.bin" for user, content in contents.items()}
        versions = {version: {"source": source} for version, source in sources.items()}
        daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": [*VERSIONS]}}})
        daemon.start()
        assert _contents(daemon, "m") == _own()
    assert "s3cret" not in daemon.log() + daemon.get("/v1/status")[1]


def test_what_no_server_sees_is_refused(daemon: DaemonProcess) -> None:
    """Versions whose addresses differ in what follows a `#` would all be the same bytes: refused, with what to do."""
    with _answering(lambda request: "1", {}) as host:
        daemon.write_catalog(
            {"m": {"source": f"http://{host}/m.bin#{{version}}", "prefetch": {"versions": [*VERSIONS]}}}
        )
        daemon.start()
        for version in VERSIONS:
            error = daemon.wait_state(ModelRef("m", version), "failed")["error"]
            assert (error["code"], error["permanent"]) == ("bad_url", True)
            assert "%23" in error["remedy"]
