"""Check at warm-up that a model's batched logits are those of its plain forward pass.

Law: runs in the model's thread only, inside `torch.inference_mode`. Tokens are given, not chosen, so that near ties in
low precision do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from server.engine.generation.batched_forward import BatchedForward, JoiningRows
from server.engine.generation.kv_cache import RoomLimit

_LENGTHS = (9, 3, 14, 5)  # of the prompts, so that columns are padded, moved and cut
_STEPS = 3
_ALONE = ((0,), (1,), (2,))  # the prompts that join at the same time
_TOGETHER = ((0, 1), (2, 3))
_LIMIT = RoomLimit(rows=len(_LENGTHS), tokens=1 << 20)


class BatchCheck:
    """The plain forward pass of `module`, beside which `forward` is held. Differences are root mean squares relative to
    the spread of the logits; `forward` is empty afterwards."""

    def __init__(self, module: Any, forward: BatchedForward, vocabulary: int, device: str) -> None:
        self._module = module
        self._forward = forward
        self._device = device
        self._texts = [
            [(31 * row + 7 * place + 1) % vocabulary for place in range(length + _STEPS * len(_LENGTHS))]
            for row, length in enumerate(_LENGTHS)
        ]
        self._plain: dict[int, torch.Tensor] = {}  # each text's logits, (tokens, vocabulary)

    def difference_alone(self) -> float:
        """Return the largest difference where each prompt is prefilled alone, in two pieces."""
        return _largest(self._run(_ALONE))

    def difference_together(self) -> float:
        """Return the largest difference where prompts of unequal length are prefilled in one pass."""
        return _largest(self._run(_TOGETHER))

    def _run(self, groups: Sequence[Sequence[int]]) -> Iterator[float]:
        """Yield each difference, while rows join, decode, and the first of them leaves."""
        read = list(_LENGTHS)
        present: list[int] = []
        for group in groups:
            prompts = [self._texts[row][: read[row]] for row in group]
            joining, logits = self._prefill(prompts)
            yield from (self._difference(one, row, read[row]) for one, row in zip(logits, group, strict=True))
            last = len(present) - 1
            kept = [last, *range(1, last)] if last > 0 else list(range(len(present)))
            present = [*(present[row] for row in kept), *group]
            self._forward.compose(kept, [joining], max(read[row] for row in present), _LIMIT)
            for _ in range(_STEPS):
                tokens = [self._texts[row][read[row]] for row in present]
                for row in present:
                    read[row] += 1
                logits = self._forward.decode(tokens, [read[row] for row in present])
                yield from (self._difference(one, row, read[row]) for one, row in zip(logits, present, strict=True))
        self._forward.clear()

    def _prefill(self, prompts: list[list[int]]) -> tuple[JoiningRows, torch.Tensor]:
        if len(prompts) > 1:
            cache, logits = self._forward.prefill_together(prompts)
            return (cache, list(range(len(prompts)))), logits
        [prompt] = prompts
        cache, first = self._forward.create_cache(len(prompt)), len(prompt) // 2
        self._forward.prefill(cache, prompt[:first])
        return (cache, [0]), self._forward.prefill(cache, prompt[first:])

    def _difference(self, logits: torch.Tensor, row: int, read: int) -> float:
        """Compare the logits after `read` tokens of a text; one plain pass gives those after each of its tokens."""
        if row not in self._plain:
            ids = torch.tensor([self._texts[row]], device=self._device)
            self._plain[row] = self._module(input_ids=ids).logits[0].float()
        plain = self._plain[row][read - 1]
        return float((logits.float() - plain).norm() / (plain - plain.mean()).norm().clamp_min(1e-12))


def _largest(differences: Iterator[float]) -> float:
    """Return the largest; a NaN is one."""
    return max(differences, key=lambda difference: math.inf if math.isnan(difference) else difference)
