"""How patient the HTTP client is.

Law: values only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Times in seconds. A body stalls when a window passes with fewer than `stall_min_bytes`, however long it is."""

    connect_timeout_s: float = 10.0
    header_timeout_s: float = 30.0
    stall_window_s: float = 30.0
    stall_min_bytes: int = 64 * 1024
    max_redirects: int = 10
    user_agent: str = "holdfast"

    @property
    def tick_s(self) -> float:
        """The longest a receive blocks before the clocks are looked at."""
        return min(1.0, self.stall_window_s / 4, self.header_timeout_s / 4)
