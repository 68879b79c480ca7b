"""Keep the served models equal to the wanted ones: load at the start, swap when a new version's weights arrive.

Law: a served model stays until its replacement is loaded, verified, warmed and admitted; the swap happens between two
requests, and the old model's weights and lease are released after its last answer. A failure changes nothing but the
reported status. One model is loaded at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program.logs import about
from cached.contract.program.termination_log import explain_to_person, write_termination_log
from server.engine.engine import ThreadedEngine, call_in_thread
from server.lifecycle import loading
from server.lifecycle.admission import admit
from server.lifecycle.cold_start import ColdStart
from server.lifecycle.entries import ModelEntry, ResolvedEntry, ServeOptions, base_for, resolve_entries
from server.lifecycle.metrics import ModelMetrics, ServerMetrics
from server.lifecycle.readiness import Ready, ServerReadiness
from server.lifecycle.registry import (
    Card,
    ModelRegistry,
    PendingVersion,
    Served,
    ServedAdapter,
    ServedClassifier,
    ServedEncoder,
    ServedText,
)
from server.lifecycle.snapshot import HeldFolder, hold_verified
from server.weights.host.readahead import ReadAhead

if TYPE_CHECKING:
    from server.lifecycle.loading import Model

_LOG = logging.getLogger("holdfast.serve")
_POLL_EVERY_S = 0.5
_BACKOFF_S = (30.0, 900.0)  # the first and the longest; doubled each time
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Attached:
    """An adapter in service."""

    resolved: ResolvedEntry
    folder: HeldFolder
    served: ServedAdapter


@dataclass(slots=True)
class _Base:
    """A model in service, and its adapters by name."""

    resolved: ResolvedEntry
    folder: HeldFolder
    served: ServedEncoder | ServedClassifier | ServedText
    model: Model
    adapters: dict[str, _Attached] = field(default_factory=dict)


@dataclass(slots=True)
class _Retired:
    """Models out of service, to be released with their lease after their last answer."""

    served: list[Served]
    folder: HeldFolder


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an entry is not in service, and when its load is retried (`retry_at`, monotonic seconds)."""

    resolved: ResolvedEntry
    error: HoldfastError
    wait_s: float
    retry_at: float


