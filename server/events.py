"""What a model says back about a request, and what it is: values that cross from its thread to the event loop.

Law: plain values; numpy and torch stay on the model's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a model answers."""

    EMBEDDINGS = "embeddings"
    COMPLETIONS = "completions"


@dataclass(frozen=True, slots=True)
class About:
    """A loaded model: `context` is the most tokens of one input (for completions with what is generated)."""

    kind: Kind
    context: int | None
    device: str
    dtype: str
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of a request, in its order: each little-endian float32, and how many tokens were read in all."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A completion request that fits: `prompt_tokens` in all its prompts. Always the first event."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """More text for the prompt numbered `index`."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The prompt numbered `index` is answered. `reason` is `stop` or `length`; `tokens` were generated."""

    index: int
    reason: str
    tokens: int


CompletionEvent = Accepted | Delta | Finished
