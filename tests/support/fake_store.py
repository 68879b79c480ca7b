"""What the stand-ins of object stores have in common: tokens, faults, and answers that can be held.

Law: real sockets on 127.0.0.1, in this process.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import ClassVar
from urllib.parse import urlsplit

_PIECE_BYTES = 256 * 1024


@dataclass(kw_only=True)
class FakeStore:
    """The service, and what it saw. `private`: whether a request needs a token; `uses`: how many requests a token is
    good for; `alter`: changes bytes on their way into the store; `fail`: returns a status and a body in place of an
    answer, for a method and a path with its query."""

    token_prefix: ClassVar[str]
    url: str = ""
    private: bool = False
    uses: int | None = None
    has_identity: bool = True
    alter: Callable[[bytes], bytes] = bytes
    fail: Callable[[str, str], tuple[int, bytes] | None] = lambda _method, _path: None
    withdrawn: int = 0  # so many of the issued tokens are accepted no more
    issued: list[str] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)
    hold_at: int | None = None  # bytes of files after which answers wait for `released`
    released: threading.Event = field(default_factory=threading.Event)
    sent: Counter[str] = field(default_factory=Counter)  # bytes of files by path
    counting: threading.Lock = field(default_factory=threading.Lock)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def issue(self) -> str:
        with self.lock:
            self.issued.append(f"{self.token_prefix}.fake-token-{len(self.issued)}")
            return self.issued[-1]

    def accepts(self, authorization: str) -> bool:
        token = authorization.removeprefix("Bearer ")
        with self.lock:
            self.used[token] += 1
            return token in self.issued[self.withdrawn :] and (self.uses is None or self.used[token] <= self.uses)


class StoreHandler(BaseHTTPRequestHandler, ABC):
    """Answers a request with the `reply` that `_decide` sets; `store` is the service's."""

    protocol_version = "HTTP/1.1"
    reply: tuple[int, bytes, dict[str, str]]
    store: FakeStore

    def serve_request(self) -> None:
        self._decide()
        self._transmit()

    @abstractmethod
    def _decide(self) -> None:
        """Set the answer."""

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.reply = status, body, headers or {}

    def _transmit(self) -> None:
        """Send the answer, without the lock."""
        status, body, headers = self.reply
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self._send(memoryview(body))

    def _send(self, body: memoryview) -> None:
        state, path = self.store, urlsplit(self.path).path
        for start in range(0, len(body), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            if state.hold_at is not None and state.sent.total() >= state.hold_at:
                state.released.wait()
            try:
                self.wfile.write(piece)
            except OSError:  # who asked has gone
                self.close_connection = True
                return
            with state.counting:
                state.sent[path] += len(piece)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
