"""Requests and answers of a classifier: `/v1/rerank` and `/v1/classify`, each in vLLM's shape and in TEI's.

Law: pure; unsupported options are refused by name. The shape is chosen by the field of the texts: `documents` (vLLM,
Jina, Cohere) or `texts` (TEI) for a rerank; `input` (vLLM) or `inputs` (TEI) for a classification.
Format: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (rerank, classify);
https://huggingface.github.io/text-embeddings-inference (rerank, predict).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from server.api import fields
from server.api.fields import Document, refuse, show
from server.engine.types import Activation, Prompt, Scored, ScoringRequest

_MAX_INPUTS = 2048  # as of embeddings
_COMMON = fields.HARMLESS | fields.TRUNCATION | {"model", "use_activation", "raw_scores"}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "return_tokens_as_token_ids": (False,),
    "add_special_tokens": (True,),
    "softmax": (True,),
    "activation": (True,),
    "instruction": ("",),
    "prompt_name": (),
    "mm_processor_kwargs": ({},),
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "return_pooled_output": (False,),
    "cache_salt": (),
}


@dataclass(frozen=True, slots=True)
class Rerank:
    """A parsed request: `texts` are the documents, of which the best `top` are told, with their text or without."""

    scoring: ScoringRequest
    texts: tuple[str, ...]
    top: int
    with_text: bool
    as_tei: bool


@dataclass(frozen=True, slots=True)
class Classify:
    """A parsed request. `single`: TEI's answer to one input is not in a list of inputs."""

    scoring: ScoringRequest
    single: bool
    as_tei: bool


def parse_rerank(body: bytes) -> Rerank:
    """Parse the body of `/v1/rerank`; raises `InvalidRequest`."""
    given = fields.document(body)
    as_tei = "texts" in given and "documents" not in given
    name = "texts" if as_tei else "documents"
    known = _COMMON | {"query", name, *(("return_text",) if as_tei else ("top_n", "return_documents"))}
    fields.refuse_unknown(given, known, _NEUTRAL)
    query = given.get("query")
    if not isinstance(query, str) or not query:
        refuse("query", f"expected text, found {show(query)}")
    fields.encodable("query", query)
    texts = _documents(given, name, objects=not as_tei)
    top = fields.integer(given, "top_n", 0, None) or len(texts)  # 0: all of them, as vLLM has it
    shown = fields.boolean(given, "return_text") if as_tei else given.get("return_documents") is None
    shown = shown or fields.boolean(given, "return_documents")
    pairs: tuple[tuple[str, str], ...] = tuple((query, text) for text in texts)
    return Rerank(_scoring(given, pairs, name, Activation.RANKING), texts, top, shown, as_tei)


def parse_classify(body: bytes) -> Classify:
    """Parse the body of `/v1/classify`; raises `InvalidRequest`."""
    given = fields.document(body)
    as_tei = "inputs" in given and "input" not in given
    name = "inputs" if as_tei else "input"
    fields.refuse_unknown(given, _COMMON | {name}, _NEUTRAL)
    inputs: tuple[Prompt | tuple[str, str], ...]
    inputs, single = _tei_inputs(given) if as_tei else (_inputs(given), False)
    return Classify(_scoring(given, inputs, name, Activation.LABELS), single, as_tei)


def rerank_document(wanted: Rerank, scored: Scored, model: str) -> Any:
    """Return the answer, the best first; equal scores keep the order of the request."""
    scores = [one[0] for one in scored.scores]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: wanted.top]
    if wanted.as_tei:
        return [
            {"index": at, "score": scores[at], **({"text": wanted.texts[at]} if wanted.with_text else {})}
            for at in order
        ]
    results = [
        {
            "index": at,
            **({"document": {"text": wanted.texts[at]}} if wanted.with_text else {}),
            "relevance_score": scores[at],
        }
        for at in order
    ]
    usage = {"prompt_tokens": scored.prompt_tokens, "total_tokens": scored.prompt_tokens}
    return {"id": f"rerank-{secrets.token_hex(12)}", "model": model, "usage": usage, "results": results}


