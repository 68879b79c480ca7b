"""Wire the daemon together and run it: the only module that knows every part.

Law: parts get each other here and nowhere else. SIGTERM stops the fetches, records what is durable, and ends with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web

from cached.blocking import Blocking
from cached.board import Board
from cached.catalog import EMPTY_CATALOG, Catalog, ParsedCatalog, parse_catalog
from cached.config import Config, parse_config
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.contract.options import EXIT_DONE, EXIT_FAILED
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State
from cached.control import control
from cached.daemon import Daemon
from cached.flights import Flights
from cached.holdings import Holdings
from cached.http import reads
from cached.janitor import Janitor, NodeParts
from cached.kube.kubeconfig import find_cluster
from cached.kube.membership import Membership
from cached.ledger import DiskSpace, Ledger
from cached.scheduler import Parts, Scheduler
from cached.scrub import Scrub, ScrubParts
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.store import durable, recovery
from cached.surroundings import NoCluster, Surroundings
from cached.transfer import TransferParts, Transfers
from cached.watching import watched
from cached.wire.client import HttpClient
from cached.wire.settings import HttpSettings
from cached.workers import Workers, WorkerSettings

_log = logging.getLogger("holdfast")

_HEARTBEAT_S = 2.0  # the design asks for 5 at most
_TELL_S = 1.0
_LEASES_S = 10.0  # and for 15 at most here
_LOOK_S = 5.0  # where no watch tells of a new catalog
_SETTLE_S = 0.05  # a catalog is written in several steps
_SWITCH_S = 0.0005  # a thread that hashes gets the interpreter back soon: at Python's 5 ms it would wait more than work
_UNFINISHED = frozenset({State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})


def main(argv: Sequence[str]) -> int:
    """`holdfast daemon`."""
    config = parse_config(argv)
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it says at every start where it found credentials
    sys.setswitchinterval(_SWITCH_S)
    try:
        asyncio.run(_run(config))
    except HoldfastError as error:
        sys.stderr.write(f"holdfast daemon: {error}\n")
        return EXIT_FAILED
    return EXIT_DONE


async def _run(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    layout = Layout(config.root)
    recovery.prepare(layout)
    lock = _lock(layout)
    blocking = Blocking(4)
    try:
        await _work(config, layout, blocking, stop)
    finally:
        blocking.close()
        os.close(lock)


async def _work(config: Config, layout: Layout, blocking: Blocking, stop: asyncio.Event) -> None:
    """Recover what is there, make the parts, know each other, and run."""
    recovered = await blocking.run(recovery.recover, layout)
    board = Board(layout.public, config.node)
    holdings = Holdings(layout, recovered)
    ledger = Ledger(config.quota, partial(_disk, layout.root))
    ledger.set_held(sum(recovered.blobs.values()), sum(recovered.ingests.values()) + recovered.quarantined)
    around = _surroundings(config)
    node = NodeParts(layout, holdings, board, ledger, blocking, around)
    daemon = Daemon(node)
    client = HttpClient(HttpSettings(stall_window_s=config.stall_timeout_s))
    limits = WorkerSettings(config.connections, config.connections_per_origin, config.max_bandwidth)
    workers = Workers(layout, client, limits, daemon.counters)
    try:
        flights = Flights(layout, workers, ledger)
        janitor = Janitor(node)
        await janitor.discard(recovered.damaged)
        janitor.tell()
        fetching = TransferParts(layout, flights, board, janitor, blocking, daemon.counters)
        transfers = Transfers(fetching, partial(_open, client))
        parts = Parts(board, holdings, ledger, flights, transfers, janitor, daemon.counters, around)
        scheduler = Scheduler(parts, config.high_watermark, config.low_watermark)
        daemon.drive(scheduler, workers)
        scheduler.resume(_take_up(layout, board, holdings))
        scrub = Scrub(
            ScrubParts(layout, holdings, daemon.counters, lambda: workers.in_progress() > 0, scheduler.lost_blob),
            config.scrub_rate,
        )
        async with _doors(config.listen, layout, daemon):
            await _live(config, _Tasks(daemon, node, scheduler, scrub), stop)
    finally:
        await asyncio.to_thread(workers.stop)
        client.close()
        board.close()


@dataclass(frozen=True, slots=True)
class _Tasks:
    """What runs."""

    daemon: Daemon
    node: NodeParts
    scheduler: Scheduler
    scrub: Scrub


async def _live(config: Config, parts: _Tasks, stop: asyncio.Event) -> None:
    """Run every task until a signal asks to stop."""
    daemon, node, scheduler, scrub = parts.daemon, parts.node, parts.scheduler, parts.scrub
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(scheduler.run(), name="scheduler"),
            group.create_task(_follow_catalog(config.catalog, daemon, scheduler), name="catalog"),
            group.create_task(_beat(node.board), name="heartbeat"),
            group.create_task(_look_at_leases(scheduler), name="leases"),
            group.create_task(node.surroundings.run(scheduler.wake), name="cluster"),
            group.create_task(_tell_around(node), name="telling"),
        ]
        if config.scrub_rate > 0:
            tasks.append(group.create_task(scrub.run(), name="scrub"))
        await stop.wait()
        _log.info("stopping: what is under way is recorded and goes on at the next start")
        daemon.waits_for("stopping")
        for task in tasks:
            task.cancel()


async def _follow_catalog(path: Path, daemon: Daemon, scheduler: Scheduler) -> None:
    """Keep the catalog in force, reading it whenever its folder changes, and now and then in case nobody told."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    catalog, text, trouble = EMPTY_CATALOG, None, None
    with watched(path, partial(loop.call_soon_threadsafe, changed.set)):
        while True:
            changed.clear()
            try:
                found = await asyncio.to_thread(_read_catalog, path)
                if found != text:
                    text = found
                    catalog = _accept(await asyncio.to_thread(parse_catalog, text, catalog))
                    trouble = None
                    scheduler.use_catalog(catalog)
                    daemon.waits_for(None)
            except HoldfastError as error:
                if str(error) != trouble:
                    _log.error("%s", error)
                trouble = str(error)
                if catalog is EMPTY_CATALOG:
                    daemon.waits_for(f"no catalog: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
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


async def _tell_around(node: NodeParts) -> None:
    """Tell pods and people what is new, at once: a fetch may be over in less than any period. Each hears each thing
    once."""
    while True:
        node.board.news.clear()
        with contextlib.suppress(
            HoldfastError
        ):  # the root is gone: whoever works on it says so, and again when it is back
            use = node.ledger.use()
            node.surroundings.look(node.board.all(), use.used + use.dying, use.capacity)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TELL_S):
                await node.board.news.wait()


