"""One served model, and the few that a server has: each with an engine, numbers and a drain of its own.

Law: knows models by what they answer, not how; nothing here touches HTTP or torch. A model is built, joins, is
drained and closed without the others noticing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic

from server.engine.engine import Engine, EventT, Job, Model, PreparedT, RequestT
from server.engine.types import (
    About,
    Continuation,
    Embedded,
    EmbeddingRequest,
    GenerationEvent,
    GenerationRequest,
    InvalidRequest,
    Sampling,
)
from server.lifecycle.metrics import ModelMetrics
from server.lifecycle.snapshot import Snapshot

if TYPE_CHECKING:
    from server.engine.lora import Adapter
    from server.lifecycle.golden import Verdict

_SAY_SOMETHING = Continuation(((0,),), (1,), Sampling(temperature=0.0), ())
_EMBED_SOMETHING = ([0],)


@dataclass(frozen=True, slots=True)
class Card:
    """What clients are told of a model; `name` is what they call it."""

    name: str
    snapshot: Snapshot
    about: About
    created: int
    parent: str | None = None  # of an adapter: the name of the model that it is for

    @property
    def names(self) -> frozenset[str]:
        """All that it may be called: its name, its name in the cache, with the version too."""
        return frozenset({self.name, self.snapshot.name, f"{self.snapshot.name}@{self.snapshot.version}"})


@dataclass(frozen=True, slots=True)
class Coming:
    """A version that is to take a served one's place; `error` says why it does not yet."""

    version: str | None
    state: str
    error: str | None


class _Users:
    """Requests that are being answered, counted from their first byte of work to their answer's last."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def none(self) -> None:
        await self._idle.wait()


class _Served(Generic[RequestT, PreparedT, EventT]):
    """A loaded, warmed model in service; requests use it inside `with served.use()`.

    `golden`: how it answers its golden predictions; None where it has none, or nobody asked.
    """

    golden: Verdict | None = None

    def __init__(
        self, card: Card, model: Model[RequestT, PreparedT, EventT], queue_limit: int, metrics: ModelMetrics
    ) -> None:
        self.card = card
        self.metrics = metrics
        self.engine: Engine[RequestT, PreparedT, EventT] = Engine(model, queue_limit, metrics)
        self._users = _Users()

    def announce(self) -> None:
        """Say in the metrics what is served under this name now."""
        self.metrics.describe(self.card.snapshot, self.card.about)
        self.metrics.watch_queue(self.engine.load)
        self.metrics.healthy(True)
        self.metrics.agreed(self.golden)

    @property
    def alive_at(self) -> float:
        """When the model last did something well, on the monotonic clock."""
        return max(self.engine.alive_at, self.metrics.alive_at)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Count a request, from its first byte of work to its answer's last."""
        with self._users.one_more():
            yield

    async def drained(self) -> None:
        """Wait until no request uses it."""
        await self._users.none()

    def close(self) -> None:
        """Cut off what is still in it, and let go of the model."""
        self.engine.close()


class ServedEncoder(_Served[EmbeddingRequest, "tuple[list[int], ...]", Embedded]):
    """A model of `/v1/embeddings`."""

    async def try_it(self) -> None:
        """Embed a word; raises what the model does."""
        with self.engine.submitted_prepared(_EMBED_SOMETHING) as job:
            await anext(job.events())


class ServedGenerator(_Served[GenerationRequest, Continuation, GenerationEvent]):
    """A model of `/v1/completions` and `/v1/chat/completions`."""

    async def try_it(self) -> None:
        """Generate a token; raises what the model does."""
        with self.engine.submitted_prepared(_SAY_SOMETHING) as job:
            await anext(job.events())


class _Adapting:
    """A way into a model's engine that has every request run with an adapter."""

    def __init__(self, engine: Engine[GenerationRequest, Continuation, GenerationEvent], adapter: Adapter) -> None:
        self._engine = engine
        self._adapter = adapter

    @asynccontextmanager
    async def submitted(self, request: GenerationRequest) -> AsyncIterator[Job[Continuation, GenerationEvent]]:
        adapted = replace(request, wanted=replace(request.wanted, adapter=self._adapter))
        async with self._engine.submitted(adapted) as job:
            yield job


class ServedAdapter:
    """An adapter in service: requests for it run in its base's batches, on its base's weights."""

    golden: Verdict | None = None

    def __init__(self, card: Card, base: ServedGenerator, adapter: Adapter, metrics: ModelMetrics) -> None:
        self.card = card
        self.metrics = metrics
        self.engine = _Adapting(base.engine, adapter)
        self._adapter = adapter
        self._base = base
        self._users = _Users()

    def announce(self) -> None:
        """Say in the metrics what is served under this name now."""
        self.metrics.describe(self.card.snapshot, self.card.about)
        self.metrics.agreed(self.golden)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Count a request, here and as one of the base's."""
        with self._users.one_more(), self._base.use():
            yield

    async def drained(self) -> None:
        """Wait until no request uses it."""
        await self._users.none()

    def close(self) -> None:
        """Nothing of it runs by itself: its last request was in the base's engine."""

    async def try_it(self) -> None:
        """Generate a token; raises what the model does."""
        with self._base.engine.submitted_prepared(replace(_SAY_SOMETHING, adapter=self._adapter)) as job:
            await anext(job.events())


Generating = ServedGenerator | ServedAdapter
Served = ServedEncoder | Generating


class Catalog:
    """The models in service, by what clients call them."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self.coming: dict[str, Coming] = {}  # by the name they are to have

    @classmethod
    def of_one(cls, served: Served) -> Catalog:
        """A catalog that nobody is told of: to try a model before it is in service."""
        found = cls()
        found._served[served.card.name] = served
        return found

    def put(self, served: Served) -> Served | None:
        """Take a model into service; returns the one of that name it takes the place of, to be drained and closed."""
        before = self._served.get(served.card.name)
        self._served[served.card.name] = served
        served.announce()
        return before

    def remove(self, name: str) -> Served | None:
        """Take a model out of service; returns it, to be drained and closed."""
        removed = self._served.pop(name, None)
        if removed is not None:
            removed.metrics.forget()
        return removed

    def all(self) -> tuple[Served, ...]:
        return tuple(self._served.values())

    def find(self, model: str | None) -> Served:
        """The model a request is for; one that names none means the only one. Raises `InvalidRequest`."""
        if model is None:
            if len(self._served) == 1:
                return next(iter(self._served.values()))
            raise InvalidRequest(f"model: expected one of {self._shown()}", "model")
        exact = self._served.get(model)
        if exact is not None:
            return exact
        found = [served for served in self._served.values() if model in served.card.names]
        if len(found) != 1:
            raise InvalidRequest(
                f"the model {model[:200]!r} is not served here, {self._shown()} is", "model", "model_not_found"
            )
        return found[0]

    def encoder(self, model: str | None) -> ServedEncoder:
        """The model of an embedding request; raises `InvalidRequest`."""
        served = self.find(model)
        if isinstance(served, ServedEncoder):
            return served
        raise _wrong_kind(served, "/v1/chat/completions and /v1/completions", "embeddings")

    def generator(self, model: str | None) -> Generating:
        """The model of a completion or a chat; raises `InvalidRequest`."""
        served = self.find(model)
        if not isinstance(served, ServedEncoder):
            return served
        raise _wrong_kind(served, "/v1/embeddings", "text")

    def _shown(self) -> str:
        return ", ".join(map(repr, sorted(self._served))) or "none"


def _wrong_kind(served: Served, answers: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model {served.card.name!r} gives no {wanted}, it answers {answers}", "model", "unsupported_operation"
    )
