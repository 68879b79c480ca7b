"""One thread runs the model; requests wait for it in a bounded queue, and events flow back to whoever asked.

Law: knows nothing of HTTP or of models. Everything but `Job.emit`, `Job.fail` and `Job.cancelled` belongs to the
event loop's thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cached.contract.errors import HoldfastError, Permanent, Transient

_LOG = logging.getLogger(__name__)

RequestT = TypeVar("RequestT")
EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing a job says; `error` is None where it went well."""

    error: HoldfastError | None


class Job(Generic[RequestT, EventT]):
    """One request on its way through the model, and its events on their way back."""

    def __init__(self, request: RequestT) -> None:
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[EventT | _End] = asyncio.Queue()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this any more; the model looks before each step."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def emit(self, event: EventT) -> None:
        """Hand an event over, from the model's thread."""
        self._put(event)

    def finish(self) -> None:
        """Say that no event follows, from the model's thread."""
        self._put(_End(None))

    def fail(self, error: HoldfastError) -> None:
        """Say that this request failed, from the model's thread."""
        self._put(_End(error))

    async def events(self) -> AsyncGenerator[EventT, None]:
        """The events in order; raises the error the job failed with."""
        while True:
            event = await self._events.get()
            if not isinstance(event, _End):
                yield event
            elif event.error is not None:
                raise event.error
            else:
                return

    def _put(self, item: EventT | _End) -> None:
        if not self.cancelled:
            self._loop.call_soon_threadsafe(self._events.put_nowait, item)


class Model(Protocol[RequestT, EventT]):
    """What the thread runs. `process` finishes or fails every job it is given, and leaves cancelled ones early."""

    @property
    def batch_jobs(self) -> int:
        """The most jobs that one call of `process` takes."""
        ...

    def process(self, jobs: list[Job[RequestT, EventT]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that wait, and requests in the model, at this moment."""

    waiting: int
    running: int


class Engine(Generic[RequestT, EventT]):
    """A bounded queue in front of one thread that runs `model`."""

    def __init__(self, model: Model[RequestT, EventT], queue_limit: int) -> None:
        self._model = model
        self._queue_limit = queue_limit
        self._waiting: deque[Job[RequestT, EventT]] = deque()
        self._running: list[Job[RequestT, EventT]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, request: RequestT) -> Job[RequestT, EventT]:
        """Queue a request; raises `Transient` (`overloaded`) where too many wait already."""
        job: Job[RequestT, EventT] = Job(request)
        with self._changed:
            self._waiting = deque(other for other in self._waiting if not other.cancelled)
            if len(self._waiting) >= self._queue_limit:
                raise Transient(
                    "overloaded",
                    f"{len(self._waiting)} requests are waiting already, which is all that may",
                    "try again later, add replicas, or raise --queue-limit",
                    retry_after_s=1.0,
                )
            self._waiting.append(job)
            self._changed.notify()
        return job

    def load(self) -> Load:
        with self._changed:
            return Load(sum(not job.cancelled for job in self._waiting), len(self._running))

    def close(self) -> None:
        """Cancel everything and let the thread end after the step it is in."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel()
            self._changed.notify()

    def _run(self) -> None:
        while jobs := self._take():
            try:
                self._model.process(jobs)
            except Exception as error:  # noqa: BLE001 the thread serves on, whatever one request met
                _LOG.exception("the model failed")
                _fail(jobs, error)

    def _take(self) -> list[Job[RequestT, EventT]]:
        """Wait for work, then take what has queued up meanwhile: concurrent requests batch without any delay."""
        with self._changed:
            self._running = []
            while True:
                while self._waiting and len(self._running) < self._model.batch_jobs:
                    job = self._waiting.popleft()
                    if not job.cancelled:
                        self._running.append(job)
                if self._running or self._closed:
                    return self._running
                self._changed.wait()


def _fail(jobs: list[Job[RequestT, EventT]], cause: Exception) -> None:
    error = Permanent("model_failed", f"the model failed: {type(cause).__name__}", "see the server's log")
    error.__cause__ = cause
    for job in jobs:
        job.fail(error)


def call_in_thread(name: str, function: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
    """Run `function` in a thread of its own and await its result.

    Not an executor: the loop waits for an executor's threads at its end, and importing torch cannot be interrupted.
    """
    future: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 it is raised again where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(future)