def _surroundings(config: Config) -> Surroundings:
    cluster = find_cluster(os.environ) if config.kube == "auto" else None
    if cluster is None:
        return NoCluster()
    _log.info("cluster: %s, as node %s", cluster.server, config.node)
    return Membership(cluster, config.node)


async def _look_at_leases(scheduler: Scheduler) -> None:
    while True:
        await scheduler.look_at_leases()
        scheduler.wake()
        await asyncio.sleep(_LEASES_S)


@contextlib.asynccontextmanager
async def _doors(listen: tuple[str, int], layout: Layout, daemon: Daemon) -> AsyncIterator[None]:
    """Open the TCP port for reads and the socket for commands."""
    runners = [web.AppRunner(app, access_log=None) for app in (reads(daemon), control(daemon))]
    # A deep root does not fit a Unix address (107 bytes); its folder, opened, has a short name.
    folder = os.open(layout.private, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for runner in runners:
            await runner.setup()
        layout.socket.unlink(missing_ok=True)
        try:
            await web.TCPSite(runners[0], *listen).start()
            await web.UnixSite(runners[1], f"/proc/self/fd/{folder}/{layout.socket.name}").start()
            layout.socket.chmod(0o600)
        except OSError as error:
            host, port = listen
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
        os.close(folder)


def _take_up(layout: Layout, board: Board, holdings: Holdings) -> dict[ModelRef, Digest | None]:
    """Show what is here, and find what was on its way when the daemon last stopped, with its pin; other status files
    go."""
    before = recovery.read_statuses(layout)
    unfinished: dict[ModelRef, Digest | None] = {}
    for ref, old in before.items():
        board.adopt(ref, old)
        if ref in holdings.models:
            continue
        if old.state in _UNFINISHED:
            unfinished[ref] = _pin_of(old)
            board.begin(ref, State.QUEUED, old.source, unfinished[ref])
        else:
            board.drop(ref)
    for ref, digest in holdings.models.items():
        board.ready(ref, digest, holdings.size(ref), ref in before and before[ref].pinned)
    board.sweep()
    return unfinished


def _pin_of(status: ModelStatus) -> Digest | None:
    try:
        return Digest.parse(status.digest) if status.pinned and status.digest else None
    except HoldfastError:
        return None


def _open(client: HttpClient, uri: str) -> Source:
    return open_source(uri, client)


def _disk(root: Path) -> DiskSpace:
    try:
        found = os.statvfs(root)
    except OSError as error:
        raise durable.disk_error(error, f"looking at {root}") from error
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
