"""Inputs that are almost right: a good document with its bytes or its JSON spoiled in a few places.

Law: strategies only. A parser that survives noise may still fall for what is nearly its format.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

# What parsers trip over: numbers at the edges of types, names that leave a folder, text that is no text.
_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**53, 2**63, 2**64, 10**400, -(10**40), 0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/../../b",
        "a\x00b",
        "\ud800",
        "é",
        "A" * 5000,
        "-",
        "a\nb",
        "\u202e",
    ),
    *([], {}, [[]], {"": None}, ["x"] * 50, {"__proto__": 1}),
)
HOSTILE = st.sampled_from(_HOSTILE)


def spoiled_bytes(*samples: bytes) -> st.SearchStrategy[bytes]:
    """Noise, or one of `samples` after a few cuts, insertions and repetitions."""
    edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12), st.booleans()), max_size=4)
    return st.binary(max_size=300) | st.builds(_edit, st.sampled_from(samples), edits)


def spoiled_json(*samples: Any) -> st.SearchStrategy[bytes]:
    """One of `samples` as JSON, with up to three of its values replaced, removed or doubled under another key."""
    steps = st.lists(st.tuples(st.integers(0, 10_000), HOSTILE, st.integers(0, 2)), min_size=1, max_size=3)
    return st.builds(lambda sample, how: _encoded(_mutated(sample, how)), st.sampled_from(samples), steps)


def spoiled(*samples: Any) -> st.SearchStrategy[bytes]:
    """Both ways to spoil JSON."""
    return spoiled_json(*samples) | spoiled_bytes(*(_encoded(sample) for sample in samples))


def _edit(data: bytes, edits: list[tuple[float, int, bytes, bool]]) -> bytes:
    for place, length, new, repeats in edits:
        at = int(place * len(data))
        piece = data[at : at + length]
        data = data[:at] + (piece * 3 if repeats else new) + data[at + length :]
    return data


def _mutated(sample: Any, steps: list[tuple[int, Any, int]]) -> Any:
    document = json.loads(json.dumps(sample))
    for number, value, kind in steps:
        places = list(_places(document))
        if not places:
            return deepcopy(value)
        holder, key = places[number % len(places)]
        if kind == 1:
            del holder[key]
        elif kind == 2 and isinstance(holder, dict):
            holder[value if isinstance(value, str) else str(value)[:100]] = deepcopy(holder[key])
        else:
            holder[key] = deepcopy(value)
    return document


def _places(document: Any) -> Any:
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])


def _encoded(document: Any) -> bytes:
    # Sorted and tight, as the canonical formats are; a lone surrogate goes out as the bytes some writers make of it.
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        errors="surrogatepass"
    )
