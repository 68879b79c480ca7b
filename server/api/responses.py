"""Answers in OpenAI's formats: errors, models, embeddings, usage, server-sent events.

Law: pure values in, responses out. Format: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from aiohttp import web

from server.engine.types import AboutVectors, Embedded
from server.lifecycle.admission import GoldenComparison
from server.lifecycle.registry import Card, PendingVersion


def error_document(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_s: float | None = None,
) -> web.Response:
    """Return an error response; `retry_after_s` becomes a Retry-After in whole seconds, rounded up."""
    headers = {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return web.json_response(error_document(message, kind, param, code), status=status, headers=headers)


def model_document(card: Card, golden: GoldenComparison | None, pending: PendingVersion | None) -> dict[str, Any]:
    """Return one model of `/v1/models`, with fields of ours that OpenAI's clients ignore."""
    snapshot, about = card.snapshot, card.about
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "holdfast",
        "version": snapshot.version,
        "digest": str(snapshot.digest) if snapshot.digest else None,
        "kind": about.kind,
        "context_tokens": about.context,
        "chat": about.chat,
        "labels": list(about.labels),
        "batch": about.batch,
        "embedding": None if about.vectors is None else _vectors_document(about.vectors),
        "parent": card.parent,
        "golden": golden.document() if golden is not None else None,
        "next": asdict(pending) if pending is not None else None,
    }


def _vectors_document(vectors: AboutVectors) -> dict[str, Any]:
    shorter = "any" if vectors.shorter is None else list(vectors.shorter)
    return {
        "dimension": vectors.dimension,
        "dimensions": shorter,
        "prompts": list(vectors.prompts),
        "default_prompt": vectors.default_prompt,
        "similarity": vectors.similarity,
    }


def embeddings_pieces(model: str, embedded: Embedded, *, as_base64: bool) -> Iterator[str]:
    """Yield the JSON of `/v1/embeddings`, a vector at a time: thousands of them as numbers take seconds."""
    head = {
        "object": "list",
        "model": model,
        "usage": {"prompt_tokens": embedded.prompt_tokens, "total_tokens": embedded.prompt_tokens},
    }
    yield json.dumps(head).removesuffix("}") + ', "data": ['
    for index, vector in enumerate(embedded.vectors):
        embedding = base64.b64encode(vector).decode("ascii") if as_base64 else _numbers(vector)
        yield (", " if index else "") + json.dumps({"object": "embedding", "index": index, "embedding": embedding})
    yield "]}"


def server_sent(document: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def _numbers(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
