"""`holdfast inject`: the mutating webhook that adds the gate to annotated pods. Wires its parts, and runs them.

Law: keeps no state that another replica would need. SIGTERM makes it unready first and stops listening last, so that an
API server that has not noticed yet still gets its answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from ssl import SSLContext

from aiohttp import web

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program import events
from cached.contract.program.logs import log_to_stderr
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.process import SignalThread
from sidecar.injector.catalog_view import CatalogView, read_catalog
from sidecar.injector.cluster.api import KubeApi, keep_up
from sidecar.injector.cluster.driver_nodes import DriverNodes
from sidecar.injector.cluster.pool_key import PoolKeyStore
from sidecar.injector.http import InjectorMetrics, probe_application
from sidecar.injector.https.certificate_store import CertificateStore
from sidecar.injector.https.context import ServingTls
from sidecar.injector.pod.delivery import Mode
from sidecar.injector.pod.patch import ClusterDefaults
from sidecar.injector.settings import InjectorOptions, parse
from sidecar.injector.webhook import Reviewer, review_application

_log = logging.getLogger("holdfast")
# Longer than the 90 s after which Go closes an idle connection: else a review may meet a connection just closed.
_KEEP_ALIVE_S = 120.0
_CLOSE_S = 2.0  # for answers in progress when the listeners close
_PATIENCE_S = 10.0  # for the whole shutdown except the drain
_POLL_S = 1.0


class Injector:
    """The parts of the injector, and its state."""

    def __init__(self, settings: InjectorOptions) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._tls = ServingTls()
        running = version("holdfast")
        self._driver_nodes = DriverNodes(KubeApi.in_cluster()) if settings.mode is Mode.AUTO else None
        self._reviewer = Reviewer(ClusterDefaults(settings.gate, settings.mode, running), self._list_driver_nodes)
        self._metrics = InjectorMetrics(running, lambda: self._tls.expires)

    def _why_not_ready(self) -> str | None:
        if self._stop.is_set():
            return "stopping"
        if self._driver_nodes is not None and not self._driver_nodes.is_settled:
            return "waiting for the first list of CSINode objects"
        return None if self._tls.certificate else "no certificate yet"

    def _list_driver_nodes(self) -> AbstractSet[str]:
        return frozenset() if self._driver_nodes is None else self._driver_nodes.names

    async def run(self, ending: SignalThread) -> None:
        """Answer until a signal asks to stop."""
        ending.set_handler(partial(asyncio.get_running_loop().call_soon_threadsafe, self._stop.set))
        settings = self._settings
        plain = probe_application(self._metrics, self._why_not_ready)
        secure = review_application(self._reviewer, self._metrics.count_review)
        async with _served(plain, settings.metrics_listen, None) as metrics:
            _log.info("health and metrics on http://%s", metrics)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep_certificate(), name="certificate")]
                if settings.pool_secret is not None:
                    pool_key = PoolKeyStore(KubeApi.in_cluster(), settings.pool_secret)
                    tasks.append(group.create_task(keep_up(pool_key.step, "the pool's key"), name="pool key"))
                if settings.catalog is not None:
                    tasks.append(group.create_task(self._follow_catalog(settings.catalog), name="catalog"))
                if self._driver_nodes is not None:
                    tasks.append(group.create_task(self._driver_nodes.run(), name="CSI nodes"))
                # Without a certificate every handshake is refused, and /readyz says why.
                async with _served(secure, settings.listen, self._tls.context) as address:
                    _log.info("reviews on https://%s/mutate", address)
                    await self._stop.wait()
                    _log.info("stopping: answering for %g s more", settings.drain_s)
                    await asyncio.sleep(settings.drain_s)
                for task in tasks:
                    task.cancel()

    async def _keep_certificate(self) -> None:
        where = self._settings.certificate
        if not isinstance(where, Path):
            store = CertificateStore(KubeApi.in_cluster(), where, self._tls, partial(datetime.now, UTC))
            await keep_up(store.step, "certificate")
            return
        certificate, key = where / "tls.crt", where / "tls.key"
        async for _ in _changes(certificate, key):
            try:
                if self._tls.set_certificate(*await asyncio.to_thread(_read_pair, certificate, key)):
                    _log.info("serving the certificate in %s", certificate)
            except HoldfastError as error:
                _log.error("%s: %s", where, error)

    async def _follow_catalog(self, path: Path) -> None:
        async for _ in _changes(path):
            try:
                self._reviewer.catalog = await asyncio.to_thread(_read_catalog, path)
            except HoldfastError as error:
                self._metrics.set_catalog_usable(usable=False)
                _log.error("%s: %s", path, error)
            else:
                self._metrics.set_catalog_usable(usable=True)
                _log.info("catalog: %d pinned versions", len(self._reviewer.catalog.pins))


def main(argv: Sequence[str]) -> int:
    """Run `holdfast inject`; return its exit code."""
    log = events.open_events("injector", argv)
    settings = parse(argv)
    log_to_stderr(settings.log_level, events=log)
    ending = SignalThread(settings.drain_s + _PATIENCE_S, partial(_log.warning, "%s: leaving at once"))
    ending.start()
    code = EXIT_DONE
    try:
        asyncio.run(Injector(settings).run(ending))
    except* HoldfastError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, HoldfastError)
        events.report_end("holdfast inject", error)
        code = EXIT_FAILED
    return code


async def _changes(*files: Path) -> AsyncIterator[None]:
    """Yield at once, and then whenever one of `files` (or the target of a symlink there) may have changed. No inotify:
    ConfigMaps and Secrets take the kubelet up to a minute, and a poll a second costs nothing and misses nothing."""
    before = None
    while True:
        now = [_signature(file) for file in files]
        if now != before:
            before = now
            yield
        await asyncio.sleep(_POLL_S)


def _signature(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _read_catalog(path: Path) -> CatalogView:
    try:
        return read_catalog(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent("no_catalog", f"cannot read the catalog: {error}", "mount the catalog's ConfigMap") from error


def _read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    try:
        return certificate.read_bytes(), key.read_bytes()
    except OSError as error:
        raise Permanent("no_certificate", f"{error.filename}: {error.strerror}", "mount the Secret there") from error


@asynccontextmanager
async def _served(app: web.Application, listen: tuple[str, int], tls: SSLContext | None) -> AsyncIterator[str]:
    """Listen while the block runs; yields `HOST:PORT` as bound, also for port 0."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=_KEEP_ALIVE_S, shutdown_timeout=_CLOSE_S)
    await runner.setup()
    try:
        host, port = listen
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            raise Permanent("cannot_listen", f"{host}:{port}: {error}", "choose another address") from error
        bound = runner.addresses[0]
        yield f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
    finally:
        await runner.cleanup()
