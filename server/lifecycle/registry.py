"""The served models: each with an engine, metrics and a drain of its own.

Law: uses engines by their interface; no HTTP, no torch. A model is built, put, drained and closed without any effect on
the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic

from server.engine.engine import EventT, RequestT
from server.engine.protocol import InferenceEngine, PreparedT, Submission
from server.engine.types import (
    About,
    Activation,
    Continuation,
    Embedded,
    EmbeddingInputs,
    EmbeddingRequest,
    EncodedText,
    GenerationEvent,
    GenerationRequest,
    InvalidRequest,
    ModelKind,
    Sampling,
    Scored,
    ScoringInputs,
    ScoringRequest,
)
from server.lifecycle.metrics import ModelMetrics
from server.lifecycle.readiness import RequestsInFlight
from server.lifecycle.snapshot import Snapshot

if TYPE_CHECKING:
    from server.engine.lora import Adapter
    from server.lifecycle.admission import GoldenComparison

_ONE_TEXT = EmbeddingInputs((EncodedText((0,)),))
_ONE_TOKEN = Continuation(((0,),), (1,), Sampling(temperature=0.0), ())
_ONE_INPUT = ScoringInputs(({"input_ids": [0], "attention_mask": [1]},), Activation.NONE)


@dataclass(frozen=True, slots=True)
class Card:
    """A model as clients see it, under its `name`."""

    name: str
    snapshot: Snapshot
    about: About
    created: int
    parent: str | None = None  # of an adapter: its base's name

    @property
    def names(self) -> frozenset[str]:
        """The names that a request may use: its name, its name in the cache, and that with the version."""
        return frozenset({self.name, self.snapshot.name, f"{self.snapshot.name}@{self.snapshot.version}"})


@dataclass(frozen=True, slots=True)
class PendingVersion:
    """A version to be served next; `error` says why it is not served yet."""

    version: str | None
    state: str
    error: str | None


class _InService:
    """A model or adapter in service, and its requests, which a removal waits for. `golden`: how it agrees with its
    golden predictions; None where it has none, or they were not replayed."""

    golden: GoldenComparison | None = None

    def __init__(self, card: Card, metrics: ModelMetrics) -> None:
        self.card = card
        self.metrics = metrics
        self.requests = RequestsInFlight()

    def announce(self) -> None:
        """Publish this model in the metrics of its name."""
        self.metrics.describe(self.card.snapshot, self.card.about)
        self.metrics.set_golden(self.golden)


class _Served(_InService, Generic[RequestT, PreparedT, EventT]):
    """A model in service, loaded and warmed, over any engine."""

    def __init__(self, card: Card, engine: InferenceEngine[RequestT, PreparedT, EventT], metrics: ModelMetrics) -> None:
        super().__init__(card, metrics)
        self.engine = engine

    def announce(self) -> None:
        """Publish this model and its queue in the metrics of its name."""
        super().announce()
        self.metrics.watch_queue(self.engine.capacity)
        self.metrics.set_healthy(True)

    @property
    def alive_at(self) -> float:
        """The monotonic time in seconds of the last step or token that succeeded."""
        return max(self.engine.alive_at, self.metrics.alive_at)

    @asynccontextmanager
    async def submit(self, request: RequestT) -> AsyncIterator[Submission[PreparedT, EventT]]:
        """Submit a request, counted for as long as the block runs; see `InferenceEngine.submit`."""
        with self.requests.track():
            async with self.engine.submit(request) as submission:
                yield submission

    def close(self) -> None:
        """Cancel the requests in the engine and release the model."""
        self.engine.close()


class ServedEncoder(_Served[EmbeddingRequest, EmbeddingInputs, Embedded]):
    """A model of `/v1/embeddings`."""

    async def run_dummy_inference(self) -> None:
        """Embed one token; raises the error of the model."""
        with self.engine.submit_prepared(_ONE_TEXT) as submission:
            await anext(submission.stream())


class ServedClassifier(_Served[ScoringRequest, ScoringInputs, Scored]):
    """A model of `/v1/rerank` and `/v1/classify`."""

    async def run_dummy_inference(self) -> None:
        """Score one token; raises the error of the model."""
        with self.engine.submit_prepared(_ONE_INPUT) as submission:
            await anext(submission.stream())


class ServedText(_Served[GenerationRequest, Continuation, GenerationEvent]):
    """A model of `/v1/completions` and `/v1/chat/completions`."""

    async def run_dummy_inference(self, adapter: Adapter | None = None) -> None:
        """Generate one token; raises the error of the model."""
        with self.engine.submit_prepared(replace(_ONE_TOKEN, adapter=adapter)) as submission:
            await anext(submission.stream())


class ServedAdapter(_InService):
    """An adapter in service: its requests run in its base's batches, on its base's weights."""

    def __init__(self, card: Card, base: ServedText, adapter: Adapter, metrics: ModelMetrics) -> None:
        super().__init__(card, metrics)
        self._adapter = adapter
        self._base = base

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[Submission[Continuation, GenerationEvent]]:
        """Submit a request that runs with the adapter, counted here and as one of the base's."""
        adapted = replace(request, options=replace(request.options, adapter=self._adapter))
        with self.requests.track():
            async with self._base.submit(adapted) as submission:
                yield submission

    def close(self) -> None:
        """Do nothing: the base's engine ran its requests, and all have ended."""

    async def run_dummy_inference(self) -> None:
        """Generate one token with the adapter; raises the error of the model."""
        await self._base.run_dummy_inference(self._adapter)


