"""A daemon's control socket that answers what a test tells it to, and status files as a daemon writes them."""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import DaemonStatus, ModelStatus, State, encode, timestamp

Answer = tuple[int, Any] | None  # None: hang up without a word


@dataclass
class ControlServer:
    """HTTP/1.1 on a Unix socket; `answers` maps `POST /v1/pull` to status and document, or to what makes them."""

    answers: dict[str, Answer | Callable[[Any], Answer]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def answer(self, request: str, body: Any) -> tuple[int, bytes] | None:
        """Note what was asked and make the answer's bytes."""
        self.asked.append((request, body))
        made = self.answers[request]
        answer = made(body) if callable(made) else made
        if answer is None:
            return None
        status, document = answer
        return status, document if isinstance(document, bytes) else json.dumps(document).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length)) if length else None
        control: ControlServer = self.server.control  # type: ignore[attr-defined]  # set by `serve_control`
        answer = control.answer(f"{self.command} {self.path}", body)
        if answer is None:
            self.close_connection = True
            return
        status, data = answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if data:  # the client may be gone after an empty answer
            self.wfile.write(data)

    do_GET = do_POST = _serve

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextlib.contextmanager
def serve_control(layout: Layout) -> Iterator[ControlServer]:
    """A running control socket under `layout`; the working folder must be its private one (addresses are short)."""
    with socketserver.ThreadingUnixStreamServer(layout.socket.name, _Handler) as server:
        control = ControlServer()
        server.control = control  # type: ignore[attr-defined]  # read by the handler
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield control
        finally:
            server.shutdown()
            thread.join()


def model_status(ref: ModelRef, state: State, **more: Any) -> ModelStatus:
    """A status of `ref` in `state`; `more` replaces the rest."""
    now = timestamp(time.time())
    plain: dict[str, Any] = {
        "digest": None,
        "pinned": False,
        "source": "s3://models/x/",
        "bytes_total": None,
        "bytes_done": 0,
        "rate_bytes_per_s": None,
        "eta_s": None,
        "since": now,
        "updated": now,
        "error": None,
    }
    return ModelStatus(model=ref.name, version=ref.version, state=state, **(plain | more))


def write_status(layout: Layout, status: ModelStatus) -> None:
    """Replace a version's status file atomically, as the daemon does."""
    path = layout.public.model_status(ModelRef(status.model, status.version))
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(encode(status.document()))
    os.replace(fresh, path)


def write_heartbeat(layout: Layout, updated: float) -> None:
    """Write the daemon's heartbeat as of `updated`, seconds since the epoch."""
    status = DaemonStatus("node-a", "0.1.0", 4242, timestamp(updated), timestamp(updated))
    layout.public.daemon_status.write_bytes(encode(status.document()))
