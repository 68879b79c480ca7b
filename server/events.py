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
    """A loaded model: `context` is the most tokens of one input (for completions with what is generated).

    `chat`: its tokenizer has a chat template. `batch`: how many sequences it works on at once, at most.
    """

    kind: Kind
    context: int | None
    device: str
    dtype: str
    weight_bytes: int
    chat: bool = False
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of a request, in its order: each little-endian float32, and how many tokens were read in all."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text and the logarithm of its probability; `top` are the likeliest at its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """More text for the choice numbered `index`, and the tokens it is made of where they were asked for."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The choice numbered `index` is complete. `reason` is `stop` or `length`; `tokens` were generated."""

    index: int
    reason: str
    tokens: int


GenerationEvent = Delta | Finished
