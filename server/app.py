"""`holdfast serve`: wires the server's packages.

Law: HTTP answers before any heavy import. A model is ready only when it is loaded, warmed and admitted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program import events, pod
from cached.contract.program.events import EventWriter
from cached.contract.program.limits import raise_open_files
from cached.contract.program.logs import LINE_WITH_NAME, log_to_stderr
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.termination_log import explain_to_person, write_termination_log
from cached.contract.program.tracing import Tracer, open_tracer
from server import options
from server.api import routes
from server.api.connections import ConnectionLimits
from server.api.listener import Listener
from server.api.probes import REHEARSAL_HEADER, Probes
from server.engine.engine import call_in_thread
from server.engine.kinds import refuse_unserved
from server.lifecycle import loading, user_app
from server.lifecycle.admission import judge, read_golden, replay
from server.lifecycle.cold_start import ColdStart
from server.lifecycle.entries import GoldenMode, ServeOptions, read_followed
from server.lifecycle.health import HealthMonitor
from server.lifecycle.hot_swap import ModelManager
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Draining, Lingering, Ready, ServerReadiness
from server.lifecycle.registry import ModelRegistry
from server.lifecycle.snapshot import HeldFolder, hold

_LOG = logging.getLogger("holdfast.serve")
_THREADS_END_WITHIN_S = 0.5
_LINGER_POLL_S = 0.05
_IDLE_CONNECTIONS = 1024  # beside those whose requests wait or run: some 20 KiB each
_OTHER_FILES = 128  # weights, devices, libraries, and what user code opens
_LEAST_CONNECTIONS = 16
_HEAD_S = 15.0
_BODY_S = 15.0
_ANSWER_S = 30.0
_IDLE_S = 3630.0  # longer than a proxy keeps a connection (Envoy: an hour): no request meets one that is being closed


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    log = events.open_events("server", argv)
    settings = options.parse(argv)
    if log is not None:
        log.add_constant(pod=pod.find_name() or "", node=pod.find_node() or "")
    log_to_stderr("INFO", line=LINE_WITH_NAME, events=log)
    code = EXIT_DONE
    tracer: Tracer | None = None
    try:
        tracer = open_tracer("server", settings.tracing, _pod_attributes())
        limits = _connection_limits(settings)
        with ExitStack() as leases:
            if settings.follow is not None:
                read_followed(settings.follow, settings.root)  # reports a mistake before any heavy work
            held = {entry.name: hold(entry.path, entry.pin) for entry in settings.models}
            for folder in held.values():
                leases.callback(folder.close)
            if settings.app is None:
                for folder in held.values():
                    refuse_unserved(folder.snapshot.path)  # before weights are read ahead, and before a GPU is used
            start = ColdStart(tracer, pod.find_uid())
            asyncio.run(_ServerRun(settings, held, limits, log, start).run())
    except* HoldfastError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, HoldfastError):
            events.report_end("holdfast serve", error)
            write_termination_log(settings.termination_log, explain_to_person(error), "holdfast serve")
        code = EXIT_FAILED
    finally:
        if tracer is not None:
            tracer.close()
    _leave_threads(code)
    return code


def _pod_attributes() -> dict[str, str | int | bool]:
    found = {"k8s.pod.uid": pod.find_uid(), "k8s.pod.name": pod.find_name(), "k8s.node.name": pod.find_node()}
    return {name: value for name, value in found.items() if value is not None}


def _connection_limits(settings: ServeOptions) -> ConnectionLimits:
    """Return the limits of the listener; raises `Permanent` (`few_files`)."""
    files = raise_open_files(_OTHER_FILES + _LEAST_CONNECTIONS)
    wanted = _IDLE_CONNECTIONS + settings.limits.queue + settings.limits.batch
    most = min(wanted, files - _OTHER_FILES)
    if most < wanted:
        _LOG.warning("the limit of open files is %d: at most %d connections", files, most)
    return ConnectionLimits(most, head_s=_HEAD_S, body_s=_BODY_S, answer_s=_ANSWER_S, idle_s=_IDLE_S)


class _ServerRun:
    """One run of the server, from the listening socket to the last answer."""

    def __init__(
        self,
        settings: ServeOptions,
        held: dict[str, HeldFolder],
        limits: ConnectionLimits,
        log: EventWriter | None,
        cold_start: ColdStart,
    ) -> None:
        self._settings = settings
        self._held = held
        self._limits = limits
        self._log = log
        self._cold_start = cold_start
        self._metrics = ServerMetrics()
        self._readiness = ServerReadiness(self._metrics)
        self._probes = Probes(self._readiness, self._metrics)
        self._registry = ModelRegistry()
        self._hurried = False  # by a second signal

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[signal.Signals] = loop.create_future()

        def stop(number: signal.Signals) -> None:
            if stopped.done():
                self._hurried = True
            else:
                stopped.set_result(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        async with Listener(self._probes, self._limits) as listener:
            host, port = self._settings.host, self._settings.port
            try:
                url = await listener.listen(host, port)
            except OSError as error:
                raise Permanent(
                    "no_address", f"cannot listen on {host}:{port}: {error.strerror}", "choose another with --listen"
                ) from error
            if self._log is None:
                sys.stdout.write(f"holdfast serve: listening on {url}\n")
                sys.stdout.flush()
            else:
                self._log.write("info", f"listening on {url}")
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(self._serve(listener, url))
                number = await stopped
                was_ready = isinstance(self._readiness.state, Ready)
                if was_ready and number == signal.SIGTERM and self._settings.drain_linger_s:  # not Ctrl-C
                    await self._linger(listener)
                await self._drain(listener)
                serving.cancel()

    async def _serve(self, listener: Listener, url: str) -> None:
        started = time.monotonic()
        if self._settings.app is not None:
            if await self._start_user_code(listener, url, self._settings.app):
                self._enter_ready(started)
            return
        private = partial(routes.private_application, limits=self._settings.limits)
        manager = ModelManager(
            self._settings, self._held, self._registry, self._readiness, self._metrics, private, self._cold_start
        )
        await manager.start()
        await listener.serve(routes.application(self._registry, self._settings.limits), cancel_when_gone=True)
        self._enter_ready(started)
        monitor = HealthMonitor(
            self._registry, self._readiness, self._settings.probe_interval_s, self._settings.probe_timeout_s
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.swap_models(group))
            group.create_task(monitor.watch())

    def _enter_ready(self, started: float) -> None:
        self._readiness.enter(Ready())
        self._cold_start.end()
        names = ", ".join(served.card.name for served in self._registry.list_models()) or self._settings.app
        _LOG.info("ready after %.2f s: %s", time.monotonic() - started, names)

    async def _start_user_code(self, listener: Listener, url: str, target: str) -> bool:
        """Build and serve the user's application; return whether it may be ready."""
        entry = self._settings.models[0]
        snapshot = self._held[entry.name].snapshot
        self._readiness.set_stage("device")
        select = partial(loading.select_device_for_user_code, self._settings.device)
        with self._metrics.stage("device"), self._cold_start.step("device"):
            device = await call_in_thread("device", select)
        self._readiness.device = device
        self._readiness.set_stage("app")
        with self._metrics.stage("app"), self._cold_start.step("app", entry.name):
            application = await user_app.build(target, snapshot.path, device)
            self._metrics.model(entry.name).describe(snapshot, None)
            await listener.serve(application, cancel_when_gone=False)
        golden = None if self._settings.golden is GoldenMode.OFF else read_golden(snapshot.path)
        if golden is None:
            return True
        self._readiness.set_stage("golden predictions")
        with self._cold_start.step("golden", entry.name):
            verdict = await replay(golden, url, entry.name, {REHEARSAL_HEADER: self._probes.rehearsal})
        self._metrics.model(entry.name).set_golden(verdict)
        try:
            await judge(golden, verdict, entry.name, self._settings.golden, device)
        except Permanent as error:
            _LOG.error("not ready: %s", error)
            self._readiness.reject(str(error))
            text, log = explain_to_person(error), self._settings.termination_log
            await call_in_thread("termination_log", partial(write_termination_log, log, text, "holdfast serve"))
            return False
        return True

    async def _linger(self, listener: Listener) -> None:
        """Go on working: load balancers send new connections for seconds, and a client that keeps its connection learns
        from an answer that it closes. Ends early where no client came for that long and none is connected, or at a
        second signal."""
        linger_s = self._settings.drain_linger_s
        self._readiness.enter(Lingering())
        _LOG.info(
            "stopping: %d connections, %d requests in flight; work goes on for up to %g s (--drain-linger)",
            len(listener.connections),
            self._readiness.in_flight.count,
            linger_s,
        )
        end = time.monotonic() + linger_s
        while True:
            now = time.monotonic()
            quiet = not len(listener.connections) and now - self._probes.worked_at >= linger_s
            if quiet or self._hurried or now >= end:
                return
            await asyncio.sleep(min(_LINGER_POLL_S, end - now))

    async def _drain(self, listener: Listener) -> None:
        self._readiness.enter(Draining())
        refused = self._probes.refused
        await listener.connections.close_idle()
        _LOG.info("stopping: no new requests, %d in flight", self._readiness.in_flight.count)
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._readiness.in_flight.wait_drained()
        except TimeoutError:
            _LOG.warning(
                "%d requests were cut off after %g s (--drain-timeout)",
                self._readiness.in_flight.count,
                self._settings.drain_timeout_s,
            )
        if refused := self._probes.refused - refused:
            _LOG.warning("%d requests were refused while stopping: give clients longer with --drain-linger", refused)
        for served in self._registry.list_models():
            served.close()


def _leave_threads(code: int) -> None:
    """End the process even while a thread is in an import or a load, which cannot be interrupted. A plain exit would
    finalize Python under it: native code that then takes the interpreter's lock aborts."""
    deadline = time.monotonic() + _THREADS_END_WITHIN_S
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
