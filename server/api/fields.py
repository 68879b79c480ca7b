"""Read the fields of a request's JSON by type and range; refuse any other by name.

Law: pure. Every refusal is an `InvalidRequest` whose message begins with the field's name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from server.engine.types import InvalidRequest, Truncation

Document = dict[str, Any]
# Fields that cannot change an answer: OpenAI's own, and vLLM's.
HARMLESS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "priority", "request_id"})
_SIDES = ("truncation_direction", "truncation_side")  # TEI's and vLLM's names
TRUNCATION = frozenset({"truncate", "truncate_prompt_tokens", *_SIDES})  # what `truncation` reads


def document(body: bytes) -> Document:
    """Return the JSON object of a body; raises `InvalidRequest`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"expected a JSON object, found {show(found)}")
    return found


def refuse_unknown(given: Document, known: Collection[str], neutral: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse fields that are not known, except with a value in `neutral`, which has no effect."""
    for name, value in given.items():
        if name in known:
            continue
        if name not in neutral:
            refuse(name, "unknown parameter")
        if value is not None and not any(type(value) is type(same) and value == same for same in neutral[name]):
            refuse(name, f"not supported here with the value {show(value)}; leave it out")


def text(given: Document, name: str) -> str | None:
    """Return the text of a field; None where it is absent or null. Raises `InvalidRequest`, as all here."""
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        refuse(name, f"expected text, found {show(value)}")
    return value


def integer(given: Document, name: str, low: int, high: int | None) -> int | None:
    """Return a whole number from `low` to `high` (None: no upper bound); None where the field is absent or null."""
    value = given.get(name)
    if value is not None and (type(value) is not int or value < low or (high is not None and value > high)):
        upper = "" if high is None else f" to {high}"
        refuse(name, f"expected a whole number from {low}{upper}, found {show(value)}")
    return value


def number(given: Document, name: str, low: float, high: float, default: float) -> float:
    """Return a number from `low` to `high`; `default` where the field is absent or null."""
    value = given.get(name)
    if value is None:
        return default
    if not is_number(value, low, high):
        refuse(name, f"expected a number from {low:g} to {high:g}, found {show(value)}")
    return float(value)


def is_number(value: object, low: float, high: float) -> bool:
    """Return whether a JSON value is a number from `low` to `high`; true and false are none."""
    return not isinstance(value, bool) and isinstance(value, int | float) and low <= value <= high


def boolean(given: Document, name: str) -> bool:
    """Return true or false; false where the field is absent or null."""
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        refuse(name, f"expected true or false, found {show(value)}")
    return bool(value)


def truncation(given: Document) -> Truncation | None:
    """Read how inputs are cut: `truncate` and `truncation_direction` as text-embeddings-inference has them, and
    `truncate_prompt_tokens` (-1: to the context) and `truncation_side` as vLLM does."""
    tokens = integer(given, "truncate_prompt_tokens", -1, None)
    if tokens == 0:
        refuse("truncate_prompt_tokens", "expected a whole number from 1, or -1 for the context, found 0")
    wanted = boolean(given, "truncate")
    if tokens is not None and given.get("truncate") is False:
        refuse("truncate", "false, and truncate_prompt_tokens is given: give one of them")
    sides = {name: text(given, name) for name in _SIDES}
    found = {name: side.lower() for name, side in sides.items() if side is not None}
    for name, side in found.items():
        if side not in ("left", "right"):
            refuse(name, f"expected Left or Right, found {show(sides[name])}")
        if not wanted and tokens is None:
            refuse(name, "only with truncate: true or truncate_prompt_tokens")
    if len({*found.values()}) > 1:
        refuse("truncation_side", f"{found['truncation_side']}, and truncation_direction is another: give one of them")
    if not wanted and tokens is None:
        return None
    return Truncation(None if tokens == -1 else tokens, next(iter(found.values()), None))


def texts(given: Document, name: str, most: int) -> tuple[str, ...]:
    """Return a text or a list of at most `most` texts, none empty, as a tuple."""
    value = given.get(name)
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > most or not all(isinstance(one, str) and one for one in found):
        refuse(name, f"expected text or a list of at most {most} texts, none empty, found {show(value)}")
    return tuple(found)


def encodable(name: str, value: str) -> str:
    """Return the text; refuse half a surrogate pair, which JSON allows and UTF-8 does not."""
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(name, "the text has half a surrogate pair, which is no character")
    return value


def show(value: object) -> str:
    """Return the beginning of a value, for a message."""
    return repr(value)[:60]


def refuse(param: str, message: str) -> NoReturn:
    """Raise `InvalidRequest` about the field `param`."""
    raise InvalidRequest(f"{param[:60]}: {message}", param[:60])
