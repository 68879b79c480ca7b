"""The API and the engine over a model that does what a test says, through a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import aiohttp
import pytest
from yarl import URL

from server.api.connections import ConnectionLimits
from server.api.listener import Listener
from server.api.probes import Probes
from server.api.routes import application
from server.engine.engine import Job, ThreadedEngine
from server.engine.protocol import EngineLoad
from server.engine.types import (
    About,
    CompletionRequest,
    Continuation,
    Delta,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Limits,
    ModelKind,
)
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Draining, Loading, Ready, ServerReadiness
from server.lifecycle.registry import Card, ModelRegistry, ServedText
from server.lifecycle.snapshot import Snapshot
from tests.support.serving import LIMITS

ABOUT = About(ModelKind.COMPLETIONS, 100, "cpu", "float32", 1)
BODY = {"prompt": "x"}
FakeJob = Job[Continuation, GenerationEvent]


class ScriptedModel:
    """Answers each job as `script` says, one a step, in the engine's thread. Its tokens are the prompt's characters."""

    room = 1
    busy = False

    def __init__(self, script: Callable[[FakeJob], None]) -> None:
        self.script = script

    def prepare(self, request: GenerationRequest) -> Continuation:
        assert isinstance(request, CompletionRequest)
        return Continuation((tuple(map(ord, str(request.prompts[0]))),), (9,), request.options.sampling, ())

    def step(self, arrived: list[FakeJob]) -> None:
        for job in arrived:
            self.script(job)

    def reset(self) -> None:
        """Nothing is kept between steps."""


class Server:
    """An open listener with the API behind it."""

    def __init__(self, model: ScriptedModel, queue: int) -> None:
        self.metrics = ServerMetrics()
        self.readiness = ServerReadiness(self.metrics)
        self.probes = Probes(self.readiness, self.metrics)
        card = Card("m", Snapshot(Path("/m"), "m", None, None), ABOUT, 0)
        metrics = self.metrics.model("m")
        self.engine = ThreadedEngine(model, queue, metrics)
        self.served = ServedText(card, self.engine, metrics)
        catalog = ModelRegistry()
        catalog.put(self.served)
        self.application = application(catalog, Limits(1000, queue, None, 1, None))


@asynccontextmanager
async def serving(
    script: Callable[[FakeJob], None], queue: int = 8, limits: ConnectionLimits = LIMITS
) -> AsyncIterator[tuple[Server, aiohttp.ClientSession]]:
    server = Server(ScriptedModel(script), queue)
    async with Listener(server.probes, limits) as listener:
        url = await listener.listen("127.0.0.1", 0)
        await listener.serve(server.application, cancel_when_gone=True)
        server.readiness.enter(Ready())
        async with aiohttp.ClientSession(url) as client:
            yield server, client
        server.served.close()


def answer(job: FakeJob) -> None:
    job.emit(Delta(0, "hi"))
    job.emit(Finished(0, "stop", 1))
    job.finish()


async def test_a_full_queue_says_when_to_come_back() -> None:
    """Beyond --queue-limit the answer is 429 with Retry-After; those that wait are answered all the same."""
    running, go = threading.Event(), threading.Event()

    def script(job: FakeJob) -> None:
        running.set()
        go.wait(60)
        answer(job)

    async with serving(script, queue=1) as (server, client), asyncio.TaskGroup() as group:

        async def ask() -> int:
            async with client.post("/v1/completions", json=BODY) as response:
                return response.status

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(100):
                while not condition():
                    await asyncio.sleep(0.005)

        first = group.create_task(ask())
        await until(running.is_set)
        second = group.create_task(ask())
        await until(lambda: server.engine.capacity() == EngineLoad(waiting=1, running=1))
        async with client.post("/v1/completions", json=BODY) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error"]["code"] == "overloaded"
        go.set()
        assert [await first, await second] == [200, 200]


async def test_a_failing_model_fails_one_request_alone() -> None:
    """An exception in the model is a 500 that tells nothing of the inside, and the next request is served."""
    asked: list[FakeJob] = []

    def script(job: FakeJob) -> None:
        asked.append(job)
        if len(asked) == 1:
            raise RuntimeError("the inside")
        answer(job)

    async with serving(script) as (_, client):
        async with client.post("/v1/completions", json=BODY) as response:
            assert response.status == 500
            text = await response.text()
            assert json.loads(text)["error"]["type"] == "server_error"
            assert "the inside" not in text
        async with client.post("/v1/completions", json=BODY) as response:
            assert (await response.json())["choices"][0]["text"] == "hi"


async def test_a_failure_in_a_stream_is_its_last_event() -> None:
    """Where the status was sent already, the error comes as an event, and no [DONE] follows it."""

    def script(job: FakeJob) -> None:
        job.emit(Delta(0, "hi"))
        raise RuntimeError

    async with (
        serving(script) as (_, client),
        client.post("/v1/completions", json={**BODY, "stream": True}) as response,
    ):
        assert response.status == 200
        events = (await response.read()).decode().split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == "hi"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "model_failed"
    assert events[2:] == [""]


async def test_work_is_let_through_only_while_ready() -> None:
    """Loading and draining, work is answered 503 with Retry-After, and a drain is never undone by a late load."""
    async with serving(answer) as (server, client):
        for state in (Loading("load"), Ready(), Draining(), Ready()):
            server.readiness.enter(state)
            ready = state == Ready() and server.readiness.state == state
            async with client.get("/readyz") as probe, client.post("/v1/completions", json=BODY) as response:
                assert probe.status == (200 if ready else 503)
                assert response.status == (200 if ready else 503)
                assert ready or int(response.headers["Retry-After"]) >= 1
        assert server.readiness.state == Draining()


async def test_no_client_stays_with_what_answered_before_the_model_was_there() -> None:
    """A kept connection that saw the server load is closed, and one opened before is told to come again, not 404."""
    server = Server(ScriptedModel(answer), 8)
    async with Listener(server.probes, LIMITS) as listener:
        url = await listener.listen("127.0.0.1", 0)
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with aiohttp.ClientSession(url) as client:
            async with client.get("/readyz") as probe:
                assert probe.status == 503
            await listener.serve(server.application, cancel_when_gone=True)
            server.readiness.enter(Ready())
            async with client.post("/v1/completions", json=BODY) as response:
                assert response.status == 200
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        early = await reader.read()
        assert early.startswith(b"HTTP/1.1 503")
        assert b"Retry-After" in early
        writer.close()
        server.served.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("GET", "/v1/models/other", 404)],
)
async def test_every_error_has_openais_shape(method: str, path: str, status: int) -> None:
    """Unknown paths, methods and models answer with an error object that OpenAI's clients read."""
    async with serving(answer) as (_, client), client.request(method, path) as response:
        assert response.status == status
        error = (await response.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}


