"""A server whose bearer tokens end: by a GET of `/token` it issues one, and every other path wants one that is valid.

Law: real sockets on 127.0.0.1; ranges and keep-alive as a registry or an object store has them. Tokens end after
`uses` requests or `seconds`, whatever `says` (the `expires_in` of the answer; None: it does not say).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.requests import Service
from cached.transport.service.tokens import BearerTokens, Token
from tests.support.http_server import serve_http

_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")


@dataclass
class TokenServer:
    """What it serves and what it saw: `issued` tokens, requests by status, and the bytes that it sent of each path."""

    url: str
    uses: int | None = None
    seconds: float | None = None
    says: float | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    pages: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # body and content type
    issued: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    at_once: int = 0  # the most token requests that stood at the same time
    withdrawn: bool = False  # whether no token is accepted any more
    _asking: int = 0
    _used: Counter[str] = field(default_factory=Counter)
    _born: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def issue(self) -> bytes:
        with self._lock:
            self._asking += 1
            self.at_once = max(self.at_once, self._asking)
            token = f"token-{len(self.issued)}"
            self.issued.append(token)
            self._born[token] = time.monotonic()
        answer = {"token": token} if self.says is None else {"token": token, "expires_in": self.says}
        return json.dumps(answer).encode()

    def issued_one(self) -> None:
        with self._lock:
            self._asking -= 1

    def accepts(self, authorization: str) -> bool:
        token = authorization.removeprefix("Bearer ")
        with self._lock:
            if self.withdrawn or token not in self._born:
                return False
            self._used[token] += 1
            young = self.seconds is None or time.monotonic() < self._born[token] + self.seconds
            return young and (self.uses is None or self._used[token] <= self.uses)

    def tokens(self, client: HttpClient) -> BearerTokens:
        """Tokens of this server, as a source makes them."""

        def issue(cancellation: Cancellation) -> Token:
            answer = Service(client, cancellation, "a test").get_json(f"{self.url}/token")
            return Token(answer["token"], answer.get("expires_in"))

        return BearerTokens([self.url], issue)


@contextmanager
def token_server(
    *, uses: int | None = None, seconds: float | None = None, says: float | None = None
) -> Iterator[TokenServer]:
    """Serve until the end of the block."""
    state = TokenServer("", uses, seconds, says)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/token":
                self._answer(200, state.issue(), {"Content-Type": "application/json"})
                state.issued_one()
                return
            if not state.accepts(self.headers.get("Authorization", "")):
                state.statuses[401] += 1
                self._answer(401, b"{}", {"WWW-Authenticate": "Bearer"})
                return
            path = self.path.partition("?")[0]
            if self.path in state.pages:
                body, kind = state.pages[self.path]
                self._answer(200, body, {"Content-Type": kind})
                return
            data = state.files[path]
            match = _RANGE.fullmatch(self.headers.get("Range", ""))
            start, end = (int(match[1]), int(match[2]) if match[2] else len(data) - 1) if match else (0, len(data) - 1)
            headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"} if match else {}
            with state._lock:
                state.sent[path] += end + 1 - start
            self._answer(206 if match else 200, memoryview(data)[start : end + 1], headers)

        def _answer(self, status: int, body: bytes | memoryview, headers: dict[str, str]) -> None:
            state.statuses[status] += status != 401
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with serve_http(Handler) as address:
        state.url = f"http://{address}"
        yield state
