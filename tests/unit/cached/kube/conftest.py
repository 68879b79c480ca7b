"""A fake API server, a client of it, and a way to wait for what happens next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cached.kube.client import KubeClient
from tests.support.fake_api import FakeApi

WITHIN_S = 100.0
Running = Callable[[Coroutine[Any, Any, None]], Any]
Until = Callable[[Callable[[], object], str], Awaitable[None]]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        yield server


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[KubeClient]:
    async with KubeClient(api.cluster()) as made:
        yield made


@pytest.fixture
def until() -> Until:
    """Wait until a condition holds."""

    async def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not condition():
            assert time.monotonic() < deadline, f"never happened: {what}"
            await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def running() -> Running:
    """Run a coroutine that never ends for as long as a block lasts; its failure is the test's."""

    @asynccontextmanager
    async def run(endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(endless)
            yield
            task.cancel()

    return run