async def test_a_request_that_waits_and_is_given_up_never_runs() -> None:
    """A client that hangs up while it waits takes its request out of the queue."""
    running, go = threading.Event(), threading.Event()
    prompts: list[str] = []

    def script(job: FakeJob) -> None:
        prompts.append("".join(map(chr, job.request.prompts[0])))
        running.set()
        go.wait(60)
        answer(job)

    async with serving(script) as (server, client), asyncio.TaskGroup() as group:

        async def ask(prompt: str) -> None:
            async with client.post("/v1/completions", json={"prompt": prompt}) as response:
                assert response.status == 200

        first = group.create_task(ask("first"))
        async with asyncio.timeout(100):
            while not running.is_set():
                await asyncio.sleep(0.005)
            given_up = group.create_task(ask("given up"))
            while server.engine.capacity().waiting < 1:
                await asyncio.sleep(0.005)
            given_up.cancel()
            while server.engine.capacity().waiting > 0:
                await asyncio.sleep(0.005)
        go.set()
        await first
        await ask("last")
    assert prompts == ["first", "last"]


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "d\u00e9j\u00e0"])
async def test_a_request_without_an_id_is_given_one(given: str | None) -> None:
    """An answer has an id of ours where the request brought none, or one that would spoil a log line."""
    headers = {} if given is None else {"X-Request-Id": given}
    async with serving(answer) as (_, client), client.post("/v1/completions", json=BODY, headers=headers) as response:
        assert response.headers["X-Request-Id"].startswith("req_")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/nothing", "/v1/models/other"])
