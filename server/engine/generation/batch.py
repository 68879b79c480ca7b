"""Continuous batching: sequences join and leave the running batch between two tokens.

Law: runs in the model's thread only. An admitted sequence is prefilled alone, in pieces so that decoding goes on, then
joins; a finished or cancelled row leaves before the next step. Where memory is short the newest sequence is preempted
and prefilled again later, with the same random numbers: no other row changes.

transformers has continuous batching of its own (`generate_batch`, `init_continuous_batching`). As of 5.23 it samples
all requests from one generator by one setting of `do_sample`, so a seed means nothing and greedy and sampled requests
cannot share a batch; it has neither stop texts nor penalties per request; it takes all memory of its cache at the
start and needs psutil on a CPU. Here (a Llama of 42M parameters, two cores, 8 requests of 32 + 64 tokens) it made 361
tokens/s once warm, transformers' own static batch 428, `generate` alone 54. So the model's forward, masks and cache
interface are transformers', and the rows are ours.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import torch

from server.engine.engine import model_failed
from server.engine.generation.batched_forward import BatchedForward
from server.engine.generation.kv_cache import SPARE_COLUMNS, RowCache
from server.engine.generation.sampling import choose
from server.engine.generation.sequence import GenerationSequence
from server.engine.lora import Adapters

_PREFILL_TOKENS = 512  # prefilled between two decode steps
_HEADROOM_TOKENS = 128  # of each row, so that an admitted sequence is not preempted at once

_LOG = logging.getLogger(__name__)


class GenerationObserver(Protocol):
    """Receives the measurements of generation."""

    def record_step(self, rows: int, seconds: float) -> None:
        """Record a step that gave `rows` sequences a token each."""


@dataclass(slots=True)
class _Prefill:
    """An admitted sequence during prefill; `whole` once all of its prompt is read and its first token is chosen."""

    sequence: GenerationSequence
    cache: RowCache
    whole: bool = False


class Batch:
    """The sequences in the model: at most one in prefill, the others decode. `max_tokens`: those that its KV cache has
    memory for, padding included."""

    def __init__(
        self, forward: BatchedForward, max_rows: int, max_tokens: int, observer: GenerationObserver, adapters: Adapters
    ) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens  # set from another thread when another model is loaded or removed
        self._forward = forward
        self._observer = observer
        self._adapters = adapters
        self._sequences: list[GenerationSequence] = []
        self._prefilling: _Prefill | None = None

    @property
    def busy(self) -> bool:
        return bool(self._sequences or self._prefilling)

    @property
    def room(self) -> int:
        """Return how many more sequences can be admitted."""
        return self.max_rows - len(self._sequences) - (self._prefilling is not None)

    @property
    def cached_tokens(self) -> int:
        """Return how many tokens the KV cache holds, padding included. Any thread may call it."""
        sequences = self._sequences
        return len(sequences) * (max((len(one.ids) for one in sequences), default=0) + SPARE_COLUMNS)

    def reset(self) -> None:
        self._sequences, self._prefilling = [], None
        self._forward.compose([], [], 0)

    @torch.inference_mode()
    def step(self, waiting: deque[GenerationSequence]) -> None:
        """Prefill waiting sequences for a bounded number of tokens, then decode a token for each row."""
        kept = [row for row, sequence in enumerate(self._sequences) if not sequence.ended]
        stay = [self._sequences[row] for row in kept]
        joining = self._prefill(waiting, stay)
        self._preempt(stay, joining, waiting)
        if joining or len(stay) < len(self._sequences):
            self._sequences = [*stay, *(one.sequence for one in joining)]
            width = max((len(sequence.ids) - 1 for sequence in self._sequences), default=0)
            self._forward.compose(kept[: len(stay)], [one.cache for one in joining], width)
        if self._sequences:
            self._decode()

    def _decode(self) -> None:
        started = time.perf_counter()
        ids = [sequence.ids for sequence in self._sequences]
        self._adapters.set_rows([one.adapter for one in self._sequences])
        logits = self._forward.decode([one[-1] for one in ids], [len(one) for one in ids])
        chosen = choose(logits, [sequence.sampling for sequence in self._sequences])
        for sequence, token in zip(self._sequences, chosen, strict=True):
            sequence.take(token)
        self._observer.record_step(len(chosen), time.perf_counter() - started)

    def _prefill(self, waiting: deque[GenerationSequence], decoding: list[GenerationSequence]) -> list[_Prefill]:
        """Prefill a bounded number of tokens; return the sequences that are complete and ready to decode."""
        left = _PREFILL_TOKENS
        done: list[_Prefill] = []
        while left > 0:
            current = self._prefilling
            if current is None:
                if not waiting or not self._fits(waiting[0], [*decoding, *(one.sequence for one in done)]):
                    break
                current = self._prefilling = _Prefill(waiting.popleft(), self._forward.create_cache())
            if not current.sequence.ended:
                left -= self._prefill_piece(current, left)
            if current.sequence.ended:
                self._prefilling = None
            elif current.whole:
                self._prefilling = None
                done.append(current)
        return done

    def _prefill_piece(self, prefill: _Prefill, most: int) -> int:
        sequence, begin = prefill.sequence, prefill.cache.get_seq_length()
        piece = sequence.ids[begin : begin + most]
        started = time.perf_counter()
        self._adapters.set_rows([sequence.adapter])
        try:
            logits = self._forward.prefill(prefill.cache, piece)
        except RuntimeError as error:  # torch's, out of memory included: it fails this sequence only
            _LOG.exception("the model failed to read a prompt of %d tokens", len(sequence.ids))
            sequence.job.fail(model_failed(error))
            return len(piece)
        if begin + len(piece) == len(sequence.ids):
            prefill.whole = True
            [chosen] = choose(logits, [sequence.sampling])
            sequence.take(chosen)
            self._observer.record_step(1, time.perf_counter() - started)
        return len(piece)

    def _fits(self, admitted: GenerationSequence, decoding: list[GenerationSequence]) -> bool:
        rows = len(decoding) + 1
        longest = max(len(sequence.ids) for sequence in (admitted, *decoding))
        return rows == 1 or (rows <= self.max_rows and self._has_memory(rows, longest + _HEADROOM_TOKENS))

    def _preempt(
        self, stay: list[GenerationSequence], joining: list[_Prefill], waiting: deque[GenerationSequence]
    ) -> None:
        """Return the newest sequences to `waiting` until the KV cache has memory for one more token of each row."""
        while (rows := len(stay) + len(joining)) > 1:
            longest = max(len(sequence.ids) for sequence in (*stay, *(one.sequence for one in joining)))
            if self._has_memory(rows, longest):
                break
            waiting.appendleft(joining.pop().sequence if joining else stay.pop())

    def _has_memory(self, rows: int, longest: int) -> bool:
        return rows * (longest + SPARE_COLUMNS) <= self.max_tokens
