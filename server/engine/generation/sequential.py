"""Generation one sequence at a time, for architectures whose KV cache cannot hold several rows.

Law: runs in the model's thread only. transformers' own `generate` steps the model, so that every architecture's cache
is correct; tokens are chosen as in a batch.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from server.engine.generation.batch import GenerationObserver
from server.engine.generation.sampling import choose
from server.engine.generation.sequence import GenerationSequence
from server.engine.lora import Adapters

_GenerationConfig: Any = GenerationConfig  # untyped there


class SequentialRunner:
    """Runs each sequence from its first token to its last in one step."""

    busy = False
    room = max_rows = 1

    def __init__(
        self, module: Any, device: str, padding_id: int, observer: GenerationObserver, adapters: Adapters
    ) -> None:
        self._module = module
        self._adapters = adapters
        self._device = device
        self._padding_id = padding_id
        self._observer = observer
        # `generate` would take any option that is unset below from the model's folder.
        module.generation_config = _GenerationConfig(pad_token_id=padding_id)

    def reset(self) -> None:
        """Do nothing: no state is kept between steps."""

    @torch.inference_mode()
    def step(self, waiting: deque[GenerationSequence]) -> None:
        """Generate one sequence."""
        sequence = waiting.popleft()
        if sequence.ended:
            return
        self._adapters.set_rows([sequence.adapter])
        ids = torch.tensor([sequence.ids], device=self._device)
        self._module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_GenerationConfig(
                max_new_tokens=sequence.tokens_left, do_sample=False, pad_token_id=self._padding_id
            ),
            logits_processor=LogitsProcessorList([_Choose(sequence, self._observer)]),
            stopping_criteria=StoppingCriteriaList([_Stop(sequence)]),
        )


class _Choose(LogitsProcessor):
    """Chooses each token in place of `generate`, and masks all others, as `generate` takes the likeliest."""

    def __init__(self, sequence: GenerationSequence, observer: GenerationObserver) -> None:
        self._sequence = sequence
        self._observer = observer
        self._started = time.perf_counter()

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        [chosen] = choose(scores, [self._sequence.sampling])
        self._sequence.take(chosen)
        now = time.perf_counter()
        self._observer.record_step(1, now - self._started)
        self._started = now
        forced = torch.full_like(scores, -torch.inf)
        forced[0, 0 if chosen is None else chosen.token] = 0.0
        return forced


class _Stop(StoppingCriteria):
    """Stops `generate` when the sequence is complete or cancelled."""

    def __init__(self, sequence: GenerationSequence) -> None:
        self._sequence = sequence

    def __call__(self, input_ids: torch.Tensor, *_scores: Any, **_more: Any) -> torch.Tensor:
        return torch.full((1,), self._sequence.ended, dtype=torch.bool, device=input_ids.device)
