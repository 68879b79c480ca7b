"""The model's forward pass over the rows of a batch: prefill of prompts, or decode of one token of every row.

Law: runs in the model's thread only, inside `torch.inference_mode`. A row's logits depend on other rows by rounding
only: padding is masked, and each row has positions of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from server.engine.generation.kv_cache import RoomLimit, RowCache, empty_cache

JoiningRows = tuple[RowCache, list[int]]  # a cache of prefilled prompts, and the numbers of its rows that join


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

    def create_cache(self, columns: int = 0) -> RowCache:
        """Return an empty cache for a prefill; `columns`: of the prompt, where it is read in pieces."""
        cache = empty_cache(self._config, columns)
        assert cache is not None
        return cache

    @property
    def room_tokens(self) -> int:
        """The tokens that the cache has memory for, padding included. Any thread may call it."""
        cache = self._cache
        return 0 if cache is None else cache.room_tokens

    def prefill(self, cache: RowCache, ids: list[int]) -> torch.Tensor:
        """Prefill these tokens after those in `cache`, which has one row or none; return the logits (1, vocabulary)
        after the last."""
        begin = cache.get_seq_length()
        positions = torch.arange(begin, begin + len(ids), device=self._device).unsqueeze(0)
        mask = torch.ones((1, begin + len(ids)), dtype=torch.long, device=self._device)
        return self._forward([ids], mask, positions, cache)

    def prefill_together(self, prompts: Sequence[list[int]]) -> tuple[RowCache, torch.Tensor]:
        """Prefill whole prompts in one pass; return a cache with a row for each, and the logits (rows, vocabulary)
        after the last token of each."""
        width = max(map(len, prompts))
        # Padded with a token of its own, so that a row's numbers, NaN included, come from its own tokens only.
        padded = [[ids[0]] * (width - len(ids)) + ids for ids in prompts]
        lengths = torch.tensor([[len(ids)] for ids in prompts], device=self._device)
        positions = torch.arange(width, device=self._device) - (width - lengths)
        cache = self.create_cache()
        return cache, self._forward(padded, (positions >= 0).long(), positions.clamp(min=0), cache)

    def compose(self, kept: list[int], joining: list[JoiningRows], width: int, limit: RoomLimit) -> None:
        """Make row i what row `kept[i]` was and append the joining rows; `width` is then the longest, in tokens. A row
        of `kept` stays where it is or comes from behind `kept`."""
        if not kept and not joining:
            self._cache = None
            return
        if self._cache is None:
            self._cache = self.create_cache()
        others: list[tuple[list[Any], list[int]]] = [(cache.layers, rows) for cache, rows in joining]
        for number, layer in enumerate(self._cache.layers):
            layer.compose(kept, [(layers[number], rows) for layers, rows in others], width, limit)
            for layers, _ in others:  # layer by layer, so that no more than one layer is in memory twice
                layers[number] = None

    def clear(self) -> None:
        """Remove every row."""
        self._cache = None

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
