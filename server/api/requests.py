"""Parse requests of OpenAI's API; unsupported options are refused by name.

Law: pure; ignores only options that cannot change the answer (`user`, `metadata`).
Format: https://platform.openai.com/docs/api-reference (embeddings, completions, chat).
Fields of embeddings beyond OpenAI's have the names that text-embeddings-inference and vLLM give them.
"""

from __future__ import annotations

from typing import Any

from server.api import fields
from server.api.fields import Document, refuse, show
from server.engine.types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationOptions,
    Prompt,
    Sampling,
)

MAX_INPUTS = 2048  # OpenAI's own limit
MAX_CHOICES = 128  # OpenAI's own limit of `n`
_MAX_STOPS = 4
_MAX_LOGPROBS = 20
_MAX_BIASES = 1024
_DEFAULT_MAX_TOKENS = 16  # OpenAI's own default for completions

_COMMON = fields.HARMLESS | {
    "model",
    "n",
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "stop",
    "stream",
    "stream_options",
    "max_tokens",
    *("top_k", "min_p", "repetition_penalty"),  # vLLM's own
}
_LEFT_TO_THE_FOLDER = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_MAX_TOP_K = 2**31
_EMBEDDING = {"model", "input", "encoding_format", "dimensions", "normalize", "prompt_name", "input_type"}
_EMBEDDING |= fields.TRUNCATION
_INPUT_TYPES = {"query": "query", "document": "document", "passage": "document"}
# Options that would change the answer, with the values that do not.
_NEUTRAL_COMPLETION: dict[str, tuple[object, ...]] = {"best_of": (1,), "echo": (False,), "suffix": ("",)}
_NEUTRAL_CHAT: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_FIELDS = {"role", "content", "name"}
_NEUTRAL_MESSAGE: dict[str, tuple[object, ...]] = {
    "refusal": (),
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
    "annotations": ([],),
}
# Variables that the server sets; a request that could set `chat_template` would bring code of its own.
_OUR_VARIABLES = {"messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt"}
_TEMPLATE_ARGUMENTS = {"continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"}
_TEMPLATE_RESERVED = _OUR_VARIABLES | _TEMPLATE_ARGUMENTS | {"return_dict", "return_assistant_tokens_mask"}
_TEMPLATE_RESERVED |= {"tokenizer_kwargs", "processor_kwargs"}


def parse_embeddings(body: bytes) -> EmbeddingRequest:
    """Parse the body of `/v1/embeddings`; raises `InvalidRequest`."""
    given = fields.document(body)
    fields.refuse_unknown(given, fields.HARMLESS | _EMBEDDING, {})
    encoding = given.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        refuse("encoding_format", f"expected float or base64, found {show(encoding)}")
    kind = fields.text(given, "input_type")
    if kind is not None and kind not in _INPUT_TYPES:
        refuse("input_type", f"expected one of {', '.join(_INPUT_TYPES)}, found {show(kind)}")
    return EmbeddingRequest(
        model=fields.text(given, "model"),
        inputs=_prompts(given, "input"),
        as_base64=encoding == "base64",
        prompt_name=fields.text(given, "prompt_name"),
        input_type=None if kind is None else _INPUT_TYPES[kind],
        truncation=fields.truncation(given),
        dimensions=fields.integer(given, "dimensions", 1, None),
        normalize=fields.boolean(given, "normalize"),
    )


def parse_completion(body: bytes, max_tokens_limit: int | None) -> CompletionRequest:
    """Parse the body of `/v1/completions`; raises `InvalidRequest`."""
    given = fields.document(body)
    fields.refuse_unknown(given, _COMMON | {"prompt"}, _NEUTRAL_COMPLETION)
    max_tokens = fields.integer(given, "max_tokens", 1, max_tokens_limit)
    if max_tokens is None:
        max_tokens = min(_DEFAULT_MAX_TOKENS, max_tokens_limit or _DEFAULT_MAX_TOKENS)
    prompts = _prompts(given, "prompt")
    options = _parse_options(given, max_tokens, fields.integer(given, "logprobs", 0, _MAX_LOGPROBS))
    if len(prompts) * options.choices > MAX_INPUTS:
        refuse("n", f"{len(prompts)} prompts with {options.choices} choices each, at most {MAX_INPUTS} in all")
    return CompletionRequest(prompts, options)


def parse_chat(body: bytes, max_tokens_limit: int | None) -> ChatRequest:
    """Parse the body of `/v1/chat/completions`; raises `InvalidRequest`."""
    given = fields.document(body)
    known = _COMMON | {"messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs"}
    fields.refuse_unknown(given, known, _NEUTRAL_CHAT)
    old = fields.integer(given, "max_tokens", 1, max_tokens_limit)
    new = fields.integer(given, "max_completion_tokens", 1, max_tokens_limit)
    if old is not None and new is not None and old != new:
        refuse("max_tokens", f"{old}, and max_completion_tokens is {new}: give one of them")
    top = fields.integer(given, "top_logprobs", 0, _MAX_LOGPROBS)
    logprobs = fields.boolean(given, "logprobs")
    if top is not None and not logprobs:
        refuse("top_logprobs", "only with logprobs: true")
    options = _parse_options(given, old if new is None else new, (top or 0) if logprobs else None)
    return ChatRequest(_messages(given), _template(given), options)


