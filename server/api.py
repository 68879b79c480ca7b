"""The HTTP API over one loaded model: `/v1/models`, `/v1/embeddings`, `/v1/completions`.

Law: reads requests, submits them to the engine, writes answers; computes nothing. A client that goes away cancels
its work. Format: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from cached.contract.errors import HoldfastError, Transient
from server.events import About, Accepted, CompletionEvent, Delta, Embedded, Finished
from server.jobs import Engine, EventT, Job, RequestT
from server.metrics import Metrics
from server.operations import Handler
from server.options import Limits
from server.requests import CompletionRequest, EmbeddingRequest, InvalidRequest, parse_completion, parse_embeddings
from server.responses import (
    choice,
    embeddings_document,
    error_document,
    error_response,
    model_document,
    server_sent,
    usage,
)
from server.snapshot import Snapshot

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the stream back
}


@dataclass(frozen=True, slots=True)
class Card:
    """What clients are told of the model; `name` is what they call it."""

    name: str
    snapshot: Snapshot
    about: About
    created: int

    def check(self, model: str | None) -> None:
        """Raise `InvalidRequest` where a request is for another model. One that names none means this one."""
        known = {self.name, self.snapshot.name, f"{self.snapshot.name}@{self.snapshot.version}"}
        if model is not None and model not in known:
            raise InvalidRequest(
                f"the model {model[:200]!r} is not served here, {self.name!r} is", "model", "model_not_found"
            )


def embeddings_application(
    card: Card, engine: Engine[EmbeddingRequest, Embedded], limits: Limits, metrics: Metrics
) -> web.Application:
    """The API of an encoder."""
    application = _application(card, limits)
    application.router.add_post("/v1/embeddings", _Embeddings(card, engine, metrics).handle)
    application.router.add_post("/v1/completions", _wrong_kind(card, "/v1/embeddings"))
    return application


def completions_application(
    card: Card, engine: Engine[CompletionRequest, CompletionEvent], limits: Limits, metrics: Metrics
) -> web.Application:
    """The API of a causal language model."""
    application = _application(card, limits)
    application.router.add_post("/v1/completions", _Completions(card, engine, limits, metrics).handle)
    application.router.add_post("/v1/embeddings", _wrong_kind(card, "/v1/completions"))
    return application


def _application(card: Card, limits: Limits) -> web.Application:
    async def models(_request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [model_document(card.name, card.created, card.snapshot, card.about)]}
        )

    async def model(request: web.Request) -> web.Response:
        card.check(request.match_info["model"])
        return web.json_response(model_document(card.name, card.created, card.snapshot, card.about))

    application = web.Application(client_max_size=limits.body_bytes, middlewares=[_errors])
    application.router.add_get("/v1/models", models)
    application.router.add_get("/v1/models/{model:.+}", model)
    return application


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into OpenAI's shape."""
    try:
        return await handler(request)
    except InvalidRequest as error:
        status = 404 if error.code == "model_not_found" else 400
        return error_response(status, error.message, "invalid_request_error", param=error.param, code=error.code)
    except Transient as error:
        return error_response(429, str(error), "rate_limit_error", code=error.code, retry_after_s=error.retry_after_s)
    except HoldfastError as error:
        return error_response(500, error.message, "server_error", code=error.code)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = error_response(error.status, error.text or error.reason, "invalid_request_error")
        response.headers.extend({k: v for k, v in error.headers.items() if k == "Allow"})
        return response


def _wrong_kind(card: Card, instead: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        raise InvalidRequest(
            f"the model {card.name!r} answers {instead}, not {request.path}", "model", "unsupported_operation"
        )

    return handle


@contextmanager
def _submitted(engine: Engine[RequestT, EventT], request: RequestT) -> Iterator[Job[RequestT, EventT]]:
    """A job for as long as somebody waits for it: leaving early, as a client that hangs up does, cancels it."""
    job = engine.submit(request)
    try:
        yield job
    finally:
        job.cancel()


class _Embeddings:
    def __init__(self, card: Card, engine: Engine[EmbeddingRequest, Embedded], metrics: Metrics) -> None:
        self._card = card
        self._engine = engine
        self._metrics = metrics

    async def handle(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_embeddings(await request.read())
        self._card.check(wanted.model)
        with _submitted(self._engine, wanted) as job:
            async with aclosing(job.events()) as events:
                embedded = await anext(events)
        self._metrics.count_tokens("prompt", embedded.prompt_tokens)
        return web.json_response(embeddings_document(self._card.name, embedded, wanted.as_base64))


class _Completions:
    def __init__(
        self, card: Card, engine: Engine[CompletionRequest, CompletionEvent], limits: Limits, metrics: Metrics
    ) -> None:
        self._card = card
        self._engine = engine
        self._limits = limits
        self._metrics = metrics

    async def handle(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_completion(await request.read(), self._limits.max_tokens)
        self._card.check(wanted.model)
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._card.name,
        }
        with _submitted(self._engine, wanted) as job:
            async with aclosing(job.events()) as events:
                accepted = await anext(events)  # refused requests raise here, before anything was sent
                assert isinstance(accepted, Accepted)
                self._metrics.count_tokens("prompt", accepted.prompt_tokens)
                if wanted.stream:
                    return await self._stream(request, wanted, head, accepted, events)
                return await self._whole(wanted, head, accepted, events)

    async def _whole(
        self,
        wanted: CompletionRequest,
        head: dict[str, Any],
        accepted: Accepted,
        events: AsyncIterator[CompletionEvent],
    ) -> web.Response:
        texts = [""] * len(wanted.prompts)
        reasons = [""] * len(wanted.prompts)
        tokens = 0
        async for event in events:
            match event:
                case Delta(index, text):
                    texts[index] += text
                case Finished(index, reason, count):
                    reasons[index] = reason
                    tokens += count
                    self._metrics.count_tokens("completion", count)
        choices = [choice(index, text, reasons[index]) for index, text in enumerate(texts)]
        return web.json_response({**head, "choices": choices, "usage": usage(accepted.prompt_tokens, tokens)})

    async def _stream(
        self,
        request: web.Request,
        wanted: CompletionRequest,
        head: dict[str, Any],
        accepted: Accepted,
        events: AsyncIterator[CompletionEvent],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        await response.prepare(request)
        tokens = 0
        try:
            async for event in events:
                match event:
                    case Delta(index, text):
                        await response.write(server_sent({**head, "choices": [choice(index, text, None)]}))
                    case Finished(index, reason, count):
                        tokens += count
                        self._metrics.count_tokens("completion", count)
                        await response.write(server_sent({**head, "choices": [choice(index, "", reason)]}))
        except HoldfastError as error:  # too late for a status: the event says it, and no [DONE] follows
            await response.write(server_sent(error_document(error.message, "server_error", code=error.code)))
            return response
        if wanted.stream_usage:
            await response.write(server_sent({**head, "choices": [], "usage": usage(accepted.prompt_tokens, tokens)}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response
