"""The process of `holdfast daemon`: its limits, its signals, its exit code; it starts anew after the root was deleted.

Law: knows no part of the daemon but its wiring. SIGTERM stops the fetches, records durable ranges, and ends with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.contract.program import events, limits
from cached.contract.program.logs import log_to_stderr
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.process import SignalThread
from cached.contract.program.thread_pool import start_pool
from cached.contract.program.tracing import Tracer, open_tracer
from cached.daemon.cold_starts import ColdStarts
from cached.daemon.config import Config, parse_config
from cached.daemon.http.server import MOST_CONNECTIONS
from cached.daemon.wiring import run_node
from cached.node.log_once import LogOnce
from cached.store.start import recovery

_log = logging.getLogger("holdfast")

_PATIENCE_S = 15.0  # for a shutdown: half of the kubelet's usual grace period
_LEAVING_S = 0.5  # to unlink the socket at a forced exit
_DELETING_S = 1.0  # an `rm -r` of the root may still be running
_LEAST_FILES = 128  # open at once, besides two a connection: partial blobs, idle connections, the daemon's own
_PEER_FILES = 1408  # connections of other nodes, the blobs that they get, and connections to them
_LEAST_CLIENTS = 16  # clients of each listener, whatever the limit
_LOOKUPS = 8  # threads for DNS lookups and for local sources
_SWITCH_S = 0.0005  # at Python's 5 ms a hashing thread waits for the interpreter longer than it hashes


def main(argv: Sequence[str]) -> int:
    """Run `holdfast daemon`; return the exit code."""
    log = events.open_events("daemon", argv)
    config = parse_config(argv)
    if log is not None:
        log.add_constant(node=config.node)
    # Of libraries only warnings: at lower levels botocore logs the responses to its requests for credentials.
    log_to_stderr(config.log_level, ours=("cached", _log.name), events=log)
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o022)  # folders get their final mode from mkdir itself, also before a crash
    ending = SignalThread(_PATIENCE_S, partial(_force_exit, Layout(config.root)))
    tracer: Tracer | None = None
    try:
        limits.start_thread(ending, "the daemon")
        _require_proc()
        max_clients = _compute_max_clients(limits.raise_open_files(_count_files(config)))
        tracer = open_tracer("daemon", config.tracing, {"k8s.node.name": config.node})
        asyncio.run(_run(config, ending, max_clients, tracer))
    except (HoldfastError, OSError, RuntimeError) as error:
        reason = error if isinstance(error, HoldfastError) else limits.find_limit_error(error, "the daemon")
        if reason is None:
            raise
        if ending.signalled:
            return EXIT_DONE  # no thread for asyncio's own pool shutdown, after all of ours ended
        events.report_end("holdfast daemon", reason)
        return EXIT_FAILED
    finally:
        if tracer is not None:
            tracer.close()
    return EXIT_DONE


def _require_proc() -> None:
    """Raise `Permanent` (`no_proc`) without /proc: the socket and the scrub use its short names of open folders."""
    if not os.path.exists("/proc/self/fd"):
        raise Permanent("no_proc", "/proc is not mounted here", "mount proc at /proc in the daemon's container")


def _count_files(config: Config) -> int:
    """Return the open files that are needed at once, listeners' clients apart."""
    return _LEAST_FILES + 2 * config.connections + (_PEER_FILES if config.pool.peers is not None else 0)


def _compute_max_clients(files: int) -> int:
    """Return the connection limit of each listener for a limit of open files; downloads come first."""
    most = min(MOST_CONNECTIONS, max(_LEAST_CLIENTS, (files - _LEAST_FILES) // 4))
    if most < MOST_CONNECTIONS:
        _log.warning("the limit of open files is %d: at most %d connections a listener", files, most)
    return most


def _force_exit(layout: Layout, why: str) -> None:
    """Log and unlink the socket before a forced exit (hung disk, blocked library); the disk is as after a kill."""
    threads = ", ".join(sorted(thread.name for thread in threading.enumerate()))
    _log.warning("%s: leaving at once; threads: %s", why, threads)
    unlinking = threading.Thread(target=_unlink_socket, args=(layout,), name="leaving", daemon=True)
    with contextlib.suppress(HoldfastError):  # no thread: the next start replaces the socket
        limits.start_thread(unlinking, "leaving")
        unlinking.join(_LEAVING_S)  # the disk may hang


def _unlink_socket(layout: Layout) -> None:
    with contextlib.suppress(OSError):
        layout.socket.unlink(missing_ok=True)


def _log_loop_error(log_once: LogOnce, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log once that a listener lacks descriptors to accept: asyncio retries each second and logs a traceback each
    time."""
    error = context.get("exception")
    short = None if error is None else limits.find_limit_error(error, "accepting a connection")
    if short is None:
        loop.default_exception_handler(context)
    else:
        log_once.log_error("listeners", str(short))


async def _run(config: Config, ending: SignalThread, max_clients: int, tracer: Tracer | None) -> None:
    """Run on the root until a signal sets `stop`; after the root was deleted start again with an empty one."""
    layout = Layout(config.root)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(_log_loop_error, LogOnce(_log)))
    loop.set_default_executor(start_pool(_LOOKUPS, "lookup"))
    cold_starts = None if tracer is None else ColdStarts(tracer, time.monotonic)
    while True:
        recovery.prepare(layout)
        async with contextlib.AsyncExitStack() as stack:
            address = await run_node(stack, config, ending, stop, max_clients, cold_starts)
        if stop.is_set():
            return
        config = replace(config, listen=address)
        await asyncio.sleep(_DELETING_S)
