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
from server.engine.engine import call_in_thread
from server.lifecycle import loading
from server.lifecycle.admission import Rules, admit
from server.lifecycle.discovery import ResolvedEntry, base_for, resolve_entries
from server.lifecycle.entries import ModelEntry
from server.lifecycle.metrics import ModelMetrics, ServerMetrics
from server.lifecycle.readiness import Ready, ServerReadiness
from server.lifecycle.registry import (
    Card,
    ModelRegistry,
    PendingVersion,
    Served,
    ServedAdapter,
    ServedEncoder,
    ServedGenerator,
    ServedText,
)
from server.lifecycle.settings import ServeOptions
from server.lifecycle.snapshot import HeldFolder, hold, verify
from server.weights.host.readahead import ReadAhead

if TYPE_CHECKING:
    from server.engine.encoder import Encoder
    from server.engine.generation.generator import TextGenerator

_LOG = logging.getLogger("holdfast.serve")
_POLL_EVERY_S = 0.5
_BACKOFF_S = (30.0, 900.0)  # backoff: the first and the longest; doubled each time
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Attached:
    """An adapter in service."""

    sighting: ResolvedEntry
    holding: HeldFolder
    served: ServedAdapter


@dataclass(slots=True)
class _Base:
    """A model in service, and its adapters by name."""

    sighting: ResolvedEntry
    holding: HeldFolder
    served: ServedEncoder | ServedText
    model: Encoder | TextGenerator
    adapters: dict[str, _Attached] = field(default_factory=dict)


