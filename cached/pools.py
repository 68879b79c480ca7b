"""Pools of threads that are all there from the start.

Law: only making a pool can fail for want of threads. `ThreadPoolExecutor` by itself starts them one by one as work
comes, and where the kernel refuses one it raises after it has queued the work, which then runs unseen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cached.contract.limits import no_thread


def started_pool(threads: int, name: str, initializer: Callable[[], object] | None = None) -> ThreadPoolExecutor:
    """A pool of `threads` running threads; raises `Transient` (`no_thread`) and leaves none where one is refused."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=initializer)
    together = threading.Barrier(threads)  # a thread that waits here takes no second job: each job gets its own

    def arrive() -> None:
        try:
            together.wait()
        except threading.BrokenBarrierError:
            return

    try:
        for _ in range(threads):
            pool.submit(arrive)
    except RuntimeError as error:
        together.abort()
        pool.shutdown(cancel_futures=True)
        raise no_thread(f"the pool of {threads} threads {name!r}") from error
    return pool
