"""Continuous batching: sequences join and leave the running batch between two tokens.

Law: runs in the model's thread only. A newcomer is read alone, in pieces so that the others go on, then joins; a row
that ends or is given up leaves before the next step. Where memory gets short the newest is set aside and read again
later, with the same dice: nobody else notices.

transformers has continuous batching of its own (`generate_batch`, `init_continuous_batching`). As of 5.23 it samples
all requests from one generator by one setting of `do_sample`, so a seed means nothing and greedy and sampled requests
cannot share a batch; it has neither stop texts nor penalties per request; it takes its cache's memory whole at the
start and needs psutil on a CPU. Here (a Llama of 42M parameters, two cores, 8 requests of 32 + 64 tokens) it made 361
tokens/s once warm, transformers' own static batch 428, `generate` alone 54. So the model's forward, its masks and its
cache's interface are transformers', and the rows are ours.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import torch

from server.engine.engine import model_failed
from server.engine.generation.batched_forward import Rows
from server.engine.generation.kv_cache import SPARE_COLUMNS, RowCache
from server.engine.generation.sampling import choose
from server.engine.generation.sequence import Sequence
from server.engine.lora import Adapters

_READ_TOKENS = 512  # of newcomers, between two tokens of those that are there
_HEADROOM_TOKENS = 128  # of each row, so that a newcomer is not set aside at once


_LOG = logging.getLogger(__name__)


class Observer(Protocol):
    """Who is told how generation goes."""

    def generated(self, rows: int, seconds: float) -> None:
        """So many sequences got a token each, in so many seconds of one step."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most rows of a batch, and the most tokens its cache has memory for, padding included."""

    rows: int
    tokens: int


@dataclass(slots=True)
class _Reading:
    """A newcomer of which the first tokens are read, or all of them: then it has its first own token too."""

    sequence: Sequence
    cache: RowCache
    whole: bool = False


class Batch:
    """The sequences in the model."""

    def __init__(self, rows: Rows, bounds: Bounds, observer: Observer, adapters: Adapters) -> None:
        self.bounds = bounds  # set from another thread when other models come or go
        self._rows = rows
        self._observer = observer
        self._adapters = adapters
        self._sequences: list[Sequence] = []
        self._reading: _Reading | None = None

    @property
    def busy(self) -> bool:
        return bool(self._sequences or self._reading)

    @property
    def room(self) -> int:
        """How many more sequences may come."""
        return self.bounds.rows - len(self._sequences) - (self._reading is not None)

    @property
    def tokens(self) -> int:
        """How many tokens its cache holds, padding included, as seen from any thread."""
        sequences = self._sequences
        return len(sequences) * (max((len(one.ids) for one in sequences), default=0) + SPARE_COLUMNS)

    def reset(self) -> None:
        self._sequences, self._reading = [], None
        self._rows.compose([], [], 0)

    @torch.inference_mode()
    def step(self, waiting: deque[Sequence]) -> None:
        """Read what there is time for of those who wait, then a token for each row."""
        kept = [row for row, sequence in enumerate(self._sequences) if not sequence.over]
        stay = [self._sequences[row] for row in kept]
        newcomers = self._read(waiting, stay)
        self._set_aside(stay, newcomers, waiting)
        if newcomers or len(stay) < len(self._sequences):
            self._sequences = [*stay, *(one.sequence for one in newcomers)]
            width = max((len(sequence.ids) - 1 for sequence in self._sequences), default=0)
            self._rows.compose(kept[: len(stay)], [one.cache for one in newcomers], width)
        if self._sequences:
            self._decode()

    def _decode(self) -> None:
        started = time.perf_counter()
        ids = [sequence.ids for sequence in self._sequences]
        self._adapters.use([one.adapter for one in self._sequences])
        logits = self._rows.decode([one[-1] for one in ids], [len(one) for one in ids])
        chosen = choose(logits, [sequence.dice for sequence in self._sequences])
        for sequence, token in zip(self._sequences, chosen, strict=True):
            sequence.take(token)
        self._observer.generated(len(chosen), time.perf_counter() - started)

    def _read(self, waiting: deque[Sequence], there: list[Sequence]) -> list[_Reading]:
        """Read newcomers, a bounded number of tokens; returns those that have their first token and want more."""
        left = _READ_TOKENS
        read: list[_Reading] = []
        while left > 0:
            reading = self._reading
            if reading is None:
                if not waiting or not self._fits(waiting[0], [*there, *(one.sequence for one in read)]):
                    break
                reading = self._reading = _Reading(waiting.popleft(), self._rows.fresh())
            if not reading.sequence.over:
                left -= self._read_piece(reading, left)
            if reading.sequence.over:
                self._reading = None
            elif reading.whole:
                self._reading = None
                read.append(reading)
        return read

    def _read_piece(self, reading: _Reading, most: int) -> int:
        sequence, begin = reading.sequence, reading.cache.get_seq_length()
        piece = sequence.ids[begin : begin + most]
        started = time.perf_counter()
        self._adapters.use([sequence.adapter])
        try:
            logits = self._rows.read(reading.cache, piece)
        except RuntimeError as error:  # torch's; out of memory is one: nobody else need fail for it
            _LOG.exception("the model failed to read a prompt of %d tokens", len(sequence.ids))
            sequence.job.fail(model_failed(error))
            return len(piece)
        if begin + len(piece) == len(sequence.ids):
            reading.whole = True
            [chosen] = choose(logits, [sequence.dice])
            sequence.take(chosen)
            self._observer.generated(1, time.perf_counter() - started)
        return len(piece)

    def _fits(self, newcomer: Sequence, there: list[Sequence]) -> bool:
        rows = len(there) + 1
        longest = max(len(sequence.ids) for sequence in (newcomer, *there))
        return rows == 1 or (rows <= self.bounds.rows and self._has_memory(rows, longest + _HEADROOM_TOKENS))

    def _set_aside(self, stay: list[Sequence], newcomers: list[_Reading], waiting: deque[Sequence]) -> None:
        """Put the newest back where there is no memory for another token of all."""
        while (rows := len(stay) + len(newcomers)) > 1:
            longest = max(len(sequence.ids) for sequence in (*stay, *(one.sequence for one in newcomers)))
            if self._has_memory(rows, longest):
                break
            waiting.appendleft(newcomers.pop().sequence if newcomers else stay.pop())

    def _has_memory(self, rows: int, longest: int) -> bool:
        return rows * (longest + SPARE_COLUMNS) <= self.bounds.tokens