@dataclass(slots=True)
class _Retired:
    """Models out of service, to be released after their last answer."""

    served: list[Served]
    holdings: list[HeldFolder]


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a sighting is not in service, and when its load is retried (`again_at`, monotonic seconds)."""

    sighting: ResolvedEntry
    error: HoldfastError
    wait_s: float
    retry_at: float


class ModelManager:
    """The models of one server."""

    def __init__(
        self,
        settings: ServeOptions,
        held: dict[str, HeldFolder],
        catalog: ModelRegistry,
        readiness: ServerReadiness,
        metrics: ServerMetrics,
        application: Callable[[ModelRegistry], web.Application],
    ) -> None:
        """`held`: leases that are already taken, by entry name. `application` makes the API for golden predictions."""
        self._settings = settings
        self._held = held
        self._catalog = catalog
        self._readiness = readiness
        self._metrics = metrics
        self._application = application
        self._device = ""
        self._ahead: ReadAhead | None = None
        self._bases: dict[str, _Base] = {}
        self._failures: dict[str, _Failure] = {}
        self._retired: list[_Retired] = []

    async def start(self) -> None:
        """Load every wanted model; raises `HoldfastError`. Waits for the weights that a followed file names."""
        self._ahead = ReadAhead([holding.snapshot.path for holding in self._held.values()])
        select = partial(loading.select_device, self._settings.device)
        self._device = await self._step("device", "device", select)
        self._readiness.device = self._device
        await self._step("import", "import", partial(loading.prepare, self._metrics.loaded))
        sightings = await self._resolve()
        while missing := [one for one in sightings if one.target is None]:
            self._readiness.progress(f"waiting for {missing[0].entry}")
            await asyncio.sleep(_POLL_EVERY_S)
            sightings = await self._resolve()
        await self._reconcile(sightings)
        while self._failures:
            failure = next(iter(self._failures.values()))
            if failure.error.code != "golden_mismatch":
                raise failure.error
            # A restart would only load the same model again: stay up, report the reason, and wait for a replacement.
            _LOG.error("not ready: %s", failure.error)
            while failure.sighting in sightings and time.monotonic() < failure.retry_at:
                self._readiness.progress(f"{failure.sighting.entry.name}: {failure.error}")
                await asyncio.sleep(_POLL_EVERY_S)
                sightings = await self._resolve()
            await self._reconcile(sightings)

    @property
    def _rules(self) -> Rules:
        return Rules(self._settings.golden, self._device, self._application)

    async def keep(self, group: asyncio.TaskGroup) -> None:
        """Swap models as the wanted ones change; never returns."""
        last_error = ""
        while True:
            await asyncio.sleep(_POLL_EVERY_S)
            try:
                sightings = await self._resolve()
                last_error = ""
            except HoldfastError as error:
                if str(error) != last_error:
                    _LOG.error("the wanted models cannot be read; the served set stays as it is: %s", error)
                last_error = str(error)
                continue
            await self._reconcile(sightings)
            while self._retired:
                group.create_task(self._retire(self._retired.pop()))

    async def _resolve(self) -> list[ResolvedEntry]:
        bases = self._bases.values()
        holdings = [base.holding for base in bases]
        holdings += [attached.holding for base in bases for attached in base.adapters.values()]

        def follow_and_resolve() -> list[ResolvedEntry]:
            for holding in holdings:
                holding.follow()
            return resolve_entries(self._settings)

        return await call_in_thread("look", follow_and_resolve)

    async def _reconcile(self, sightings: list[ResolvedEntry]) -> None:
        """Load new models, then their adapters, and remove what is no longer wanted."""
        self._remove_unwanted(sightings)
        adapters = [one for one in sightings if one.is_adapter]
        models = [one for one in sightings if one not in adapters]
        for one in models:
            await self._try_load(one, partial(self._load_model, one))
        for one in adapters:
            await self._try_load(one, partial(self._load_adapter, one, [model.entry for model in models]))

    async def _try_load(self, one: ResolvedEntry, load: Callable[[], Coroutine[None, None, None]]) -> None:
        name, current = one.entry.name, self._in_service(one.entry.name)
        failure = self._failures.get(name)
        if current is not None and current.sighting == one:
            self._catalog.coming.pop(name, None)
        elif one.target is None:
            self._catalog.coming[name] = PendingVersion(one.version, "waiting", None)
        elif failure is None or failure.sighting != one or time.monotonic() >= failure.retry_at:
            self._catalog.coming[name] = PendingVersion(one.version, "loading", None)
            started = time.monotonic()
            try:
                await load()
            except Exception as error:  # noqa: BLE001 no error of a load may end the served models
                self._failed(one, _as_holdfast_error(one, error))
                await call_in_thread("clean_up", loading.clean_up)
            else:
                self._failures = {}  # of others too: what they lacked may be loaded now
                self._catalog.coming.pop(name, None)
                self._count_swap(name, "done")
                _LOG.info("serving %s (%s) after %.2f s", name, one.entry, time.monotonic() - started)

    def _failed(self, one: ResolvedEntry, error: HoldfastError) -> None:
        name, before = one.entry.name, self._failures.get(one.entry.name)
        repeated = before is not None and before.sighting == one
        # Without its frames, which hold a partly loaded model.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        wait_s = min(before.wait_s * 2, _BACKOFF_S[1]) if before and repeated else _BACKOFF_S[0]
        self._failures[name] = _Failure(one, error, wait_s, time.monotonic() + wait_s)
        self._catalog.coming[name] = PendingVersion(one.version, "failed", str(error))
        self._count_swap(name, "failed")
        if isinstance(self._readiness.state, Ready):
            _LOG.error("%s (%s) cannot be served, tried again in %.0f s: %s", name, one.entry, wait_s, error)

    def _count_swap(self, name: str, result: str) -> None:
        if isinstance(self._readiness.state, Ready):
            self._metrics.model(name).swapped(result)

    async def _load_model(self, one: ResolvedEntry) -> None:
        entry, settings = one.entry, self._settings
        metrics = self._metrics.model(entry.name)
        with ExitStack() as undo:
            holding = await self._hold(entry)
            undo.callback(holding.close)
            snapshot = holding.snapshot
            if self._ahead is not None:
                self._ahead.leave(snapshot.path)
            load = partial(loading.load, snapshot, self._device, settings.dtype, settings.limits, metrics)
            model = await self._step(f"load {entry.name}", "load", load)
            await self._step(f"warm up {entry.name}", "warm_up", partial(loading.warm_up, snapshot, model))
            served = _served(Card(entry.name, snapshot, model.about, int(time.time())), model, settings, metrics)
            undo.callback(served.close)
            await admit(served, self._rules)
            before = self._bases.get(entry.name)
            base = _Base(one, holding, served, model)
            for attached in before.adapters.values() if before is not None else ():
                # The adapters in service move to the new base; if one fails, the old base stays.
                name = attached.sighting.entry.name
                base.adapters[name] = await self._attach(attached.sighting, attached.holding, base)
            undo.pop_all()
        # No await from here to the end: a request sees the old models or the new ones, never both.
        self._retire_current(entry.name)
        self._bases[entry.name] = base
        for new in (base.served, *(attached.served for attached in base.adapters.values())):
            self._catalog.put(new)
        del before, model, load
        await self._share_memory()

    async def _load_adapter(self, one: ResolvedEntry, models: list[ModelEntry]) -> None:
        with ExitStack() as undo:
            holding = await self._hold(one.entry)
            undo.callback(holding.close)
            says = await call_in_thread("adapter", partial(loading.base_of, holding.snapshot))
            base = self._bases.get(base_for(one.entry, says, models))
            if base is None:
                raise Permanent("adapter_base", f"{one.entry.name}: its base is not in service", "see its error")
            attached = await self._attach(one, holding, base)
            undo.pop_all()
        self._retire_current(one.entry.name)
        base.adapters[one.entry.name] = attached
        self._catalog.put(attached.served)

    async def _attach(self, one: ResolvedEntry, holding: HeldFolder, base: _Base) -> _Attached:
        name, snapshot = one.entry.name, holding.snapshot
        load = partial(loading.load_adapter, snapshot, base.model)
        adapter = await self._step(f"load {name}", "adapter", load)
        about = replace(base.served.card.about, weight_bytes=adapter.weight_bytes)
        card = Card(name, snapshot, about, int(time.time()), base.served.card.name)
        assert isinstance(base.served, ServedText)
        served = ServedAdapter(card, base.served, adapter, self._metrics.model(name))
        await admit(served, self._rules)
        return _Attached(one, holding, served)

    async def _hold(self, entry: ModelEntry) -> HeldFolder:
        """Return the lease of an entry's snapshot: taken before the start, or new and verified as by the gate."""
        held = self._held.pop(entry.name, None)
        if held is not None:
            return held
        holding = await call_in_thread("hold", partial(hold, entry.path, entry.pin))
        with ExitStack() as undo:
            undo.callback(holding.close)
            await call_in_thread("verify", partial(verify, holding.snapshot))
            undo.pop_all()
        return holding

    async def _step(self, shown: str, stage: str, function: Callable[[], ResultT]) -> ResultT:
        """Run one long call in a thread, while HTTP is answered."""
        self._readiness.progress(shown)
        with self._metrics.stage(stage):
            return await call_in_thread(stage, function)

    def _in_service(self, name: str) -> _Base | _Attached | None:
        found = self._bases.get(name)
        if found is not None:
            return found
        return next((base.adapters[name] for base in self._bases.values() if name in base.adapters), None)

    def _remove_unwanted(self, sightings: list[ResolvedEntry]) -> None:
        """Remove models that are not wanted, or are now wanted as an adapter instead of a model, or the reverse."""
        wanted = {one.entry.name for one in sightings}
        self._failures = {name: failure for name, failure in self._failures.items() if name in wanted}
        self._catalog.coming = {name: coming for name, coming in self._catalog.coming.items() if name in wanted}
        adapters = {one.entry.name for one in sightings if one.is_adapter}
        models = {one.entry.name for one in sightings if one.target is not None} - adapters
        for name in list(self._bases):
            if name not in wanted or name in adapters:
                for gone in (*self._bases[name].adapters, name):
                    self._remove(gone)
        for base in self._bases.values():
            for name in list(base.adapters):
                if name not in wanted or name in models:
                    self._remove(name)

    def _remove(self, name: str) -> None:
        self._catalog.remove(name)
        self._retire_current(name)
        _LOG.info("no longer serving %s", name)

    def _retire_current(self, name: str) -> None:
        """Move the model of this name, if any, to the retired ones. A base's adapters are drained with it, and their
        leases stay with the adapters of the new base."""
        base = self._bases.pop(name, None)
        if base is not None:
            adapters = [attached.served for attached in base.adapters.values()]
            self._retired.append(_Retired([*adapters, base.served], [base.holding]))
            return
        for base in self._bases.values():
            attached = base.adapters.pop(name, None)
            if attached is not None:
                self._retired.append(_Retired([attached.served], [attached.holding]))

    async def _retire(self, retired: _Retired) -> None:
        for served in retired.served:
            await served.wait_drained()
        for served in retired.served:
            served.close()
            if not isinstance(served, ServedAdapter):
                await call_in_thread("join", served.engine.join)
        retired.served.clear()
        del served
        await call_in_thread("clean_up", loading.clean_up)
        for holding in retired.holdings:
            holding.close()
        await self._share_memory()

    async def _share_memory(self) -> None:
        """Divide the free memory between the models, and update the contexts that clients see."""
        await call_in_thread("share", partial(loading.share, [base.model for base in self._bases.values()]))
        for base in self._bases.values():
            about = base.model.about
            base.served.card = replace(base.served.card, about=about)
            for attached in base.adapters.values():
                card = attached.served.card
                attached.served.card = replace(card, about=replace(about, weight_bytes=card.about.weight_bytes))


def _as_holdfast_error(one: ResolvedEntry, error: Exception) -> HoldfastError:
    if isinstance(error, HoldfastError):
        return error
    _LOG.error("%s cannot be served", one.entry, exc_info=error)
    return Permanent("load_failed", f"{one.entry}: {type(error).__name__}: {error}", "see the traceback above")


def _served(
    card: Card, model: Encoder | TextGenerator, settings: ServeOptions, metrics: ModelMetrics
) -> ServedEncoder | ServedGenerator:
    from server.engine.encoder import Encoder

    if isinstance(model, Encoder):
        return ServedEncoder(card, model, settings.limits.queue, metrics)
    return ServedGenerator(card, model, settings.limits.queue, metrics)