async def test_every_answer_has_its_requests_id(path: str) -> None:
    """Streams, answers and errors carry the id that came with the request."""
    async with serving(answer) as (server, client):
        for state in (Ready(), Draining()):
            server.readiness.enter(state)
            headers = {"X-Request-Id": "trace-1"}
            async with client.post(path, json={**BODY, "stream": True}, headers=headers) as response:
                assert response.headers["X-Request-Id"] == "trace-1"


async def test_a_body_beyond_the_limit_is_a_413() -> None:
    """A request larger than --body-limit is refused in OpenAI's shape, before it is read."""
    body = {"prompt": "x" * 2000}
    async with serving(answer) as (_, client), client.post("/v1/completions", json=body) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("raised", [Exception("no [UNK] token"), ZeroDivisionError()])
async def test_a_request_that_cannot_be_made_into_tokens_fails_in_openais_shape(raised: Exception) -> None:
    """Tokenizers raise plain exceptions: a 500 that tells nothing of the inside, as JSON, and the next is served."""
    async with serving(answer) as (server, client):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ScriptedModel, "prepare", Mock(side_effect=raised))
            async with client.post("/v1/completions", json=BODY) as response:
                assert response.status == 500
                assert (await response.json())["error"]["code"] == "model_failed"
        assert server.engine.capacity() == EngineLoad(0, 0)
        async with client.post("/v1/completions", json=BODY) as response:
            assert response.status == 200


async def test_a_body_that_is_not_what_its_headers_say_is_a_400(caplog: pytest.LogCaptureFixture) -> None:
    """A body that cannot be unpacked is the client's mistake, answered in OpenAI's shape, and quoted in no log."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with (
        serving(answer) as (_, client),
        client.post("/v1/completions", data=b"secret words", headers=headers) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_what_is_no_http_is_quoted_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Half of a chunked body that goes wrong is answered 400; what a client wrote is not in the log."""
    async with serving(answer) as (_, client):
        url = URL(str(client._base_url))
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\nsecret words\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
    assert "secret" not in caplog.text


async def test_a_client_that_hangs_up_in_a_stream_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """It is accounted as gone in the access log, and nothing of ours went wrong: no traceback."""
    caplog.set_level(logging.INFO)

    def script(job: FakeJob) -> None:
        while not job.ended:
            for _ in range(100):  # so that pieces are written one after the other, without a look at the client
                job.emit(Delta(0, "word"))
            time.sleep(0.001)

    async with serving(script) as (server, client):
        async with client.post("/v1/completions", json={**BODY, "stream": True}) as response:
            await response.content.readany()
            response.close()
        async with asyncio.timeout(100):
            await server.readiness.in_flight.wait_drained()
            await asyncio.sleep(0)
    assert [record.args[2] for record in caplog.records if record.name == "holdfast.access" and record.args] == [499]  # type: ignore[index]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_reads_nothing_holds_no_model() -> None:
    """A stream that is left lying ends after a while, as if its client had hung up: a model that was swapped out waits
    for its last request, and is released."""

    def script(job: FakeJob) -> None:
        while not job.ended:
            for _ in range(100):
                job.emit(Delta(0, "word" * 1000))
            time.sleep(0.01)

    async with serving(script, limits=replace(LIMITS, answer_s=0.3)) as (server, client):
        url, body = URL(str(client._base_url)), json.dumps({**BODY, "stream": True}).encode()
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1000)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await reader.readexactly(15)
        assert server.served.requests.count == 1
        async with asyncio.timeout(100):
            await server.served.requests.wait_drained()
        assert server.engine.capacity() == EngineLoad(0, 0)
        writer.transport.abort()


async def test_a_failure_before_the_first_token_has_a_status() -> None:
    """A stream whose request fails before any text was sent is a plain error, not a broken stream."""

    def script(job: FakeJob) -> None:
        raise RuntimeError

    body = {**BODY, "stream": True}
    async with serving(script) as (_, client), client.post("/v1/completions", json=body) as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "model_failed"
