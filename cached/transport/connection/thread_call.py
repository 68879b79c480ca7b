"""Blocking network calls from the event loop.

Law: each call has its own thread; neither the loop nor the process waits for it at its end. A caller that is cancelled,
or out of time, cancels the call and continues at once; hung calls (of a silent name server, say) never delay others, as
they would on a pool. An idle thread waits some seconds for a call: a start costs more than a call to a server nearby.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from cached.contract.program import limits
from cached.transport.connection.cancel import Cancellation

T = TypeVar("T")
_Job = Callable[[], None]

_IDLE_S = 5.0
_MAX_IDLE = 16


async def call_in_thread(call: Callable[[Cancellation], T]) -> T:
    """Return the result of `call`, whose argument is cancelled with the caller. Raises `Transient` (`no_thread`)."""
    outcome = Future[T]()
    cancellation = Cancellation()

    def run() -> None:
        if not outcome.set_running_or_notify_cancel():
            return  # the caller was cancelled
        try:
            outcome.set_result(call(cancellation))
        except BaseException as error:  # noqa: BLE001 - every end becomes the outcome, none is lost
            outcome.set_exception(error)

    _threads.run(run)
    try:
        return await asyncio.wrap_future(outcome)
    finally:
        cancellation.cancel()


class _Threads:
    """Threads that run one job after the other; each job gets one at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Job]] = []  # the queue of each idle thread

    def run(self, job: _Job) -> None:
        """Run `job`, which raises nothing, on an idle or a new thread; raises `Transient` (`no_thread`)."""
        with self._lock:
            jobs = self._idle.pop() if self._idle else None
        if jobs is None:
            jobs = queue.SimpleQueue()
            limits.start_thread(
                threading.Thread(target=self._work, args=(jobs,), name="source-call", daemon=True), "a call to a source"
            )
        jobs.put(job)  # not as an argument: a thread keeps its arguments, and with the job its result, to its end

    def _work(self, jobs: queue.SimpleQueue[_Job]) -> None:
        while True:
            try:
                job = jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if jobs in self._idle:
                        self._idle.remove(jobs)
                        return
                continue  # a job comes at this moment
            job()
            del job
            with self._lock:
                if len(self._idle) >= _MAX_IDLE:
                    return
                self._idle.append(jobs)


_threads = _Threads()
