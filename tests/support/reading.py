"""Read through the client as the engine does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cached.contract.errors import HoldfastError
from cached.transport.body import Body
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget

HASTY = HttpSettings(header_timeout_s=4.0, stall_window_s=1.5, stall_min_bytes=1000)  # for servers that stall
MakeClient = Callable[[HttpSettings], HttpClient]


def read_all(body: Body, view_bytes: int = 64 * 1024) -> bytes:
    """All of `body`, read `view_bytes` at a time; the body is closed afterwards."""
    data = bytearray()
    view = memoryview(bytearray(view_bytes))
    with body:
        while count := body.readinto(view):
            data += view[:count]
    return bytes(data)


def get(client: HttpClient, url: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of a range."""
    return read_all(client.get(HttpTarget(url), offset, length, Cancellation()))


def error_of(client: HttpClient, target: HttpTarget | str, offset: int = 0, length: int | None = None) -> HoldfastError:
    """The error that reading a range to its end gives."""
    target = HttpTarget(target) if isinstance(target, str) else target
    with pytest.raises(HoldfastError) as caught:
        read_all(client.get(target, offset, length, Cancellation()))
    return caught.value
