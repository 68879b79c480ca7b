"""`holdfast serve`: the only module that knows all the others.

Law: HTTP answers before anything heavy is imported. Ready is said only of a model that was loaded, warmed and tried.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.options import EXIT_DONE, EXIT_FAILED
from server import api, options, usercode
from server.frontdoor import FrontDoor
from server.jobs import Engine, EventT, RequestT, call_in_thread
from server.metrics import Metrics
from server.operations import Draining, Loading, Operations, Ready
from server.options import Settings
from server.snapshot import Snapshot, hold

if TYPE_CHECKING:
    from server.encoder import Encoder
    from server.generator import Generator

_LOG = logging.getLogger("holdfast.serve")
_THREADS_END_WITHIN_S = 0.5
ResultT = TypeVar("ResultT")


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    settings = options.parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = EXIT_DONE
    try:
        with hold(settings.model_path) as snapshot:
            asyncio.run(_Server(settings, snapshot).run())
    except* HoldfastError as group:
        sys.stderr.write(f"holdfast serve: {group.exceptions[0]}\n")
        code = EXIT_FAILED
    _leave_threads(code)
    return code


class _Server:
    """One run of the server, from the listening socket to the last answer."""

    def __init__(self, settings: Settings, snapshot: Snapshot) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self._metrics = Metrics()
        self._operations = Operations(self._metrics)
        self._close_engine: Callable[[], None] = lambda: None

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with FrontDoor(self._operations) as door:
            url = await self._listen(door)
            sys.stdout.write(f"holdfast serve: listening on {url}\n")
            sys.stdout.flush()
            async with asyncio.TaskGroup() as group:
                starting = group.create_task(self._start(door))
                await stop.wait()
                await self._drain()
                starting.cancel()

    async def _listen(self, door: FrontDoor) -> str:
        host, port = self._settings.host, self._settings.port
        try:
            return await door.listen(host, port)
        except OSError as error:
            raise Permanent(
                "no_address", f"cannot listen on {host}:{port}: {error.strerror}", "choose another with --listen"
            ) from error

    async def _start(self, door: FrontDoor) -> None:
        started = time.monotonic()
        if self._settings.app is not None:
            await self._start_user_code(door, self._settings.app)
        else:
            await self._start_model(door)
        self._operations.enter(Ready())
        _LOG.info("ready after %.2f s: %s", time.monotonic() - started, self._snapshot.name)

    async def _start_user_code(self, door: FrontDoor, target: str) -> None:
        wanted = self._settings.device
        device = await self._step("device", lambda: _select_device_for_user_code(wanted))
        self._operations.enter(Loading("app"))
        with self._metrics.stage("app"):
            application = await usercode.build(target, self._snapshot.path, device)
            self._metrics.describe(self._snapshot, None)
            await door.serve(application, cancel_when_gone=False)

    async def _start_model(self, door: FrontDoor) -> None:
        settings, snapshot = self._settings, self._snapshot
        device = await self._step("device", lambda: _select_device(settings.device))
        load = await self._step("import", _import_load)
        model = await self._step("load", lambda: load(snapshot.path, device, settings.dtype))
        await self._step("warm_up", model.warm_up)
        self._metrics.describe(snapshot, model.about)
        await door.serve(self._application(model), cancel_when_gone=True)

    def _application(self, model: Encoder | Generator) -> web.Application:
        from server.encoder import Encoder

        limits, metrics = self._settings.limits, self._metrics
        name = self._settings.served_name or self._snapshot.name
        card = api.Card(name, self._snapshot, model.about, int(time.time()))
        if isinstance(model, Encoder):
            embeddings = self._keep(Engine(model, limits.queue))
            return api.embeddings_application(card, embeddings, limits, metrics)
        completions = self._keep(Engine(model, limits.queue))
        return api.completions_application(card, completions, limits, metrics)

    def _keep(self, engine: Engine[RequestT, EventT]) -> Engine[RequestT, EventT]:
        self._metrics.watch_queue(engine.load)
        self._close_engine = engine.close
        return engine

    async def _step(self, name: str, function: Callable[[], ResultT]) -> ResultT:
        """Run one heavy stage of the start in a thread, while HTTP goes on answering."""
        self._operations.enter(Loading(name))
        with self._metrics.stage(name):
            return await call_in_thread(name, function)

    async def _drain(self) -> None:
        self._operations.enter(Draining())
        _LOG.info("stopping: %d requests in flight", self._operations.in_flight)
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._operations.idle()
        except TimeoutError:
            _LOG.warning(
                "%d requests were cut off after %g s (--drain-timeout)",
                self._operations.in_flight,
                self._settings.drain_timeout_s,
            )
        self._close_engine()


def _select_device(wanted: str) -> str:
    with _explained_imports():
        from server import gpu
    return gpu.select(wanted)


def _select_device_for_user_code(wanted: str) -> str:
    """As for a model, except that user code may do without torch: then `auto` is the CPU."""
    if wanted == "cpu":
        return "cpu"
    try:
        return _select_device(wanted)
    except Permanent as error:
        if wanted != "auto" or error.code != "missing_package":
            raise
        _LOG.warning("torch is not installed: user code is told that the device is the CPU")
        return "cpu"


def _import_load() -> Callable[[Path, str, str], Encoder | Generator]:
    with _explained_imports():
        from server.models import load
    return load


@contextmanager
def _explained_imports() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Permanent(
            "missing_package",
            f"the package {error.name} is missing",
            "pip install 'holdfast[transformers]', or serve your own code with --app",
        ) from error
    except (ImportError, OSError) as error:
        raise Permanent(
            "broken_package", f"a package cannot be imported: {error}", "install torch and transformers anew"
        ) from error


def _leave_threads(code: int) -> None:
    """End the process even where a thread is inside an import or a load, which nothing can interrupt.

    A plain exit would tear Python down under it: native code that then takes the interpreter's lock aborts.
    """
    deadline = time.monotonic() + _THREADS_END_WITHIN_S
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
