"""The model's forward pass over the rows of a batch: prefill of one sequence, or decode of one token of every row.

Law: runs in the model's thread only, inside `torch.inference_mode`. A row's logits depend on other rows by rounding
only: padding is masked, and each row has positions of its own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from server.engine.generation.kv_cache import RowCache, empty_cache


class BatchedForward:
    """The sequences of one KV cache, and the model that runs them."""

    def __init__(self, module: Any, config: Any, device: str) -> None:
        self._module = module
        self._config = config
        self._device = device
        self._cache: RowCache | None = None
        known = inspect.signature(module.forward).parameters
        self._takes_positions = "position_ids" in known
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def create_cache(self) -> RowCache:
        """Return an empty cache for the prefill of one sequence."""
        cache = empty_cache(self._config)
        assert cache is not None
        return cache

    def prefill(self, cache: RowCache, ids: list[int]) -> torch.Tensor:
        """Prefill these tokens after those in `cache`; return the logits (1, vocabulary) after the last."""
        begin = cache.get_seq_length()
        positions = torch.arange(begin, begin + len(ids), device=self._device).unsqueeze(0)
        mask = torch.ones((1, begin + len(ids)), dtype=torch.long, device=self._device)
        return self._forward([ids], mask, positions, cache)

    def compose(self, kept: list[int], joining: list[RowCache], width: int) -> None:
        """Keep these rows and append the sequences of these caches; `width` is then the longest, in tokens."""
        if not kept and not joining:
            self._cache = None
            return
        if self._cache is None:
            self._cache = self.create_cache()
        others: list[Any] = [cache.layers for cache in joining]
        for number, layer in enumerate(self._cache.layers):
            layer.compose(kept, [layers[number] for layers in others], width)
            for layers in others:  # layer by layer, so that no more than one layer is in memory twice
                layers[number] = None

    def decode(self, tokens: list[int], lengths: list[int]) -> torch.Tensor:
        """Give each row its next token; `lengths` include it. Return the logits (rows, vocabulary) after it."""
        assert self._cache is not None
        width = self._cache.get_seq_length() + 1
        long = torch.tensor(lengths, device=self._device).unsqueeze(1)
        mask = (torch.arange(width, device=self._device) >= width - long).long()
        return self._forward([[token] for token in tokens], mask, long - 1, self._cache)

    def _forward(
        self, tokens: list[list[int]], mask: torch.Tensor, positions: torch.Tensor, cache: RowCache
    ) -> torch.Tensor:
        out = self._module(
            input_ids=torch.tensor(tokens, device=self._device),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **({"position_ids": positions} if self._takes_positions else {}),
            **self._last_only,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits


_LENGTHS = (9, 3, 14)  # of the prompts: one shorter than the first, one longer, so that columns are padded and moved
_STEPS = 3


def largest_difference(module: Any, forward: BatchedForward, vocabulary: int, device: str) -> float:
    """Return the largest root mean square difference of batched logits from sequential ones, relative to their spread.
    Rows join while others run, one leaves, one is prefilled in two pieces. Tokens are given, not chosen, so that near
    ties in low precision do not matter. Leaves `forward` empty."""
    texts = [
        [(31 * row + 7 * place + 1) % vocabulary for place in range(length + 3 * _STEPS)]
        for row, length in enumerate(_LENGTHS)
    ]
    worst = 0.0

    def compare(logits: torch.Tensor, tokens: list[int]) -> None:
        nonlocal worst
        sequential = module(input_ids=torch.tensor([tokens], device=device)).logits[0, -1].float()
        difference = (logits.float() - sequential).norm() / (sequential - sequential.mean()).norm().clamp_min(1e-12)
        # Not `max`, which loses a NaN.
        worst = float(difference) if not float(difference) <= worst else worst

    read = list(_LENGTHS)
    present: list[int] = []
    for joined, kept in ((0, []), (1, [0]), (2, [1])):
        cache = forward.create_cache()
        first = _LENGTHS[joined] // 2
        forward.prefill(cache, texts[joined][:first])
        compare(forward.prefill(cache, texts[joined][first : read[joined]])[0], texts[joined][: read[joined]])
        present = [present[row] for row in kept] + [joined]
        forward.compose(kept, [cache], max(read[row] for row in present))
        for _ in range(_STEPS):
            tokens = [texts[row][read[row]] for row in present]
            for row in present:
                read[row] += 1
            logits = forward.decode(tokens, [read[row] for row in present])
            for number, row in enumerate(present):
                compare(logits[number], texts[row][: read[row]])
    forward.compose([], [], 0)
    return worst
