"""A rolling update without a cluster: clients, and a balancer whose endpoints change late, as a Service's do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai

from tests.support.serving import ServerProcess

# Completions in OpenAI's format, whole and streamed, by user code: it starts in a moment, and stops like a model.
APP = """
import asyncio, json
from aiohttp import web

def make(model_path, device):
    async def complete(request):
        wanted = await request.json()
        await asyncio.sleep(0.02)
        choice = {"index": 0, "text": "kelp", "finish_reason": "stop", "logprobs": None}
        document = {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
        if not wanted.get("stream"):
            return web.json_response(document)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(5):
            await response.write(f"data: {json.dumps(document)}\\n\\n".encode())
            await asyncio.sleep(0.02)
        await response.write(b"data: [DONE]\\n\\n")
        return response

    application = web.Application()
    application.router.add_post("/v1/completions", complete)
    return application
"""


class Balancer:
    """Passes connections on to `targets` in turn, as kube-proxy does: a connection stays where it began."""

    def __init__(self) -> None:
        self.targets: Sequence[ServerProcess] = ()
        self._turn = itertools.count()
        self._over = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), name="balancer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.url = ""

    def __enter__(self) -> Balancer:
        self._thread.start()
        assert self._listening.wait(120)
        return self

    def __exit__(self, *_raised: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(120)

    async def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._over.wait()
        server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = urlsplit(self.targets[next(self._turn) % len(self.targets)].url)
        try:
            there, to = await asyncio.open_connection(target.hostname, target.port)
        except OSError:
            writer.transport.abort()  # refused, to the client as well
            return
        try:
            await asyncio.gather(_copy(reader, to), _copy(there, writer))
        except asyncio.CancelledError:
            pass  # the end of the balancer: asyncio's own callback would report a task that was cancelled
        finally:
            to.transport.abort()
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
        writer.close()
    except ConnectionError:
        writer.transport.abort()


@dataclass
class Client:
    """One client that thinks between two requests; every second one streams. `failures`: what went wrong, and when."""

    kept: bool
    think_s: float
    answers: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, url: str, model: str, over: threading.Event) -> None:
        limits = httpx2.Limits(max_keepalive_connections=1 if self.kept else 0, keepalive_expiry=None)
        with (
            httpx2.Client(limits=limits, timeout=120) as http,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http) as asked,
        ):
            while not over.wait(self.think_s):
                try:
                    self._ask(asked, model)
                except openai.OpenAIError as error:
                    cause = error.__cause__
                    self.failures.append(f"{time.strftime('%X')} {type(error).__name__}: {error} ({cause!r})")

    def _ask(self, asked: openai.OpenAI, model: str) -> None:
        if self.answers % 2:
            pieces = list(asked.completions.create(model=model, prompt="x", max_tokens=4, stream=True))
            assert pieces[-1].choices[0].finish_reason is not None
        else:
            assert asked.completions.create(model=model, prompt="x", max_tokens=4).choices[0].finish_reason
        self.answers += 1


@contextmanager
def asking(url: str, model: str, clients: Sequence[Client]) -> Iterator[None]:
    """Run the clients while the block runs."""
    over = threading.Event()
    threads = [threading.Thread(target=client.run, args=(url, model, over)) for client in clients]
    with contextlib.ExitStack() as ends:
        for thread in threads:
            ends.callback(thread.join, 60)
            thread.start()
        ends.callback(over.set)
        yield


def eight_clients() -> list[Client]:
    """Half keep their connection; think times from none to 3.3 s."""
    return [Client(kept, think_s) for kept in (True, False) for think_s in (0.0, 0.05, 0.4, 3.3)]


def write_app(folder: Path) -> Path:
    """Write the user code `rolled_app:make`; return the folder for PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    (folder / "rolled_app.py").write_text(APP)
    return folder
