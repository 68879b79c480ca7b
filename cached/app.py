"""Wire the daemon together and run it: the only module that knows every part.

Law: parts get each other here and nowhere else. SIGTERM stops the fetches, records what is durable, and ends with 0.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from aiohttp import web

from cached.blocking import Blocking
from cached.board import Board
from cached.catalog import EMPTY_CATALOG, Catalog, ParsedCatalog, parse_catalog
from cached.config import Config, parse_config
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.contract.options import EXIT_DONE, EXIT_FAILED
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.control import control
from cached.daemon import Daemon
from cached.flights import Flights
from cached.holdings import Holdings
from cached.http import reads
from cached.janitor import Janitor
from cached.ledger import DiskSpace, Ledger
from cached.scheduler import Parts, Scheduler
from cached.scrub import Scrub, ScrubParts
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.store import durable, recovery
from cached.transfer import Transfers
from cached.watching import watched
from cached.wire.client import HttpClient
from cached.wire.settings import HttpSettings
from cached.workers import Workers, WorkerSettings

_log = logging.getLogger("holdfast")

_HEARTBEAT_S = 2.0  # the design asks for 5 at most
_LEASES_S = 10.0  # and for 15 at most here
_SETTLE_S = 0.05  # a catalog is written in several steps
_SWITCH_S = 0.0005  # a thread that hashes gets the interpreter back soon: at Python's 5 ms it would wait more than work
_UNFINISHED = frozenset({State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})


def main(argv: Sequence[str]) -> int:
    """`holdfast daemon`."""
    config = parse_config(argv)
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    sys.setswitchinterval(_SWITCH_S)
    try:
        asyncio.run(_run(config))
    except HoldfastError as error:
        sys.stderr.write(f"holdfast daemon: {error}\n")
        return EXIT_FAILED
    return EXIT_DONE


async def _run(config: Config) -> None:
    layout = Layout(config.root)
    recovery.prepare(layout)
    lock = _lock(layout)
    try:
        recovered = await asyncio.to_thread(recovery.recover, layout)
        blocking = Blocking(4)
        board = Board(layout.public, config.node)
        holdings = Holdings(layout, recovered)
        ledger = Ledger(config.quota, partial(_disk, layout.root))
        ledger.set_held(sum(recovered.blobs.values()), sum(recovered.ingests.values()) + recovered.quarantined)
        daemon = Daemon(layout, holdings, board, ledger, blocking)
        client = HttpClient(HttpSettings(stall_window_s=config.stall_timeout_s))
        limits = WorkerSettings(config.connections, config.connections_per_origin, config.max_bandwidth)
        workers = Workers(layout, client, limits, daemon.counters)
        flights = Flights(layout, workers, ledger)
        opener = partial(_open, client)
        transfers = Transfers(layout, flights, board, blocking, daemon.counters, opener)
        janitor = Janitor(layout, holdings, board, ledger, blocking)
        parts = Parts(board, holdings, ledger, flights, transfers, janitor, daemon.counters)
        scheduler = Scheduler(parts, config.high_watermark, config.low_watermark)
        daemon.drive(scheduler, workers)
        scheduler.resume(_take_up(layout, board, holdings))
        scrub = Scrub(
            ScrubParts(layout, holdings, daemon.counters, lambda: workers.in_progress() > 0, scheduler.lost_blob),
            config.scrub_rate,
        )
        try:
            async with _doors(config, layout, daemon):
                await _live(config, daemon, board, scheduler, scrub)
        finally:
            await asyncio.to_thread(workers.stop)
            client.close()
            blocking.close()
            board.close()
    finally:
        os.close(lock)


async def _live(config: Config, daemon: Daemon, board: Board, scheduler: Scheduler, scrub: Scrub) -> None:
    """Run every task until a signal asks to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(scheduler.run(), name="scheduler"),
            group.create_task(_follow_catalog(config.catalog, daemon, scheduler), name="catalog"),
            group.create_task(_beat(board), name="heartbeat"),
            group.create_task(_look_at_leases(scheduler), name="leases"),
        ]
        if config.scrub_rate > 0:
            tasks.append(group.create_task(scrub.run(), name="scrub"))
        await stop.wait()
        _log.info("stopping: what is under way is recorded and goes on at the next start")
        daemon.waits_for("stopping")
        for task in tasks:
            task.cancel()


