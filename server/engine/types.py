"""The requests to a model and its answers: values that pass between its thread and the event loop.

Law: plain values; numpy and torch stay in the model's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cached.contract.errors import Permanent

if TYPE_CHECKING:
    from server.engine.lora import Adapter


class ModelKind(StrEnum):
    """What a model computes."""

    EMBEDDINGS = "embeddings"
    COMPLETIONS = "completions"
    CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True)
class AboutVectors:
    """The vectors of an embedding model. `dimension` is what a request gets that asks for none, out of `whole` numbers;
    `shorter` are the dimensions that a request may ask for, None where any up to `whole` is trained for. `prompts` are
    names; `similarity` is how the authors compare vectors, where they say it."""

    dimension: int
    whole: int
    shorter: tuple[int, ...] | None
    prompts: tuple[str, ...]
    default_prompt: str | None
    similarity: str | None


@dataclass(frozen=True, slots=True)
class About:
    """A loaded model. `context`: the most tokens of one sequence, generated ones included. `chat`: its tokenizer has a
    chat template. `batch`: the most sequences it works on at once. `vectors`: of a model that embeds. `labels`: of a
    classifier, in the order of its scores."""

    kind: ModelKind
    context: int | None
    device: str
    dtype: str
    weight_bytes: int
    chat: bool = False
    batch: int = 1
    vectors: AboutVectors | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded:
    """A request's vectors in its order, each little-endian float32, and the number of tokens of all inputs."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text and log probability; `top` are the likeliest tokens at its position."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of the choice numbered `index`, and its tokens where the request asks for log probabilities."""

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
class Truncation:
    """How an input is cut that is too long: to `tokens`, None for the model's context, and at its `side` (`left`,
    `right`, None for the tokenizer's own)."""

    tokens: int | None = None
    side: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or token ids, to embed; `as_base64`: the answer has little-endian float32 in base64. `prompt_name` names
    one of the model's prompts, `input_type` is `query` or `document`; `dimensions` None is the model's own number."""

    model: str | None
    inputs: tuple[Prompt, ...]
    as_base64: bool
    prompt_name: str | None = None
    input_type: str | None = None
    truncation: Truncation | None = None
    dimensions: int | None = None
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text in tokens, as the tokenizer gave them: `types` are its token type ids, if it has any; the first
    `prompt_tokens` belong to the prompt."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddingInputs:
    """A request in tokens; its vectors are cut to `dimensions` numbers, then brought to unit length if `normalize`."""

    texts: tuple[EncodedText, ...]
    dimensions: int | None = None
    normalize: bool = False


class Activation(StrEnum):
    """What turns a classifier's logits into scores. `RANKING` and `LABELS` are the folder's own, as its libraries read
    it: sentence-transformers' CrossEncoder for a pair, transformers' pipeline for the labels of a text."""

    RANKING = "ranking"
    LABELS = "labels"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """Texts, pairs of texts, or token ids, to score by each label. `param` names them in errors. `truncation`: how an
    input is cut, None: refuse what is longer than the context. `ranks`: the inputs are a query with each of its
    documents."""

    model: str | None
    inputs: tuple[Prompt | tuple[str, str], ...]
    activation: Activation
    truncation: Truncation | None
    param: str
    ranks: bool = False


Features = dict[str, list[int]]  # what a tokenizer made of one input, by the model's own names


@dataclass(frozen=True, slots=True)
class ScoringInputs:
    """A request for scores in tokens."""

    inputs: tuple[Features, ...]
    activation: Activation

    @property
    def tokens(self) -> int:
        return sum(len(one["input_ids"]) for one in self.inputs)


@dataclass(frozen=True, slots=True)
class Scored:
    """A request's scores in its order, one for each label, and the number of tokens of all inputs."""

    scores: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `seed` None is a new seed for each request. `top_k` 0: all
    tokens; `min_p`: at least this share of the likeliest one's probability. `logprobs`: how many of the likeliest
    tokens to report beside the chosen one; None reports no log probabilities."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        penalized = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        return bool(penalized or self.logit_bias)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """The options that completions and chats share; `choices` per prompt. `max_tokens` None: up to the context.
    `left_out`: the fields of `sampling` that the request leaves to the model's folder."""

    model: str | None
    max_tokens: int | None
    choices: int
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    stream_usage: bool
    left_out: frozenset[str] = frozenset()
    adapter: Adapter | None = None  # set by the server from the model's name, never by a client


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts to complete."""

    prompts: tuple[Prompt, ...]
    options: GenerationOptions


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to continue; `template` are the variables of the chat template."""

    messages: tuple[dict[str, Any], ...]
    template: dict[str, Any]
    options: GenerationOptions


GenerationRequest = CompletionRequest | ChatRequest


@dataclass(frozen=True, slots=True)
class Continuation:
    """A request in tokens: one sequence for each choice of each prompt, in order, each with its own token limit."""

    prompts: tuple[tuple[int, ...], ...]
    max_tokens: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...]
    adapter: Adapter | None = None


class InvalidRequest(Permanent):
    """A request that cannot be served as it is; `param` names the parameter at fault, if any."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(code, message, "")
        self.param = param


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask: `body_bytes` a request, `queue` waiting requests, `max_tokens` generated a choice.
    `batch` sequences are generated at once, in at most `cache_bytes` of KV cache; None: a share of the free memory."""

    body_bytes: int
    queue: int
    max_tokens: int | None
    batch: int
    cache_bytes: int | None