def classify_document(wanted: Classify, scored: Scored, model: str, labels: tuple[str, ...]) -> Any:
    """Return the answer: vLLM's likeliest label and all probabilities, or TEI's labels, the likeliest first."""
    if wanted.as_tei:
        ranked = [
            sorted(
                ({"score": score, "label": label} for score, label in zip(one, labels, strict=True)),
                key=lambda item: -float(str(item["score"])),
            )
            for one in scored.scores
        ]
        return ranked[0] if wanted.single else ranked
    data = [
        {
            "index": index,
            "label": labels[max(range(len(one)), key=one.__getitem__)],
            "probs": list(one),
            "num_classes": len(one),
        }
        for index, one in enumerate(scored.scores)
    ]
    usage = {"prompt_tokens": scored.prompt_tokens, "total_tokens": scored.prompt_tokens, "completion_tokens": 0}
    head = {"id": f"classify-{secrets.token_hex(12)}", "object": "list", "created": int(time.time()), "model": model}
    return {**head, "data": data, "usage": usage}


def _scoring(
    given: Document, inputs: tuple[Prompt | tuple[str, str], ...], param: str, activation: Activation
) -> ScoringRequest:
    raw = fields.boolean(given, "raw_scores")
    activated = given.get("use_activation") is None or fields.boolean(given, "use_activation")
    if raw and given.get("use_activation") is True:
        refuse("use_activation", "true, and raw_scores is true: give one of them")
    wanted = activation if activated and not raw else Activation.NONE
    return ScoringRequest(
        fields.text(given, "model"),
        inputs,
        wanted,
        fields.truncation(given),
        param,
        ranks=activation is Activation.RANKING,
    )


def _documents(given: Document, name: str, *, objects: bool) -> tuple[str, ...]:
    value = given.get(name)
    if isinstance(value, str) and objects:
        value = [value]
    if not isinstance(value, list) or not value:
        refuse(name, f"expected a list of at least one text, found {show(value)}")
    if len(value) > _MAX_INPUTS:
        refuse(name, f"{len(value)} texts, at most {_MAX_INPUTS} are taken")
    found: list[str] = []
    for item in value:
        if objects and isinstance(item, dict) and set(item) == {"text"}:
            item = item["text"]
        if not isinstance(item, str):
            expected = "text, or an object with text alone" if objects else "text"
            refuse(name, f"expected {expected}, found {show(item)} in it")
        found.append(fields.encodable(name, item))
    return tuple(found)


def _inputs(given: Document) -> tuple[Prompt, ...]:
    value = given.get("input")
    single = isinstance(value, str) or _is_tokens(value)
    items = [value] if single else value
    if not isinstance(items, list) or not items:
        refuse("input", f"expected text, token ids, or a list of either, found {show(value)}")
    if len(items) > _MAX_INPUTS:
        refuse("input", f"{len(items)} inputs, at most {_MAX_INPUTS} are taken")
    found: list[Prompt] = []
    for item in items:
        if isinstance(item, str):
            found.append(fields.encodable("input", item))
        elif _is_tokens(item):
            found.append(tuple(item))
        else:
            refuse("input", f"expected text, token ids, or a list of either, found {show(item)} in it")
    return tuple(found)


def _tei_inputs(given: Document) -> tuple[tuple[str | tuple[str, str], ...], bool]:
    """Read TEI's `inputs`: a text, a pair as a list of two texts, or a list of such lists."""
    value = given.get("inputs")
    expected = "a text, a pair of texts, or a list of lists of one or two texts"
    if isinstance(value, str):
        return (fields.encodable("inputs", value),), True
    if not isinstance(value, list) or not value:
        refuse("inputs", f"expected {expected}, found {show(value)}")
    single = all(isinstance(item, str) for item in value)
    items = [value] if single else value
    if len(items) > _MAX_INPUTS:
        refuse("inputs", f"{len(items)} inputs, at most {_MAX_INPUTS} are taken")
    found: list[str | tuple[str, str]] = []
    for item in items:
        if not isinstance(item, list) or not 1 <= len(item) <= 2 or not all(isinstance(part, str) for part in item):
            refuse("inputs", f"expected {expected}, found {show(item)}")
        texts = [fields.encodable("inputs", part) for part in item]
        found.append(texts[0] if len(texts) == 1 else (texts[0], texts[1]))
    return tuple(found), single


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
