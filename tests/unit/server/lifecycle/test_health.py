from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from server.api import routes
from server.api.listener import Listener
from server.api.probes import Probes
from server.engine.engine import Job, ThreadedEngine
from server.engine.types import About, Continuation, Finished, GenerationEvent, GenerationRequest, ModelKind, Sampling
from server.lifecycle.health import HealthMonitor
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Ready, ServerReadiness
from server.lifecycle.registry import Card, ModelRegistry, ServedText
from server.lifecycle.snapshot import Snapshot
from tests.support.generating import limits
from tests.support.serving import LIMITS

DEADLINE_S = 100.0
QUEUE = 8


class Wedging:
    """A model that answers at once while it may go on, and stands in its step while it may not; or fails."""

    room = 8
    busy = False

    def __init__(self) -> None:
        self.may_go_on, self.may_prepare = threading.Event(), threading.Event()
        self.may_go_on.set()
        self.may_prepare.set()
        self.fails = False
        self.steps = 0

    def prepare(self, _request: GenerationRequest) -> Continuation:
        self.may_prepare.wait()
        return Continuation(((1,),), (1,), Sampling(), ())

    def step(self, arrived: list[Job[Continuation, GenerationEvent]]) -> None:
        self.steps += 1
        self.may_go_on.wait()
        if self.fails:
            raise RuntimeError("a device-side assert")
        for job in arrived:
            job.emit(Finished(0, "stop", 1))
            job.finish()

    def reset(self) -> None:
        pass


class Server:
    """A listener in front of models that are felt every 50 ms, and are ill after a second: on a busy machine any thread
    stands still for 200 ms."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def readiness(self) -> tuple[int, str]:
        async with self._session.get(f"{self._url}/readyz") as answer:
            return answer.status, await answer.text()

    async def becomes(self, status: int) -> str:
        async with asyncio.timeout(DEADLINE_S):
            while (found := await self.readiness())[0] != status:
                await asyncio.sleep(0.01)
        return found[1]

    async def metric(self, sample: str) -> bool:
        async with self._session.get(f"{self._url}/metrics") as answer:
            return sample in await answer.text()

    async def complete(self, model: str) -> int:
        body = {"model": model, "prompt": "x"}
        async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
            return answer.status


@asynccontextmanager
async def serving(**models: Wedging) -> AsyncIterator[Server]:
    metrics, catalog = ServerMetrics(), ModelRegistry()
    readiness = ServerReadiness(metrics)
    for name, model in models.items():
        about = About(ModelKind.COMPLETIONS, 10, "cpu", "float32", 1)
        card = Card(name, Snapshot(Path("/m"), name, "v1", None), about, 0)
        measured = metrics.model(name)
        catalog.put(ServedText(card, ThreadedEngine(model, QUEUE, measured), measured))
    async with (
        Listener(Probes(readiness, metrics), LIMITS) as listener,
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as group,
    ):
        url = await listener.listen("127.0.0.1", 0)
        await listener.serve(routes.application(catalog, limits()), cancel_when_gone=True)
        readiness.enter(Ready())
        watching = group.create_task(HealthMonitor(catalog, readiness, 0.05, 3.0).watch())
        try:
            yield Server(url, session)
        finally:
            watching.cancel()
            for model, served in zip(models.values(), catalog.list_models(), strict=True):
                model.may_go_on.set()
                model.may_prepare.set()
                served.close()


async def test_a_model_that_stands_still_is_not_ready_until_it_goes_on() -> None:
    """An idle model is asked something; where its thread hangs /readyz names it, with other models well, and is ready
    again when the thread goes on."""
    wedging, fine = Wedging(), Wedging()
    async with serving(wedging=wedging, fine=fine) as server:
        async with asyncio.timeout(DEADLINE_S):
            while not (wedging.steps > 2 and fine.steps > 2):
                await asyncio.sleep(0.01)
        assert (await server.readiness())[0] == 200
        wedging.may_go_on.clear()
        reason = await server.becomes(503)
        assert reason == "wedging: no answer to a dummy inference in 3 s\n"
        assert await server.metric('holdfast_server_model_healthy{model="wedging"} 0.0')
        assert await server.metric('holdfast_server_model_healthy{model="fine"} 1.0')
        assert await server.metric("holdfast_server_ready 0.0")
        wedging.may_go_on.set()
        await server.becomes(200)
        assert await server.complete("wedging") == 200
        assert await server.metric("holdfast_server_ready 1.0")


async def test_a_model_that_fails_is_not_ready_until_it_answers() -> None:
    """A device that was lost fails every step: /readyz says so, and what comes gets 503 instead of the failure."""
    failing = Wedging()
    async with serving(failing=failing) as server:
        failing.fails = True
        assert "RuntimeError" in await server.becomes(503)
        assert await server.complete("failing") == 503
        failing.fails = False
        await server.becomes(200)
        assert await server.complete("failing") == 200


async def test_texts_that_take_long_to_read_make_no_model_ill() -> None:
    """While clients' texts are made into tokens, more than may wait, the model is asked past them, and is well."""
    reading = Wedging()
    async with serving(reading=reading) as server, asyncio.TaskGroup() as group:
        reading.may_prepare.clear()
        asked = [group.create_task(server.complete("reading")) for _ in range(QUEUE + 1)]
        async with asyncio.timeout(DEADLINE_S):
            while not await server.metric(f'holdfast_server_queue_waiting{{model="reading"}} {QUEUE}.0'):
                await asyncio.sleep(0.01)
        steps = reading.steps
        async with asyncio.timeout(DEADLINE_S):
            while reading.steps < steps + 30:  # longer than it takes a model to be ill
                await asyncio.sleep(0.01)
        assert (await server.readiness())[0] == 200
        reading.may_prepare.set()
    assert sorted(task.result() for task in asked) == [200] * QUEUE + [429]
