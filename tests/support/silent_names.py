"""A name server that never answers for one host, as the C library sees it: for the bounds of those who wait for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
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


# What the environment may say of proxies while `api.invalid` is never resolved: that of the last is silent itself.
each_proxy = pytest.mark.parametrize(
    "proxies",
    [
        {"HTTPS_PROXY": ""},
        {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "localhost"},
        {"HTTP_PROXY": "api.invalid:9"},
    ],
    ids=["none", "for others", "silent itself"],
)


def set_service(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], variable: str, proxies: Mapping[str, str]
) -> None:
    """Set `environment`, `proxies`, no other ones, and in `variable` a service's endpoint that is reached over
    `api.invalid`."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    url = "http://api.test:9" if "HTTP_PROXY" in proxies else "http://api.invalid:9"
    for name, value in {**environment, variable: url, **proxies}.items():
        monkeypatch.setenv(name, value)


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
