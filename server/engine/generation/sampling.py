"""Choose the next token of each row of a batch by its own request's options.

Law: a row's token depends on its own logits and random numbers only, never on the other rows. So a row draws one
number per token from a generator of its own, and looks it up in the cumulated probabilities in vocabulary order:
rounding, which does depend on the batch, moves a boundary by its own width only. (torch.multinomial draws from one
generator for all rows; sorted probabilities swap at near ties.)
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from server.engine.types import Sampling

_GREEDY_BELOW = 1e-5  # dividing by less overflows
_LEAST_LOGPROB = -9999.0  # OpenAI's own; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token. `logprob` and `top`, the likeliest tokens, are the model's own, before temperature and penalties."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class SamplingState:
    """The options, the random numbers and the tokens of the choice numbered `index`. The numbers are equal for equal
    seeds, and different for each choice. `constrain` has the model's folder change the logits (1, vocabulary)."""

    def __init__(
        self,
        options: Sampling,
        index: int,
        prompt: Sequence[int] = (),
        constrain: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.options = options
        self.constrain = constrain
        self.prompt = frozenset(prompt) if options.repetition_penalty != 1.0 else frozenset()
        seed = secrets.randbits(63) if options.seed is None else options.seed
        self.random = random.Random(f"{seed}/{index}")  # noqa: S311 not used for secrets
        self.generated: Counter[int] = Counter()

    @property
    def greedy(self) -> bool:
        return self.options.temperature < _GREEDY_BELOW or self.options.top_p < _GREEDY_BELOW


def choose(logits: torch.Tensor, rows: Sequence[SamplingState]) -> list[Chosen | None]:
    """Return the next token of each row; `logits` is (rows, vocabulary). None where the largest logit is NaN or
    infinite: the model failed, and any token would be noise."""
    logits = logits.float()
    adjusted = _adjusted(logits, rows)
    tokens = adjusted.argmax(-1)  # a NaN counts as the largest
    finite: list[bool] = adjusted.gather(-1, tokens.unsqueeze(-1)).isfinite().squeeze(-1).tolist()
    sampled = [row for row, one in enumerate(rows) if not one.greedy]
    if sampled:
        tokens[sampled] = _sample(adjusted[sampled], [rows[row] for row in sampled])
    chosen: list[int] = tokens.tolist()
    for one, token in zip(rows, chosen, strict=True):
        one.generated[token] += 1
    explained = _explain(logits, rows, chosen)
    return [explained.get(row, Chosen(token)) if finite[row] else None for row, token in enumerate(chosen)]


def _adjusted(logits: torch.Tensor, rows: Sequence[SamplingState]) -> torch.Tensor:
    """Apply penalties and biases: `- presence - frequency x count` of the row's own generated tokens."""
    if not any(one.options.adjusts or one.constrain is not None for one in rows):
        return logits
    adjusted = logits.clone()
    for row, one in enumerate(rows):
        options = one.options
        if one.constrain is not None:  # with the repetition penalty, in the order of transformers
            adjusted[row] = one.constrain(adjusted[row : row + 1])[0]
        elif options.repetition_penalty != 1.0:
            _penalize_repetition(adjusted[row], one)
        if one.generated and (options.presence_penalty or options.frequency_penalty):
            tokens = torch.tensor(list(one.generated), device=logits.device)
            counts = torch.tensor(list(one.generated.values()), dtype=logits.dtype, device=logits.device)
            adjusted[row, tokens] -= options.presence_penalty + options.frequency_penalty * counts
        for token, bias in options.logit_bias:
            adjusted[row, token] += bias
    return adjusted


def _penalize_repetition(logits: torch.Tensor, one: SamplingState) -> None:
    """Divide the positive logits of the prompt's and the generated tokens, multiply the negative ones."""
    tokens = torch.tensor(list(one.prompt | one.generated.keys()), device=logits.device)
    scores, penalty = logits[tokens], one.options.repetition_penalty
    logits[tokens] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _sample(logits: torch.Tensor, rows: Sequence[SamplingState]) -> torch.Tensor:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(1)

    probabilities = (logits.double() / column([one.options.temperature for one in rows])).softmax(-1)
    top_k = [one.options.top_k or logits.shape[-1] for one in rows]
    if min(top_k) < logits.shape[-1]:
        probabilities = _likeliest(probabilities, top_k)
    top_p = [one.options.top_p for one in rows]
    if min(top_p) < 1.0:
        probabilities = _nucleus(probabilities, column(top_p))
    min_p = [one.options.min_p for one in rows]
    if max(min_p) > 0.0:
        least = probabilities.max(-1, keepdim=True).values * column(min_p)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    cumulated = probabilities.cumsum(-1)
    drawn = column([one.random.random() for one in rows]) * cumulated[:, -1:]
    # `right`: a token of probability 0 is never chosen. Rounding could lead past the last token.
    return torch.searchsorted(cumulated, drawn, right=True).squeeze(1).clamp_(max=logits.shape[-1] - 1)


def _likeliest(probabilities: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """Keep each row's `top_k` likeliest tokens, and ties with the last one, and share 1 among them."""
    size = probabilities.shape[-1]
    last = torch.tensor([min(k, size) for k in top_k], device=probabilities.device).unsqueeze(1) - 1
    least = probabilities.topk(min(max(top_k), size)).values.gather(-1, last)
    kept = probabilities.where(probabilities >= least, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep each row's likeliest tokens that together reach `top_p`; ties with the last one are kept too."""
    ordered = probabilities.sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    kept = (before < top_p).sum(-1, keepdim=True).clamp_(min=1)
    least = ordered.gather(-1, kept - 1)
    return probabilities.where(probabilities >= least, 0.0)


def _explain(logits: torch.Tensor, rows: Sequence[SamplingState], tokens: Sequence[int]) -> dict[int, Chosen]:
    """Return the chosen tokens of the rows that ask for log probabilities."""
    wanted = {row: one.options.logprobs for row, one in enumerate(rows) if one.options.logprobs is not None}
    if not wanted:
        return {}
    numbers = list(wanted)
    logprobs = logits[numbers].log_softmax(-1).clamp_min(_LEAST_LOGPROB)
    picked = torch.tensor([[tokens[row]] for row in numbers], device=logits.device)
    own: list[float] = logprobs.gather(-1, picked).squeeze(-1).tolist()
    top = logprobs.topk(max(wanted.values()))  # in order, so that a row that wants fewer takes the first
    likeliest, values = top.indices.tolist(), top.values.tolist()
    return {
        row: Chosen(tokens[row], own[place], tuple(zip(likeliest[place][:most], values[place][:most], strict=True)))
        for place, (row, most) in enumerate(wanted.items())
    }
