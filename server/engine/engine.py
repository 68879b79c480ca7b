"""The server's own engine: one thread runs the model step by step behind a bounded queue of requests.

Law: knows neither HTTP nor models. Requests join and leave between two steps. A second thread turns text into tokens,
so that a long prompt never delays a step. All but `Job.emit`, `finish`, `fail` and `ended` belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, Protocol, TypeVar

from cached.contract.errors import HoldfastError, Permanent, Transient
from server.engine.protocol import EngineLoad, PreparedT, RequestT_contra

_LOG = logging.getLogger(__name__)

RequestT = TypeVar("RequestT")
EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")


class Job(Generic[PreparedT, EventT]):
    """One request in the engine, and its events. Implements `Submission`. `is_check`: the server's own, no client's."""

    def __init__(self, request: PreparedT, *, is_check: bool = False) -> None:
        self.request = request
        self.is_check = is_check
        self.submitted = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[EventT | HoldfastError | None] = asyncio.Queue()  # the last: its error, or None
        self._ended = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether the job finished, failed or was cancelled. The model checks it at each step."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Cancel the job: it emits no further event."""
        self._ended.set()

    def emit(self, event: EventT) -> None:
        """Emit an event, from the model's thread."""
        if not self.ended:
            self._put(event)

    def finish(self) -> None:
        """End the job's events, from the model's thread."""
        self._end(None)

    def fail(self, error: HoldfastError) -> None:
        """End the job with `error`, from the model's thread."""
        self._end(error)

    async def stream(self) -> AsyncGenerator[EventT, None]:
        """Yield the events in order; raises the error with which the job failed."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, HoldfastError):
                raise event
            yield event

    def _end(self, error: HoldfastError | None) -> None:
        if not self.ended:
            self._ended.set()
            self._put(error)

    def _put(self, item: EventT | HoldfastError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, item)
        except RuntimeError:
            self._ended.set()  # the loop is closed: the server stopped during the model's last step


class Model(Protocol[RequestT_contra, PreparedT, EventT]):
    """A model that the engine's threads run."""

    def prepare(self, request: RequestT_contra) -> PreparedT:
        """Turn a request into tokens, in the second thread; raises `InvalidRequest` where it cannot be served."""

    @property
    def room(self) -> int:
        """Return how many more jobs the next step can admit."""

    @property
    def busy(self) -> bool:
        """Return whether a step has work without new jobs."""

    def step(self, arrived: list[Job[PreparedT, EventT]]) -> None:
        """Admit these jobs and run one step of all; finish or fail the jobs that end."""

    def reset(self) -> None:
        """Drop all jobs, after a step that failed."""


class QueueObserver(Protocol):
    """Receives the engine's measurements."""

    def record_wait(self, seconds: float) -> None:
        """Record how long a request waited for the model."""


