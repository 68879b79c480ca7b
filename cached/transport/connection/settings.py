"""The timeouts of the HTTP client. Law: values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Times in seconds. `connect_timeout_s` covers a host's name and all its addresses. A body stalls if fewer than
    `stall_min_bytes` arrive within a window of any phase. `is_direct`: no proxy, no netrc, no redirect."""

    connect_timeout_s: float = 9.0  # so that an unreachable host is told within 10 s
    header_timeout_s: float = 30.0
    stall_window_s: float = 30.0
    stall_min_bytes: int = 64 * 1024
    max_redirects: int = 10
    user_agent: str = "holdfast"
    is_direct: bool = False

    @property
    def tick_s(self) -> float:
        """The maximum time that a receive blocks before a check of the clocks."""
        return min(1.0, self.stall_window_s / 4, self.header_timeout_s / 4)
