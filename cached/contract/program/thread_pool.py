"""Pools of threads that are all there from the start.

Law: only making a pool can fail for lack of threads: `ThreadPoolExecutor` itself starts them with the work, and if the
kernel refuses one it raises after the work is queued. Apart from `limits`, so that the gate does not import it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cached.contract.program.limits import no_thread


def start_pool(threads: int, name: str, initializer: Callable[[], object] | None = None) -> ThreadPoolExecutor:
    """Return a pool of `threads` running threads. Raises `Transient` (`no_thread`), with no thread left running."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=initializer)
    together = threading.Barrier(threads)  # a thread at the barrier takes no second job, so each job starts a thread

    def arrive() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait()

    try:
        for _ in range(threads):
            pool.submit(arrive)
    except RuntimeError as error:
        together.abort()
        pool.shutdown(cancel_futures=True)
        raise no_thread(f"the pool of {threads} threads {name!r}") from error
    return pool
