"""Continuous batching: sequences join and leave the running batch between two tokens.

Law: runs in the model's thread only. Admitted sequences are prefilled together, a long one alone and in pieces so that
decoding goes on, and then join; a finished or cancelled row leaves before the next step. Where memory is short the
newest sequence is preempted and prefilled again later, with the same random numbers: no other row changes.

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
from server.engine.generation.batched_forward import BatchedForward, JoiningRows
from server.engine.generation.kv_cache import SPARE_COLUMNS, RoomLimit, RowCache
from server.engine.generation.sampling import choose
from server.engine.generation.schedule import PASS_TOKENS, group_by_length, place_survivors, prefill_budget
from server.engine.generation.sequence import GenerationSequence
from server.engine.lora import Adapters

_HEADROOM_TOKENS = 128  # of each row, so that an admitted sequence is not preempted at once

_LOG = logging.getLogger(__name__)


class GenerationObserver(Protocol):
    """Receives the measurements of generation."""

    def record_step(self, rows: int, seconds: float) -> None:
        """Record a step that gave `rows` sequences a token each."""


@dataclass(slots=True)
class _LongPrefill:
    """A sequence whose prompt is read in pieces."""

    sequence: GenerationSequence
    cache: RowCache


@dataclass(slots=True, eq=False)
class _Prefilled:
    """Sequences with their first token, and their rows in a cache of their own: ready to decode."""

    sequences: list[GenerationSequence]
    cache: RowCache
    rows: list[int]

    def remove(self, sequence: GenerationSequence) -> None:
        self.rows.pop(self.sequences.index(sequence))
        self.sequences.remove(sequence)


class Batch:
    """The sequences in the model: at most one is read in pieces, the others decode. At most `max_prompts` prompts are
    read in one pass. `max_tokens`: those that its KV cache has memory for, padding included."""

    def __init__(
        self,
        forward: BatchedForward,
        max_rows: int,
        max_prompts: int,
        max_tokens: int,
        observer: GenerationObserver,
        adapters: Adapters,
    ) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens  # set from another thread when another model is loaded or removed
        self._max_prompts = max_prompts
        self._forward = forward
        self._observer = observer
        self._adapters = adapters
        self._sequences: list[GenerationSequence] = []  # in the order of their rows
        self._long: _LongPrefill | None = None
        self._admissions = 0

    @property
    def busy(self) -> bool:
        return bool(self._sequences or self._long)

    @property
    def room(self) -> int:
        """Return how many more sequences can be admitted."""
        return self.max_rows - len(self._sequences) - (self._long is not None)

    @property
    def cached_tokens(self) -> int:
        """Return how many tokens the KV cache has memory for, padding included. Any thread may call it."""
        return self._forward.room_tokens

    def reset(self) -> None:
        self._sequences, self._long = [], None
        self._forward.clear()

    @torch.inference_mode()
    def step(self, waiting: deque[GenerationSequence]) -> None:
        """Prefill waiting sequences for a bounded number of tokens, then decode a token for each row."""
        stay = [row for row, sequence in enumerate(self._sequences) if not sequence.ended]
        joining = self._prefill(waiting, [self._sequences[row] for row in stay])
        self._preempt(stay, joining, waiting)
        if joining or len(stay) < len(self._sequences):
            self._compose(place_survivors(stay), joining)
        if self._sequences:
            self._decode()

    def _compose(self, kept: list[int], joining: list[_Prefilled]) -> None:
        self._sequences = [self._sequences[row] for row in kept]
        for one in joining:
            self._sequences += one.sequences
        width = max((len(sequence.ids) - 1 for sequence in self._sequences), default=0)
        joining_rows: list[JoiningRows] = [(one.cache, one.rows) for one in joining]
        self._forward.compose(kept, joining_rows, width, RoomLimit(self.max_rows, self.max_tokens))

    def _decode(self) -> None:
        started = time.perf_counter()
        ids = [sequence.ids for sequence in self._sequences]
        self._adapters.set_rows([one.adapter for one in self._sequences])
        logits = self._forward.decode([one[-1] for one in ids], [len(one) for one in ids])
        self._take(self._sequences, logits, started)

    def _take(self, sequences: list[GenerationSequence], logits: torch.Tensor, started: float) -> None:
        """Give each sequence its next token."""
        chosen = choose(logits, [sequence.sampling for sequence in sequences])
        for sequence, token in zip(sequences, chosen, strict=True):
            sequence.take(token)
        self._observer.record_step(len(chosen), time.perf_counter() - started)

    def _prefill(self, waiting: deque[GenerationSequence], decoding: list[GenerationSequence]) -> list[_Prefilled]:
        """Prefill a bounded number of tokens; return the sequences that are complete and ready to decode."""
        left = prefill_budget(len(waiting), len(decoding))
        present = decoding if self._long is None else [*decoding, self._long.sequence]
        done: list[_Prefilled] = []
        while left > 0:
            if self._long is not None:
                left -= self._prefill_piece(self._long, min(left, PASS_TOKENS), done)
                continue
            admitted = self._admit(waiting, present, left)
            if not admitted:
                break
            present = [*present, *admitted]
            lengths = [len(sequence.ids) for sequence in admitted]
            if lengths[0] > PASS_TOKENS:
                self._long = _LongPrefill(admitted[0], self._forward.create_cache(lengths[0]))
                continue
            left -= sum(lengths)
            for group in group_by_length(lengths, self._max_prompts):
                done += self._prefill_whole([admitted[number] for number in group])
        return [one for one in done if one.sequences]

    def _admit(
        self, waiting: deque[GenerationSequence], present: list[GenerationSequence], budget: int
    ) -> list[GenerationSequence]:
        """Take the next sequences that fit beside those in `present` and in `budget` tokens, or a long one alone."""
        admitted: list[GenerationSequence] = []
        while waiting:
            following = waiting[0]
            if following.ended:
                waiting.popleft()
                continue
            long = len(following.ids) > PASS_TOKENS
            budget -= len(following.ids)
            if (admitted if long else budget < 0) or not self._fits(following, [*present, *admitted]):
                break
            self._admissions += 1
            following.admitted = self._admissions
            admitted.append(waiting.popleft())
            if long:
                break
        return admitted

    def _prefill_whole(self, sequences: list[GenerationSequence]) -> list[_Prefilled]:
        """Prefill whole prompts in one pass; where the model fails, each alone, so that one fails by itself only."""
        started = time.perf_counter()
        self._adapters.set_rows([one.adapter for one in sequences])
        try:
            cache, logits = self._forward.prefill_together([one.ids for one in sequences])
        except RuntimeError as error:  # torch's, out of memory included
            if len(sequences) > 1:
                _LOG.warning(
                    "the model failed to read %d prompts at once, they are read alone: %r", len(sequences), error
                )
                return [one for sequence in sequences for one in self._prefill_whole([sequence])]
            self._fail(sequences[0], error)
            return []
        self._take(sequences, logits, started)
        rows = [row for row, sequence in enumerate(sequences) if not sequence.ended]
        return [_Prefilled([sequences[row] for row in rows], cache, rows)]

    def _prefill_piece(self, prefill: _LongPrefill, most: int, done: list[_Prefilled]) -> int:
        """Read the next tokens of a long prompt, at most `most`; return how many."""
        sequence, begin = prefill.sequence, prefill.cache.get_seq_length()
        if sequence.ended:
            self._long = None
            return 0
        piece = sequence.ids[begin : begin + most]
        started = time.perf_counter()
        self._adapters.set_rows([sequence.adapter])
        try:
            logits = self._forward.prefill(prefill.cache, piece)
        except RuntimeError as error:  # torch's, out of memory included: it fails this sequence only
            self._fail(sequence, error)
            self._long = None
            return len(piece)
        if begin + len(piece) == len(sequence.ids):
            self._long = None
            self._take([sequence], logits, started)
            done.append(_Prefilled([] if sequence.ended else [sequence], prefill.cache, [0]))
        return len(piece)

    def _fail(self, sequence: GenerationSequence, error: RuntimeError) -> None:
        _LOG.error("the model failed to read a prompt of %d tokens", len(sequence.ids), exc_info=error)
        sequence.job.fail(model_failed(error))

    def _fits(self, admitted: GenerationSequence, present: list[GenerationSequence]) -> bool:
        rows = len(present) + 1
        longest = max(len(sequence.ids) for sequence in (admitted, *present))
        return rows == 1 or (rows <= self.max_rows and self._has_memory(rows, longest + _HEADROOM_TOKENS))

    def _preempt(self, stay: list[int], joining: list[_Prefilled], waiting: deque[GenerationSequence]) -> None:
        """Return the newest sequences to `waiting` until the KV cache has memory for one more token of each row."""
        while True:
            present = [self._sequences[row] for row in stay] + [row for one in joining for row in one.sequences]
            if len(present) <= 1 or self._has_memory(len(present), max(len(sequence.ids) for sequence in present)):
                return
            newest = max(present, key=lambda sequence: sequence.admitted)
            waiting.appendleft(newest)
            owner = next((one for one in joining if newest in one.sequences), None)
            if owner is None:
                stay.remove(self._sequences.index(newest))
                continue
            owner.remove(newest)
            if not owner.sequences:
                joining.remove(owner)

    def _has_memory(self, rows: int, longest: int) -> bool:
        return rows * (longest + SPARE_COLUMNS) <= self.max_tokens
