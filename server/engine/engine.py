"""One thread runs the model, step by step; requests wait for it in a bounded queue, and events flow back to whoever
asked.

Law: knows nothing of HTTP or of models. Between two steps requests join and leave. A request is prepared (its text
made into tokens) in a second thread, so that a long one never holds up a step. Everything but `Job.emit`,
`Job.finish`, `Job.fail` and `Job.ended` belongs to the event loop's thread.
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
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cached.contract.errors import HoldfastError, Permanent, Transient

_LOG = logging.getLogger(__name__)

RequestT = TypeVar("RequestT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
PreparedT = TypeVar("PreparedT")
EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing a job says; `error` is None where it went well."""

    error: HoldfastError | None


class Job(Generic[PreparedT, EventT]):
    """One request on its way through the model, and its events on their way back."""

    def __init__(self, request: PreparedT) -> None:
        self.request = request
        self.submitted = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[EventT | _End] = asyncio.Queue()
        self._ended = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether nobody waits for this any more: it is finished, failed or given up. The model looks at each step."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Give up: nothing is told any more."""
        self._ended.set()

    def emit(self, event: EventT) -> None:
        """Hand an event over, from the model's thread."""
        if not self.ended:
            self._put(event)

    def finish(self) -> None:
        """Say that no event follows, from the model's thread."""
        self._end(_End(None))

    def fail(self, error: HoldfastError) -> None:
        """Say that this request failed, from the model's thread."""
        self._end(_End(error))

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

    def _end(self, end: _End) -> None:
        if not self.ended:
            self._ended.set()
            self._put(end)

    def _put(self, item: EventT | _End) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, item)
        except RuntimeError:
            self._ended.set()  # the loop is closed: the server has ended under the model's last step


class Model(Protocol[RequestT_contra, PreparedT, EventT]):
    """What the threads run."""

    def prepare(self, request: RequestT_contra) -> PreparedT:
        """Read a request, in the second thread; raises `InvalidRequest` for one that can never be answered."""
        ...

    @property
    def room(self) -> int:
        """How many more jobs the next step would take up."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is something to do without new jobs."""
        ...

    def step(self, arrived: list[Job[PreparedT, EventT]]) -> None:
        """Take up these jobs and go one step with all there are; finish or fail those that are over."""
        ...

    def reset(self) -> None:
        """Let go of all jobs, after a step that failed."""
        ...


class Observer(Protocol):
    """Who is told how the queue goes."""

    def waited(self, seconds: float) -> None:
        """A request waited so long for the model."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that wait, and requests in the model, at this moment."""

    waiting: int
    running: int


class Engine(Generic[RequestT, PreparedT, EventT]):
    """A bounded queue in front of one thread that runs `model`."""

    def __init__(self, model: Model[RequestT, PreparedT, EventT], queue_limit: int, observer: Observer) -> None:
        self._model = model
        self._queue_limit = queue_limit
        self._observer = observer
        self._preparing = 0
        self._waiting: deque[Job[PreparedT, EventT]] = deque()
        self._running: list[Job[PreparedT, EventT]] = []
        self._changed = threading.Condition()
        self._closed = False
        self.alive_at = time.monotonic()  # when the model last ended a step well
        self._prepare = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @asynccontextmanager
    async def submitted(self, request: RequestT) -> AsyncIterator[Job[PreparedT, EventT]]:
        """A queued job for as long as somebody waits for it: leaving early, as a client that hangs up does, cancels
        it. Raises `Transient` (`overloaded`) where too many wait already, and what `prepare` raises."""
        self._admit(self._preparing)
        self._preparing += 1
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(self._prepare, self._model.prepare, request)
        except HoldfastError:
            raise
        except Exception as error:  # tokenizers raise no kind of their own, and templates any
            _LOG.exception("a request could not be made into tokens")
            raise model_failed(error) from error
        finally:
            self._preparing -= 1
        with self._queued(prepared) as job:
            yield job

    @contextmanager
    def submitted_prepared(self, prepared: PreparedT) -> Iterator[Job[PreparedT, EventT]]:
        """As `submitted`, past the thread that prepares: whoever tries the model does not wait for others' texts."""
        self._admit(0)
        with self._queued(prepared) as job:
            yield job

    @contextmanager
    def _queued(self, prepared: PreparedT) -> Iterator[Job[PreparedT, EventT]]:
        job: Job[PreparedT, EventT] = Job(prepared)
        with self._changed:
            if self._closed:
                raise _closed()
            self._waiting.append(job)
            self._changed.notify()
        try:
            yield job
        finally:
            job.cancel()

    def load(self) -> Load:
        with self._changed:
            waiting = sum(not job.ended for job in self._waiting) + self._preparing
            return Load(waiting, sum(not job.ended for job in self._running))

    def close(self) -> None:
        """Cancel everything and let the threads end after what they are in."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel()
            self._changed.notify()
        self._prepare.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait, after `close`, until the model's thread is over. Blocks."""
        self._thread.join()

    def _admit(self, preparing: int) -> None:
        with self._changed:
            if self._closed:
                raise _closed()
            self._waiting = deque(job for job in self._waiting if not job.ended)
            waiting = len(self._waiting) + preparing
            if waiting >= self._queue_limit:
                raise Transient(
                    "overloaded",
                    f"{waiting} requests are waiting already, which is all that may",
                    "try again later, add replicas, or raise --queue-limit",
                    retry_after_s=1.0,
                )

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            try:
                self._model.step(jobs)
                self.alive_at = time.monotonic()
            except Exception as error:  # noqa: BLE001 the thread serves on, whatever one request met
                _LOG.exception("the model failed")
                self._fail_all(error)
                self._model.reset()

    def _take(self) -> list[Job[PreparedT, EventT]] | None:
        """What has queued up, as far as there is room for it; waits only where there is nothing else to do.

        None at the end. Concurrent requests batch without any delay.
        """
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
            self._observer.waited(now - job.submitted)
        return taken

    def _fail_all(self, cause: Exception) -> None:
        error = model_failed(cause)
        for job in self._running:
            job.fail(error)


def _closed() -> Transient:
    return Transient("closed", "this model is being taken out of service", "try again", retry_after_s=1.0)


def model_failed(cause: Exception) -> Permanent:
    """What a client is told of an exception inside the model: nothing of the inside."""
    error = Permanent("model_failed", f"the model failed: {type(cause).__name__}", "see the server's log")
    error.__cause__ = cause
    return error


def fail_without_numbers(job: Job[PreparedT, EventT]) -> None:
    """Fail a job for which the model gave logits or vectors that are NaN or infinite."""
    error = Permanent(
        "model_failed",
        "the model's numbers are NaN or infinite",
        "look for faults of the GPU (nvidia-smi, Xid errors in the kernel log); what overflows in float16 may not in "
        "bfloat16 or float32 (--dtype)",
    )
    _LOG.error("%s", error)
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
