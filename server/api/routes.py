"""The HTTP API over the served models: `/v1/models`, `/v1/embeddings`, `/v1/completions`, `/v1/chat/completions`,
`/v1/rerank`, `/v1/classify`.

Law: parses requests, submits them to the engine of their model, writes answers; computes nothing. A client that
disconnects cancels its request. Format: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from time import monotonic

from aiohttp import web

from cached.contract.errors import HoldfastError, Transient
from server.api.formats import ChatFormat, ChoiceAnswer, CompletionFormat, Format
from server.api.probes import Handler, Work, current_work, without_account
from server.api.requests import parse_chat, parse_completion, parse_embeddings
from server.api.responses import embeddings_pieces, error_document, error_response, model_document, server_sent
from server.api.scoring import classify_document, parse_classify, parse_rerank, rerank_document
from server.engine.types import (
    Delta,
    Finished,
    GenerationEvent,
    GenerationOptions,
    GenerationRequest,
    InvalidRequest,
    Limits,
    Scored,
    ScoringRequest,
)
from server.lifecycle.metrics import ModelMetrics
from server.lifecycle.registry import Card, ModelRegistry, Served

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # else nginx buffers the stream
}


def application(registry: ModelRegistry, limits: Limits) -> web.Application:
    """Return the API of the registry's models, as it changes."""
    api = _Api(registry, limits)
    found = web.Application(client_max_size=limits.body_bytes, middlewares=[_errors])
    found.router.add_get("/v1/models", api.models)
    found.router.add_get("/v1/models/{model:.+}", api.model)
    found.router.add_post("/v1/embeddings", api.embeddings)
    found.router.add_post("/v1/completions", api.completions)
    found.router.add_post("/v1/chat/completions", api.chat)
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):  # Jina's, Cohere's and TEI's
        found.router.add_post(path, api.rerank)
    for path in ("/v1/classify", "/classify", "/predict"):  # the last is TEI's
        found.router.add_post(path, api.classify)
    return found


def private_application(registry: ModelRegistry, limits: Limits) -> web.Application:
    """Return the API for golden predictions: ready from the start, and neither in the log nor in the metrics."""
    found = application(registry, limits)
    found.middlewares.insert(0, without_account)
    return found


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Convert every error to OpenAI's format."""
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


class _Api:
    def __init__(self, registry: ModelRegistry, limits: Limits) -> None:
        self._registry = registry
        self._limits = limits

    async def models(self, _request: web.Request) -> web.Response:
        data = [self._document(served) for served in self._registry.list_models()]
        return web.json_response({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        return web.json_response(self._document(self._registry.find(request.match_info["model"])))

    def _document(self, served: Served) -> dict[str, object]:
        return model_document(served.card, served.golden, self._registry.pending.get(served.card.name))

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_embeddings(await request.read())
        served = self._registry.find_encoder(wanted.model)
        work = current_work()
        work.model = served.card.name
        async with served.submit(wanted) as submission, aclosing(submission.stream()) as events:
            embedded = await anext(events)
        work.prompt_tokens = embedded.prompt_tokens
        served.metrics.count_prompt(embedded.prompt_tokens)
        pieces: list[str] = []
        for piece in embeddings_pieces(served.card.name, embedded, as_base64=wanted.as_base64):
            pieces.append(piece)
            await asyncio.sleep(0)  # between two vectors other requests are answered
        return web.Response(text="".join(pieces), content_type="application/json")

    async def rerank(self, request: web.Request) -> web.Response:
        wanted = parse_rerank(await request.read())
        scored, card = await self._score(wanted.scoring)
        return web.json_response(rerank_document(wanted, scored, card.name))

    async def classify(self, request: web.Request) -> web.Response:
        wanted = parse_classify(await request.read())
        scored, card = await self._score(wanted.scoring)
        return web.json_response(classify_document(wanted, scored, card.name, card.about.labels))

    async def _score(self, wanted: ScoringRequest) -> tuple[Scored, Card]:
        served = self._registry.find_classifier(wanted.model)
        work, card = current_work(), served.card
        work.model = card.name
        async with served.submit(wanted) as submission, aclosing(submission.stream()) as events:
            scored = await anext(events)
        work.prompt_tokens = scored.prompt_tokens
        served.metrics.count_prompt(scored.prompt_tokens)
        return scored, card

    async def completions(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_completion(await request.read(), self._limits.max_tokens)
        return await self._generate(request, wanted, CompletionFormat)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_chat(await request.read(), self._limits.max_tokens)
        return await self._generate(request, wanted, ChatFormat)

    async def _generate(
        self, request: web.Request, wanted: GenerationRequest, format_class: Callable[[str], Format]
    ) -> web.StreamResponse:
        served = self._registry.find_generator(wanted.options.model)
        work = current_work()
        work.model = served.card.name
        async with served.submit(wanted) as submission, aclosing(submission.stream()) as stream:
            prompts = submission.request.prompts
            work.prompt_tokens = sum(map(len, prompts[:: wanted.options.choices]))  # each occurs once per choice
            served.metrics.count_prompt(work.prompt_tokens)
            events, answer = _count(stream, served.metrics, work), format_class(served.card.name)
            if wanted.options.stream:
                return await _send_stream(request, events, answer, wanted.options, len(prompts))
            return await _send_whole(events, answer, wanted.options, len(prompts))


async def _count(
    events: AsyncIterator[GenerationEvent], metrics: ModelMetrics, work: Work
) -> AsyncIterator[GenerationEvent]:
    """Count a generation's events as they pass."""
    first: float | None = None
    async for event in events:
        if first is None:
            first = monotonic()
            metrics.record_first_token(first - work.started)
        if isinstance(event, Finished):
            work.completion_tokens += event.tokens
            metrics.record_choice(event.tokens, monotonic() - first)
        yield event


async def _send_whole(
    events: AsyncIterator[GenerationEvent], answer: Format, wanted: GenerationOptions, choices: int
) -> web.Response:
    answers = [ChoiceAnswer() for _ in range(choices)]
    async for event in events:
        match event:
            case Delta(index, text, logprobs):
                answers[index].text += text
                answers[index].logprobs += logprobs
            case Finished(index, reason):
                answers[index].reason = reason
    explained = wanted.sampling.logprobs is not None
    return web.json_response(answer.whole(answers, current_work().usage, logprobs=explained))


async def _send_stream(
    request: web.Request,
    events: AsyncIterator[GenerationEvent],
    answer: Format,
    wanted: GenerationOptions,
    choices: int,
) -> web.StreamResponse:
    response = web.StreamResponse(headers=_STREAM_HEADERS)
    try:
        async for event in events:
            if not response.prepared:
                await response.prepare(request)
                for piece in answer.opening(choices):
                    await response.write(server_sent(piece))
            match event:
                case Delta(index, text, logprobs):
                    piece = answer.piece(index, text, logprobs)
                case Finished(index, reason):
                    piece = answer.ending(index, reason)
            await response.write(server_sent(piece))
    except HoldfastError as error:
        if not response.prepared:  # before the first token the failure still gets an HTTP status of its own
            raise
        await response.write(server_sent(error_document(error.message, "server_error", code=error.code)))
        return response  # without [DONE]
    if wanted.stream_usage:
        await response.write(server_sent(answer.usage(current_work().usage)))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response