Generating = ServedText | ServedAdapter
Served = ServedEncoder | ServedClassifier | Generating
_ANSWERED_AT = {
    ModelKind.EMBEDDINGS: "/v1/embeddings",
    ModelKind.COMPLETIONS: "/v1/chat/completions and /v1/completions",
    ModelKind.CLASSIFICATION: "/v1/rerank and /v1/classify",
}


class ModelRegistry:
    """The models in service, by what clients call them."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self.pending: dict[str, PendingVersion] = {}  # by name

    @classmethod
    def of_one(cls, served: Served) -> ModelRegistry:
        """Return a private registry, to replay golden predictions before the model is in service."""
        found = cls()
        found._served[served.card.name] = served
        return found

    def put(self, served: Served) -> Served | None:
        """Put a model into service; return the one that it replaces, to be drained and closed."""
        before = self._served.get(served.card.name)
        self._served[served.card.name] = served
        served.announce()
        return before

    def remove(self, name: str) -> Served | None:
        """Take a model out of service; return it, to be drained and closed."""
        removed = self._served.pop(name, None)
        if removed is not None:
            removed.metrics.forget()
        return removed

    def list_models(self) -> tuple[Served, ...]:
        return tuple(self._served.values())

    def find(self, model: str | None) -> Served:
        """Return the model that a request names, the only one where it names none. Raises `InvalidRequest`."""
        if model is None:
            if len(self._served) == 1:
                return next(iter(self._served.values()))
            raise InvalidRequest(f"model: expected one of {self._shown()}", "model")
        exact = self._served.get(model)
        found = [exact] if exact else [served for served in self._served.values() if model in served.card.names]
        if len(found) != 1:
            raise InvalidRequest(
                f"the model {model[:200]!r} is not served here, {self._shown()} is", "model", "model_not_found"
            )
        return found[0]

    def find_encoder(self, model: str | None) -> ServedEncoder:
        """Return the model of an embedding request; raises `InvalidRequest`."""
        served = self.find(model)
        if isinstance(served, ServedEncoder):
            return served
        raise _wrong_kind(served, "embeddings")

    def find_classifier(self, model: str | None) -> ServedClassifier:
        """Return the model of a request for scores; raises `InvalidRequest`."""
        served = self.find(model)
        if isinstance(served, ServedClassifier):
            return served
        raise _wrong_kind(served, "scores")

    def find_generator(self, model: str | None) -> Generating:
        """Return the model of a completion or a chat; raises `InvalidRequest`."""
        served = self.find(model)
        if isinstance(served, ServedText | ServedAdapter):
            return served
        raise _wrong_kind(served, "text")

    def _shown(self) -> str:
        return ", ".join(map(repr, sorted(self._served))) or "none"


def _wrong_kind(served: Served, wanted: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model {served.card.name!r} gives no {wanted}, it answers {_ANSWERED_AT[served.card.about.kind]}",
        "model",
        "unsupported_operation",
    )