class ModelManager:
    """The models of one server. Reads the weights of `held` ahead from its construction on."""

    def __init__(
        self,
        settings: ServeOptions,
        held: dict[str, HeldFolder],
        registry: ModelRegistry,
        readiness: ServerReadiness,
        metrics: ServerMetrics,
        application: Callable[[ModelRegistry], web.Application],
        cold_start: ColdStart,
    ) -> None:
        """`held`: leases that are already taken, by entry name. `application` makes the API for golden predictions."""
        self._settings = settings
        self._held = held
        self._registry = registry
        self._readiness = readiness
        self._metrics = metrics
        self._application = application
        self._cold_start = cold_start
        self._ahead = ReadAhead([folder.snapshot.path for folder in held.values()])
        self._device = ""  # selected by `start`
        self._bases: dict[str, _Base] = {}
        self._failures: dict[str, _Failure] = {}
        self._retired: list[_Retired] = []
        self._absences: dict[str, str] = {}  # by entry name: the kind that is in the log

    async def start(self) -> None:
        """Load every wanted model; raises `HoldfastError`. Waits for the weights that a followed file names."""
        self._device = await self._step("device", "device", partial(loading.select_device, self._settings.device))
        self._readiness.device = self._device
        await self._step("import", "import", partial(loading.prepare, self._metrics.load.record))
        entries = await self._resolve()
        while missing := [one.absence for one in entries if one.absence is not None]:
            self._readiness.wait_for("; ".join(absence.text for absence in missing))
            await asyncio.sleep(_POLL_EVERY_S)
            entries = await self._resolve()
        await self._reconcile(entries)
        while self._failures:
            failure = next(iter(self._failures.values()))
            if failure.error.code != "golden_mismatch":
                raise failure.error
            # A restart would only load the same model again: stay up, report the reason, and wait for a replacement.
            _LOG.error("not ready: %s", failure.error)
            self._readiness.reject(f"{failure.resolved.entry.name}: {failure.error}")
            await self._write_termination_log(explain_to_person(failure.error))
            while failure.resolved in entries and time.monotonic() < failure.retry_at:
                await asyncio.sleep(_POLL_EVERY_S)
                entries = await self._resolve()
            await self._reconcile(entries)
            await self._write_termination_log("")

    async def _write_termination_log(self, text: str) -> None:
        write = partial(write_termination_log, self._settings.termination_log, text, "holdfast serve")
        await call_in_thread("termination_log", write)

    async def swap_models(self, group: asyncio.TaskGroup) -> None:
        """Swap models as the wanted ones change; never returns."""
        last_error = ""
        while True:
            await asyncio.sleep(_POLL_EVERY_S)
            try:
                entries = await self._resolve()
                last_error = ""
            except HoldfastError as error:
                if str(error) != last_error:
                    _LOG.error("the wanted models cannot be read; the served set stays as it is: %s", error)
                last_error = str(error)
                continue
            await self._reconcile(entries)
            while self._retired:
                group.create_task(self._retire(self._retired.pop()))

    async def _resolve(self) -> list[ResolvedEntry]:
        bases = self._bases.values()
        folders = [base.folder for base in bases]
        folders += [attached.folder for base in bases for attached in base.adapters.values()]

        def follow_and_resolve() -> list[ResolvedEntry]:
            for folder in folders:
                folder.follow()
            return resolve_entries(self._settings)

        entries = await call_in_thread("resolve", follow_and_resolve)
        self._log_absences(entries)
        return entries

    def _log_absences(self, entries: list[ResolvedEntry]) -> None:
        """Log what is waited for, once for each thing to know about it."""
        absences = {one.entry.name: one.absence for one in entries if one.absence is not None}
        for name, absence in absences.items():
            if self._absences.get(name) != absence.kind:
                entry = next(one.entry for one in entries if one.entry.name == name)
                _LOG.info("%s waits for %s", name, absence.text, extra=about(entry))
        self._absences = {name: absence.kind for name, absence in absences.items()}

    async def _reconcile(self, entries: list[ResolvedEntry]) -> None:
        """Load new models, then their adapters, and remove what is no longer wanted."""
        self._remove_unwanted(entries)
        adapters = [one for one in entries if one.is_adapter]
        models = [one for one in entries if one not in adapters]
        for one in models:
            await self._try_load(one, partial(self._load_model, one))
        for one in adapters:
            await self._try_load(one, partial(self._load_adapter, one, [model.entry for model in models]))

    async def _try_load(self, resolved: ResolvedEntry, load: Callable[[], Coroutine[None, None, None]]) -> None:
        name, current = resolved.entry.name, self._find_current(resolved.entry.name)
        failure = self._failures.get(name)
        if current is not None and current.resolved == resolved:
            self._registry.pending.pop(name, None)
        elif resolved.absence is not None:
            self._registry.pending[name] = PendingVersion(resolved.version, "waiting", f"for {resolved.absence.text}")
        elif failure is None or failure.resolved != resolved or time.monotonic() >= failure.retry_at:
            self._registry.pending[name] = PendingVersion(resolved.version, "loading", None)
            started = time.monotonic()
            try:
                await load()
            except Exception as error:  # noqa: BLE001 no error of a load may end the served models
                self._mark_failed(resolved, error)
                await call_in_thread("clean_up", loading.clean_up)
            else:
                self._failures = {}  # of others too: what they lacked may be loaded now
                self._registry.pending.pop(name, None)
                self._count_swap(name, "done")
                _LOG.info("serving %s (%s) after %.2f s", name, resolved.entry, time.monotonic() - started)

    def _mark_failed(self, resolved: ResolvedEntry, error: Exception) -> None:
        if not isinstance(error, HoldfastError):
            _LOG.error("%s cannot be served", resolved.entry, exc_info=error)
            text = f"{resolved.entry}: {type(error).__name__}: {error}"
            error = Permanent("load_failed", text, "see the traceback above")
        name, before = resolved.entry.name, self._failures.get(resolved.entry.name)
        repeated = before is not None and before.resolved == resolved
        # Without its frames, which hold a partly loaded model.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        wait_s = min(before.wait_s * 2, _BACKOFF_S[1]) if before and repeated else _BACKOFF_S[0]
        self._failures[name] = _Failure(resolved, error, wait_s, time.monotonic() + wait_s)
        self._registry.pending[name] = PendingVersion(resolved.version, "failed", str(error))
        self._count_swap(name, "failed")
        if isinstance(self._readiness.state, Ready):
            _LOG.error("%s (%s) cannot be served, tried again in %.0f s: %s", name, resolved.entry, wait_s, error)

    def _count_swap(self, name: str, result: str) -> None:
        if isinstance(self._readiness.state, Ready):
            self._metrics.model(name).count_swap(result)

    async def _load_model(self, resolved: ResolvedEntry) -> None:
        entry, settings = resolved.entry, self._settings
        metrics = self._metrics.model(entry.name)
        with ExitStack() as undo:
            folder = await self._hold(entry)
            undo.callback(folder.close)
            snapshot = folder.snapshot
            self._ahead.leave(snapshot.path)
            load = partial(loading.load, snapshot, self._device, settings.dtype, settings.limits, metrics)
            model = await self._step(f"load {entry.name}", "load", load, entry.name)
            warm_up = partial(loading.warm_up, snapshot, model)
            await self._step(f"warm up {entry.name}", "warm_up", warm_up, entry.name)
            card = Card(entry.name, snapshot, model.about, int(time.time()))
            served = _serve(card, model, settings.limits.queue, metrics)
            undo.callback(served.close)
            with self._cold_start.step("golden", entry.name):
                await admit(served, self._settings.golden, self._device, self._application)
            before = self._bases.get(entry.name)
            base = _Base(resolved, folder, served, model)
            for attached in before.adapters.values() if before is not None else ():
                # The adapters in service move to the new base; if resolved fails, the old base stays.
                name = attached.resolved.entry.name
                base.adapters[name] = await self._attach(attached.resolved, attached.folder, base)
            undo.pop_all()
        # No await from here to the end: a request sees the old models or the new ones, never both.
        self._retire_current(entry.name)
        self._bases[entry.name] = base
        for new in (base.served, *(attached.served for attached in base.adapters.values())):
            self._registry.put(new)
        del before, model, load
        await self._share_memory()

    async def _load_adapter(self, resolved: ResolvedEntry, models: list[ModelEntry]) -> None:
        from server.engine.lora import read_base

        with ExitStack() as undo:
            folder = await self._hold(resolved.entry)
            undo.callback(folder.close)
            named = await call_in_thread("adapter", partial(read_base, folder.snapshot.path))
            base = self._bases.get(base_for(resolved.entry, named, models))
            if base is None:
                raise Permanent("adapter_base", f"{resolved.entry.name}: its base is not in service", "see its error")
            attached = await self._attach(resolved, folder, base)
            undo.pop_all()
        self._retire_current(resolved.entry.name)
        base.adapters[resolved.entry.name] = attached
        self._registry.put(attached.served)

    async def _attach(self, resolved: ResolvedEntry, folder: HeldFolder, base: _Base) -> _Attached:
        name, snapshot = resolved.entry.name, folder.snapshot
        load = partial(loading.load_adapter, snapshot, base.model)
        adapter = await self._step(f"load {name}", "adapter", load, name)
        about = replace(base.served.card.about, weight_bytes=adapter.weight_bytes)
        card = Card(name, snapshot, about, int(time.time()), base.served.card.name)
        assert isinstance(base.served, ServedText)
        served = ServedAdapter(card, base.served, adapter, self._metrics.model(name))
        with self._cold_start.step("golden", name):
            await admit(served, self._settings.golden, self._device, self._application)
        return _Attached(resolved, folder, served)

    async def _hold(self, entry: ModelEntry) -> HeldFolder:
        """Return the lease of an entry's snapshot: taken before the start, or new and verified as by the gate."""
        held = self._held.pop(entry.name, None)
        if held is not None:
            return held
        return await call_in_thread("hold", partial(hold_verified, entry.path, entry.pin))

    async def _step(self, shown: str, stage: str, function: Callable[[], ResultT], model: str = "") -> ResultT:
        """Run one long call in a thread, while HTTP is answered."""
        self._readiness.set_stage(shown)
        with self._metrics.stage(stage), self._cold_start.step(stage.replace("_", "-"), model):
            return await call_in_thread(stage, function)

    def _find_current(self, name: str) -> _Base | _Attached | None:
        adapters = (base.adapters[name] for base in self._bases.values() if name in base.adapters)
        return self._bases.get(name) or next(adapters, None)

    def _remove_unwanted(self, entries: list[ResolvedEntry]) -> None:
        """Remove models that are not wanted, or are now wanted as an adapter instead of a model, or the reverse."""
        wanted = {one.entry.name for one in entries}
        self._failures = {name: failure for name, failure in self._failures.items() if name in wanted}
        self._registry.pending = {name: pending for name, pending in self._registry.pending.items() if name in wanted}
        adapters = {one.entry.name for one in entries if one.is_adapter}
        models = {one.entry.name for one in entries if one.target is not None} - adapters
        for name in list(self._bases):
            if name not in wanted or name in adapters:
                for gone in (*self._bases[name].adapters, name):
                    self._remove(gone)
        for base in self._bases.values():
            for name in list(base.adapters):
                if name not in wanted or name in models:
                    self._remove(name)

    def _remove(self, name: str) -> None:
        self._registry.remove(name)
        self._retire_current(name)
        _LOG.info("no longer serving %s", name, extra=about(model=name))

    def _retire_current(self, name: str) -> None:
        """Move the model of this name, if any, to the retired ones. A base's adapters are drained with it, and their
        leases stay with the adapters of the new base."""
        base = self._bases.pop(name, None)
        if base is not None:
            adapters = [attached.served for attached in base.adapters.values()]
            self._retired.append(_Retired([*adapters, base.served], base.folder))
            return
        for base in self._bases.values():
            attached = base.adapters.pop(name, None)
            if attached is not None:
                self._retired.append(_Retired([attached.served], attached.folder))

    async def _retire(self, retired: _Retired) -> None:
        for served in retired.served:
            await served.requests.wait_drained()
        for served in retired.served:
            served.close()
            if not isinstance(served, ServedAdapter):
                await call_in_thread("join", served.engine.join)
        retired.served.clear()
        del served
        await call_in_thread("clean_up", loading.clean_up)
        retired.folder.close()
        await self._share_memory()

    async def _share_memory(self) -> None:
        """Divide the free memory between the models, and update the contexts that clients see."""
        await call_in_thread("share", partial(loading.share_memory, [base.model for base in self._bases.values()]))
        for base in self._bases.values():
            about = base.model.about
            base.served.card = replace(base.served.card, about=about)
            for attached in base.adapters.values():
                card = attached.served.card
                attached.served.card = replace(card, about=replace(about, weight_bytes=card.about.weight_bytes))


def _serve(
    card: Card, model: Model, queue_limit: int, metrics: ModelMetrics
) -> ServedEncoder | ServedClassifier | ServedText:
    if loading.is_encoder(model):
        return ServedEncoder(card, ThreadedEngine(model, queue_limit, metrics), metrics)
    if loading.is_classifier(model):
        return ServedClassifier(card, ThreadedEngine(model, queue_limit, metrics), metrics)
    assert loading.is_generator(model)
    return ServedText(card, ThreadedEngine(model, queue_limit, metrics), metrics)
