"""The API over an engine that is not the server's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from server.api.listener import Listener
from server.api.probes import Probes
from server.api.routes import application
from server.engine.protocol import EngineLoad, InferenceEngine
from server.engine.types import (
    About,
    CompletionRequest,
    Continuation,
    Delta,
    Finished,
    GenerationEvent,
    GenerationRequest,
    ModelKind,
)
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Ready, ServerReadiness
from server.lifecycle.registry import Card, ModelRegistry, ServedText
from server.lifecycle.snapshot import Snapshot
from tests.support.generating import limits
from tests.support.serving import LIMITS

TOKENS = ("Hold", "fasts", " anchor", " kelp")


class Script:
    """One submission: streams `TOKENS`; the prompt `wait` stops before the last one until it is cancelled."""

    def __init__(self, request: Continuation, waits: bool) -> None:
        self.request = request
        self._waits = waits

    async def stream(self) -> AsyncGenerator[GenerationEvent, None]:
        for place, text in enumerate(TOKENS):
            if self._waits and place == len(TOKENS) - 1:
                await asyncio.Event().wait()
            yield Delta(0, text)
        yield Finished(0, "stop", len(TOKENS))


class ScriptedEngine:
    """An engine without a model or a thread; its tokens are the prompt's characters."""

    alive_at = 0.0

    def __init__(self) -> None:
        self.running: list[Script] = []

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[Script]:
        assert isinstance(request, CompletionRequest)
        prompt = str(request.prompts[0])
        prepared = Continuation((tuple(map(ord, prompt)),), (len(TOKENS),), request.options.sampling, ())
        with self._run(Script(prepared, prompt == "wait")) as script:
            yield script

    @contextmanager
    def submit_prepared(self, prepared: Continuation) -> Iterator[Script]:
        with self._run(Script(prepared, False)) as script:
            yield script

    @contextmanager
    def _run(self, script: Script) -> Iterator[Script]:
        self.running.append(script)
        try:
            yield script
        finally:
            self.running.remove(script)

    def capacity(self) -> EngineLoad:
        return EngineLoad(0, len(self.running))

    def close(self) -> None:
        """No thread to end."""

    def join(self) -> None:
        """No thread to wait for."""


async def test_the_api_serves_over_any_engine() -> None:
    """An engine that implements the interface answers whole and streamed completions, is measured and asked for its
    health, and has the request of a client that disconnects cancelled."""
    engine, metrics, catalog = ScriptedEngine(), ServerMetrics(), ModelRegistry()
    any_engine: InferenceEngine[GenerationRequest, Continuation, GenerationEvent] = engine
    about = About(ModelKind.COMPLETIONS, 100, "cpu", "float32", 1)
    card = Card("m", Snapshot(Path("/m"), "m", None, None), about, 0)
    served = ServedText(card, any_engine, metrics.model("m"))
    catalog.put(served)
    readiness = ServerReadiness(metrics)
    readiness.enter(Ready())
    async with Listener(Probes(readiness, metrics), LIMITS) as listener:
        url = await listener.listen("127.0.0.1", 0)
        await listener.serve(application(catalog, limits()), cancel_when_gone=True)
        async with aiohttp.ClientSession(url) as client:
            async with client.post("/v1/completions", json={"prompt": "x"}) as response:
                answer = await response.json()
            assert answer["choices"][0]["text"] == "".join(TOKENS)
            assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
            async with client.post("/v1/completions", json={"prompt": "x", "stream": True}) as response:
                assert streamed(await response.read()) == [*TOKENS, ""]
            async with client.post("/v1/completions", json={"prompt": "wait", "stream": True}) as response:
                await response.content.readline()
                async with client.get("/metrics") as scrape:
                    assert 'holdfast_server_queue_running{model="m"} 1.0' in await scrape.text()
                response.close()
            async with asyncio.timeout(100):
                while engine.running:
                    await asyncio.sleep(0.005)
    await served.run_dummy_inference()
    async with asyncio.timeout(100):
        await served.requests.wait_drained()
    served.close()


def streamed(body: bytes) -> list[str]:
    """The text of each piece of a stream of server-sent events."""
    events = body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    pieces: list[dict[str, Any]] = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    return [piece["choices"][0]["text"] for piece in pieces]