def _parse_options(given: Document, max_tokens: int | None, logprobs: int | None) -> GenerationOptions:
    stream = fields.boolean(given, "stream")
    options = given.get("stream_options")
    if options is not None:
        if not (stream and isinstance(options, dict)):
            refuse("stream_options", "expected an object, and only with stream: true")
        fields.refuse_unknown(options, {"include_usage"}, {"include_obfuscation": (False,)})
    return GenerationOptions(
        model=fields.text(given, "model"),
        max_tokens=max_tokens,
        choices=fields.integer(given, "n", 1, MAX_CHOICES) or 1,
        sampling=Sampling(
            temperature=fields.number(given, "temperature", 0.0, 2.0, 1.0),
            top_p=fields.number(given, "top_p", 0.0, 1.0, 1.0),
            seed=fields.integer(given, "seed", -(2**63), 2**63 - 1),
            presence_penalty=fields.number(given, "presence_penalty", -2.0, 2.0, 0.0),
            frequency_penalty=fields.number(given, "frequency_penalty", -2.0, 2.0, 0.0),
            logit_bias=_biases(given),
            logprobs=logprobs,
            top_k=max(0, fields.integer(given, "top_k", -1, _MAX_TOP_K) or 0),  # -1 is vLLM's own for all
            min_p=fields.number(given, "min_p", 0.0, 1.0, 0.0),
            repetition_penalty=fields.number(given, "repetition_penalty", 0.01, 10.0, 1.0),
        ),
        stop=fields.texts(given, "stop", _MAX_STOPS),
        stream=stream,
        stream_usage=fields.boolean(options or {}, "include_usage"),
        left_out=frozenset(name for name in _LEFT_TO_THE_FOLDER if given.get(name) is None),
    )


def _prompts(given: Document, name: str) -> tuple[Prompt, ...]:
    value = given.get(name)
    single = isinstance(value, str) or _is_token_list(value)
    items = [value] if single else value
    if not isinstance(items, list) or not items:
        refuse(name, f"expected text, token ids, or a list of either, found {show(value)}")
    if len(items) > MAX_INPUTS:
        refuse(name, f"{len(items)} inputs, at most {MAX_INPUTS} are taken")
    prompts: list[Prompt] = []
    for item in items:
        if isinstance(item, str):
            prompts.append(fields.encodable(name, item))
        elif _is_token_list(item):
            prompts.append(tuple(item))
        else:
            refuse(name, f"expected text, token ids, or a list of either, found {show(item)} in it")
    return tuple(prompts)


def _is_token_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _biases(given: Document) -> tuple[tuple[int, float], ...]:
    value = given.get("logit_bias")
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > _MAX_BIASES:
        refuse("logit_bias", f"expected an object of at most {_MAX_BIASES} token ids, found {show(value)}")
    biases: list[tuple[int, float]] = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10 and fields.is_number(bias, -100, 100)):
            refuse("logit_bias", f"expected token ids with numbers from -100 to 100, found {show({token: bias})}")
        biases.append((int(token), float(bias)))
    return tuple(biases)


def _messages(given: Document) -> tuple[dict[str, Any], ...]:
    value = given.get("messages")
    if not isinstance(value, list) or not value:
        refuse("messages", f"expected a list of at least one message, found {show(value)}")
    return tuple(_message(one) for one in value)


def _message(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse("messages", f"expected an object, found {show(value)} in it")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        expected = ", ".join(_ROLES)
        refuse("messages", f"expected a role of {expected}, found {show(role)} (tools are not supported here)")
    for name in value:
        if name not in _MESSAGE_FIELDS | _NEUTRAL_MESSAGE.keys():
            refuse("messages", f"unknown field {show(name)} in a message")
    for name, same in _NEUTRAL_MESSAGE.items():
        if value.get(name) is not None and value[name] not in same:
            refuse("messages", f"{name} is not supported here")
    message = {"role": _ROLES[role], "content": _content(value.get("content"))}
    name = fields.text(value, "name")
    return message if name is None else {**message, "name": fields.encodable("messages", name)}


def _content(value: object) -> str:
    """Return the text of a message; joins parts, as chat templates expect one text."""
    if isinstance(value, str):
        return fields.encodable("messages", value)
    if not isinstance(value, list) or not value:
        refuse("messages", f"expected content that is text or a list of parts, found {show(value)}")
    parts: list[str] = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            refuse("messages", f"expected parts of type text, which is all this model reads, found {show(part)}")
        parts.append(fields.encodable("messages", part["text"]))
    return "".join(parts)


def _template(given: Document) -> dict[str, Any]:
    value = given.get("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse("chat_template_kwargs", f"expected an object, found {show(value)}")
    for name in value:
        if name in _TEMPLATE_RESERVED or not name.isidentifier():
            refuse("chat_template_kwargs", f"{show(name)} cannot be set by a request")
    return value
