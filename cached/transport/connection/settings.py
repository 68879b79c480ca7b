"""The timeouts of the HTTP client. Law: values only."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerTrust:
    """Who an https server must be, in place of the system's authorities and the host of its URL: `read_context` returns
    a client's context, `name` is the name in the server's certificate."""

    read_context: Callable[[], ssl.SSLContext]
    name: str


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Times in seconds. `connect_timeout_s` covers a host's name and all its addresses. A body stalls if fewer than
    `stall_min_bytes` arrive within a window of any phase. `is_direct`: no proxy, no netrc, no redirect.
    `trust`: None for the system's."""

    connect_timeout_s: float = 9.0  # so that an unreachable host is told within 10 s
    header_timeout_s: float = 30.0
    stall_window_s: float = 30.0
    stall_min_bytes: int = 64 * 1024
    max_redirects: int = 10
    user_agent: str = "holdfast"
    is_direct: bool = False
    trust: ServerTrust | None = None

    @property
    def tick_s(self) -> float:
        """The maximum time that a receive blocks before a check of the clocks."""
        return min(1.0, self.stall_window_s / 4, self.header_timeout_s / 4)