async def _follow_catalog(path: Path, daemon: Daemon, scheduler: Scheduler) -> None:
    """Keep the catalog in force, reading it whenever its folder changes; the last good one stays otherwise."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    last_good, last_text, loaded = EMPTY_CATALOG, None, False
    with watched(path, partial(loop.call_soon_threadsafe, changed.set)):
        while True:
            changed.clear()
            try:
                text = await asyncio.to_thread(_read_catalog, path)
                if text != last_text:
                    last_text = text
                    last_good = _accept(await asyncio.to_thread(parse_catalog, text, last_good))
                    scheduler.use_catalog(last_good)
                    loaded = True
                    daemon.waits_for(None)
            except HoldfastError as error:
                _log.error("%s", error)
                if not loaded:
                    daemon.waits_for(f"no catalog: {error}")
            await changed.wait()
            await asyncio.sleep(_SETTLE_S)


def _read_catalog(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(
            "no_catalog", f"catalog {path}: {error}", "write the file, or name another with --catalog"
        ) from error


def _accept(parsed: ParsedCatalog) -> Catalog:
    for rejection in parsed.rejected:
        _log.error("catalog, line %d: %s: %s", rejection.line, rejection.where, rejection.reason)
    _log.info("catalog: %d models, %d entries rejected", len(parsed.catalog.models), len(parsed.rejected))
    return parsed.catalog


async def _beat(board: Board) -> None:
    while True:
        board.beat()
        await asyncio.sleep(_HEARTBEAT_S)


async def _look_at_leases(scheduler: Scheduler) -> None:
    while True:
        await scheduler.look_at_leases()
        scheduler.wake()
        await asyncio.sleep(_LEASES_S)


@asynccontextmanager
async def _doors(config: Config, layout: Layout, daemon: Daemon) -> AsyncIterator[None]:
    """Open the TCP port for reads and the socket for commands."""
    runners = [web.AppRunner(app, access_log=None) for app in (reads(daemon), control(daemon))]
    try:
        for runner in runners:
            await runner.setup()
        host, port = config.listen
        tcp = web.TCPSite(runners[0], host, port)
        layout.socket.unlink(missing_ok=True)
        unix = web.UnixSite(runners[1], str(layout.socket))
        try:
            await tcp.start()
            await unix.start()
            layout.socket.chmod(0o600)
        except OSError as error:
            raise Permanent(
                "cannot_listen", f"{host}:{port} or {layout.socket}: {error}", "choose another --listen or --root"
            ) from error
        bound = runners[0].addresses[0]
        _log.info("listening on http://%s:%d", bound[0], bound[1])
        yield
    finally:
        for runner in runners:
            await runner.cleanup()
        layout.socket.unlink(missing_ok=True)


def _take_up(layout: Layout, board: Board, holdings: Holdings) -> list[ModelRef]:
    """Show what is here, and find what was on its way when the daemon last stopped; other status files go."""
    before = recovery.read_statuses(layout)
    for ref, digest in holdings.models.items():
        old = before.get(ref)
        if old is not None:
            board.begin(ref, State.QUEUED, old.source, None)
        board.ready(ref, digest, holdings.size(ref), old.pinned if old is not None else False)
    unfinished = [ref for ref, old in before.items() if ref not in holdings.models and old.state in _UNFINISHED]
    for ref in before:
        if ref not in holdings.models:
            board.adopt(ref, before[ref])
            if ref not in unfinished:
                board.drop(ref)
    return unfinished


def _open(client: HttpClient, uri: str) -> Source:
    return open_source(uri, client)


def _disk(root: Path) -> DiskSpace:
    found = os.statvfs(root)
    return DiskSpace(capacity=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)


def _lock(layout: Layout) -> int:
    """One daemon a root; the kernel drops the lock when it dies."""
    descriptor = os.open(layout.private, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise durable.refuse_root(
            f"{layout.root}: another daemon works here", "stop it, or give this one another --root"
        ) from error
    return descriptor
