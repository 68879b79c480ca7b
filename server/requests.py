"""What clients may ask, read from the JSON of OpenAI's API; what is not supported is refused by name.

Law: pure; nothing is ignored silently except what cannot change the answer (`user`, `metadata`).
Format: https://platform.openai.com/docs/api-reference (embeddings, completions).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from cached.contract.errors import Permanent

MAX_INPUTS = 2048  # OpenAI's own limit
_MAX_STOPS = 4
_DEFAULT_MAX_TOKENS = 16  # OpenAI's own default for completions

Prompt = str | tuple[int, ...]


class InvalidRequest(Permanent):
    """A request that can never be answered as it is; `param` names the parameter at fault, if one is."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(code, message, "")
        self.param = param


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or token ids, to embed; `as_base64` for little-endian float32 in base64."""

    model: str | None
    inputs: tuple[Prompt, ...]
    as_base64: bool


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts to continue, one choice each. `temperature` 0 is greedy; `seed` None is a new one each time."""

    model: str | None
    prompts: tuple[Prompt, ...]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    stream_usage: bool


# Parameters that would change the answer, with the one value that does not.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
_HARMLESS = {"user", "metadata"}


def parse_embeddings(body: bytes) -> EmbeddingRequest:
    """Read the body of `/v1/embeddings`; raises `InvalidRequest`."""
    document = _object(body)
    _refuse_unknown(document, {"model", "input", "encoding_format"}, {"dimensions": ()})
    encoding = document.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        _refuse("encoding_format", f"expected float or base64, found {_show(encoding)}")
    return EmbeddingRequest(_model(document), _prompts(document, "input"), encoding == "base64")


def parse_completion(body: bytes, max_tokens_limit: int | None) -> CompletionRequest:
    """Read the body of `/v1/completions`; raises `InvalidRequest`."""
    document = _object(body)
    known = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"}
    _refuse_unknown(document, known, _NEUTRAL)
    default = _DEFAULT_MAX_TOKENS if max_tokens_limit is None else min(_DEFAULT_MAX_TOKENS, max_tokens_limit)
    max_tokens = _integer(document, "max_tokens", 1, max_tokens_limit, default)
    assert max_tokens is not None
    stream = _boolean(document, "stream")
    options = document.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        _refuse("stream_options", "expected an object, and only with stream: true")
    return CompletionRequest(
        model=_model(document),
        prompts=_prompts(document, "prompt"),
        max_tokens=max_tokens,
        temperature=_number(document, "temperature", 0.0, 2.0, 1.0),
        top_p=_number(document, "top_p", 0.0, 1.0, 1.0),
        seed=_integer(document, "seed", -(2**63), 2**63 - 1, None),
        stop=_stops(document),
        stream=stream,
        stream_usage=_boolean(options or {}, "include_usage"),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"expected a JSON object, found {_show(document)}")
    return document


def _refuse_unknown(document: dict[str, Any], known: set[str], neutral: dict[str, tuple[object, ...]]) -> None:
    for name, value in document.items():
        if name in known or name in _HARMLESS:
            continue
        if name not in neutral:
            _refuse(name, "unknown parameter")
        if value is not None and value not in neutral[name]:
            _refuse(name, f"not supported here with the value {_show(value)}; leave it out")


def _model(document: dict[str, Any]) -> str | None:
    model = document.get("model")
    if model is not None and not isinstance(model, str):
        _refuse("model", f"expected text, found {_show(model)}")
    return model


def _prompts(document: dict[str, Any], name: str) -> tuple[Prompt, ...]:
    value = document.get(name)
    single = isinstance(value, str) or _is_token_list(value)
    items = [value] if single else value
    if not isinstance(items, list) or not items:
        _refuse(name, f"expected text, token ids, or a list of either, found {_show(value)}")
    if len(items) > MAX_INPUTS:
        _refuse(name, f"{len(items)} inputs, at most {MAX_INPUTS} are taken")
    prompts: list[Prompt] = []
    for item in items:
        if isinstance(item, str):
            if not _encodable(item):
                _refuse(name, "the text has half a surrogate pair, which is no character")
            prompts.append(item)
        elif _is_token_list(item):
            prompts.append(tuple(item))
        else:
            _refuse(name, f"expected text, token ids, or a list of either, found {_show(item)} in it")
    return tuple(prompts)


def _is_token_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _stops(document: dict[str, Any]) -> tuple[str, ...]:
    value = document.get("stop")
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        _refuse("stop", f"expected text or a list of at most {_MAX_STOPS} texts, none empty, found {_show(value)}")
    return tuple(stops)


def _integer(document: dict[str, Any], name: str, low: int, high: int | None, default: int | None) -> int | None:
    value = document.get(name)
    if value is None:
        return default
    if type(value) is not int or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        _refuse(name, f"expected a whole number from {low}{upper}, found {_show(value)}")
    return value


def _number(document: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = document.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        _refuse(name, f"expected a number from {low:g} to {high:g}, found {_show(value)}")
    return float(value)


def _boolean(document: dict[str, Any], name: str) -> bool:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        _refuse(name, f"expected true or false, found {_show(value)}")
    return bool(value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(value: object) -> str:
    return repr(value)[:60]


def _refuse(param: str, message: str) -> NoReturn:
    raise InvalidRequest(f"{param[:60]}: {message}", param[:60])
