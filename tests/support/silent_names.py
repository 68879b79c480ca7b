"""A name server that never answers for one host, as the C library sees it: for the bounds of those who wait for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

_LONGEST_S = 20.0  # as the C library waits; the end of the block ends it before


@dataclass
class Lookups:
    """The lookups that came, and those that had to wait to their own end."""

    asked: int = 0
    waited_out: int = 0


@contextmanager
def silent_name(host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    """Let lookups of `host` wait until the end of the block; yield how many came."""
    ended, lookups, find = threading.Event(), Lookups(), socket.getaddrinfo

    def resolve(name: str, *rest: Any, **more: Any) -> Any:
        if name == host:
            lookups.asked += 1
            lookups.waited_out += not ended.wait(_LONGEST_S)
        return find(name, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", resolve)
        try:
            yield lookups
        finally:
            ended.set()
