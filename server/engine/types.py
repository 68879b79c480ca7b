"""What is asked of a model, and what it says back: values that cross between its thread and the event loop.

Law: plain values; numpy and torch stay on the model's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cached.contract.errors import Permanent

if TYPE_CHECKING:
    from server.engine.lora import Adapter


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


Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or token ids, to embed; `as_base64` for little-endian float32 in base64."""

    model: str | None
    inputs: tuple[Prompt, ...]
    as_base64: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `seed` None is a new one each time.

    `logprobs`: how many of the likeliest tokens to tell at each place, beside the chosen one; None for nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What completions and chats have in common; `choices` of each prompt. `max_tokens` None: what the context has."""

    model: str | None
    max_tokens: int | None
    choices: int
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    stream_usage: bool
    adapter: Adapter | None = None  # no client's word: what the name it asked for stands for


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts to continue."""

    prompts: tuple[Prompt, ...]
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to go on with; `template` are the variables its chat template is given."""

    messages: tuple[dict[str, Any], ...]
    template: dict[str, Any]
    wanted: Wanted


GenerationRequest = CompletionRequest | ChatRequest


@dataclass(frozen=True, slots=True)
class Continuation:
    """A request in tokens: a choice for each prompt, in order, each of at most its own number of tokens."""

    prompts: tuple[tuple[int, ...], ...]
    max_tokens: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...]
    adapter: Adapter | None = None


class InvalidRequest(Permanent):
    """A request that can never be answered as it is; `param` names the parameter at fault, if one is."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(code, message, "")
        self.param = param


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask: `body_bytes` a request, `queue` requests waiting, `max_tokens` generated a choice.

    `batch` sequences are generated at once, in at most `cache_bytes` of memory beside the weights; None: what is free.
    """

    body_bytes: int
    queue: int
    max_tokens: int | None
    batch: int
    cache_bytes: int | None