class ThreadedEngine(Generic[RequestT, PreparedT, EventT]):
    """A bounded queue in front of one thread that runs `model`. Implements `InferenceEngine`."""

    def __init__(self, model: Model[RequestT, PreparedT, EventT], queue_limit: int, observer: QueueObserver) -> None:
        self._model = model
        self._queue_limit = queue_limit
        self._observer = observer
        self._preparing = 0
        self._waiting: deque[Job[PreparedT, EventT]] = deque()
        self._running: list[Job[PreparedT, EventT]] = []
        self._changed = threading.Condition()
        self._closed = False
        self.alive_at = time.monotonic()  # when the last step succeeded
        self._prepare = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @asynccontextmanager
    async def submit(self, request: RequestT) -> AsyncIterator[Job[PreparedT, EventT]]:
        """Prepare and queue a request, as `InferenceEngine.submit`; a disconnect leaves the block early too."""
        self._admit(self._preparing)
        self._preparing += 1
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(self._prepare, self._model.prepare, request)
        except HoldfastError:
            raise
        except Exception as error:  # tokenizers have no error type of their own, and templates raise any
            _LOG.exception("a request could not be made into tokens")
            raise model_failed(error) from error
        finally:
            self._preparing -= 1
        with self._queued(Job(prepared)) as job:
            yield job

    @contextmanager
    def submit_prepared(self, prepared: PreparedT) -> Iterator[Job[PreparedT, EventT]]:
        """Queue a request in tokens without the tokenizer's thread: a health check does not wait for clients' texts,
        and takes no client's place in the queue."""
        self._admit(0)
        with self._queued(Job(prepared, is_check=True)) as job:
            yield job

    @contextmanager
    def _queued(self, job: Job[PreparedT, EventT]) -> Iterator[Job[PreparedT, EventT]]:
        with self._changed:
            if self._closed:
                raise _closed()
            self._waiting.append(job)
            self._changed.notify()
        try:
            yield job
        finally:
            job.cancel()

    def capacity(self) -> EngineLoad:
        """Count the requests that wait and run."""
        with self._changed:
            waiting = self._count_waiting() + self._preparing
            return EngineLoad(waiting, sum(not job.ended for job in self._running))

    def close(self) -> None:
        """Cancel all jobs and let the threads end after their current step."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel()
            self._changed.notify()
        self._prepare.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait, after `close`, until the model's thread has ended. Blocks."""
        self._thread.join()

    def _admit(self, preparing: int) -> None:
        with self._changed:
            if self._closed:
                raise _closed()
            self._waiting = deque(job for job in self._waiting if not job.ended)
            waiting = self._count_waiting() + preparing
            if waiting >= self._queue_limit:
                raise Transient(
                    "overloaded",
                    f"{waiting} requests are waiting already, the limit",
                    "try again later, add replicas, or raise --queue-limit",
                    retry_after_s=1.0,
                )

    def _count_waiting(self) -> int:
        """Count the clients' requests in the queue. Call with the lock held."""
        return sum(not job.ended and not job.is_check for job in self._waiting)

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            try:
                self._model.step(jobs)
                self.alive_at = time.monotonic()
            except Exception as error:  # noqa: BLE001 one request's failure must not end the thread
                _LOG.exception("the model failed")
                failure = model_failed(error)
                for job in self._running:
                    job.fail(failure)
                self._model.reset()

    def _take(self) -> list[Job[PreparedT, EventT]] | None:
        """Return the queued jobs that the model can admit; None once closed. Waits only where the model has no work.
        Concurrent requests are batched without any delay."""
        with self._changed:
            self._running = [job for job in self._running if not job.ended]
            while not self._closed:
                taken: list[Job[PreparedT, EventT]] = []
                room = self._model.room
                while self._waiting and len(taken) < room:
                    job = self._waiting.popleft()
                    if not job.ended:
                        taken.append(job)
                if taken or self._model.busy:
                    self._running += taken
                    break
                self._changed.wait()
            else:
                return None
        now = time.monotonic()
        for job in taken:
            self._observer.record_wait(now - job.submitted)
        return taken


def _closed() -> Transient:
    return Transient("closed", "this model is being taken out of service", "try again", retry_after_s=1.0)


def model_failed(cause: Exception) -> Permanent:
    """Return the error that a client gets for an exception in the model: it reveals no internals."""
    error = Permanent("model_failed", f"the model failed: {type(cause).__name__}", "see the server's log")
    error.__cause__ = cause
    return error


def fail_without_numbers(job: Job[PreparedT, EventT]) -> None:
    """Fail a job whose logits or vectors are NaN or infinite."""
    error = Permanent(
        "model_failed",
        "the model's numbers are NaN or infinite",
        "look for faults of the GPU (nvidia-smi, Xid errors in the kernel log); what overflows in float16 may not in "
        "bfloat16 or float32 (--dtype)",
    )
    _LOG.error("%s", error)
    job.fail(error)


def call_in_thread(name: str, function: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
    """Run `function` in a thread of its own and await its result. Not an executor: the loop waits for an executor's
    threads when it stops, and an import of torch is uninterruptible."""
    future: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 raised again by the awaiting caller
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(future)
