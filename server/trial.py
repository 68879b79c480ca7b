"""Try whether a model's logits are the same in a batch as alone: the question that decides how it is served.

Law: runs in the model's thread only, inside `torch.inference_mode`, before any request. Asserts nothing: measures.
"""

from __future__ import annotations

from typing import Any

import torch

from server.rows import Rows

_LENGTHS = (9, 3, 14)  # of the prompts: shorter than the first, then longer, so that columns are padded and moved
_STEPS = 3


def largest_difference(module: Any, rows: Rows, vocabulary: int, device: str) -> float:
    """The largest root mean square difference of logits in a batch from those alone, as a part of their spread.

    Rows join while others run, one leaves, one is read in two pieces. Tokens are given, not chosen, so that near ties
    in low precision do not matter. Leaves `rows` empty.
    """
    texts = [
        [(31 * row + 7 * place + 1) % vocabulary for place in range(length + 3 * _STEPS)]
        for row, length in enumerate(_LENGTHS)
    ]
    worst = 0.0

    def compare(logits: torch.Tensor, tokens: list[int]) -> None:
        nonlocal worst
        alone = module(input_ids=torch.tensor([tokens], device=device)).logits[0, -1].float()
        difference = (logits.float() - alone).norm() / (alone - alone.mean()).norm().clamp_min(1e-12)
        # Not `max`, which loses a NaN.
        worst = float(difference) if not float(difference) <= worst else worst

    read = list(_LENGTHS)
    present: list[int] = []
    for newcomer, kept in ((0, []), (1, [0]), (2, [1])):
        cache = rows.fresh()
        first = _LENGTHS[newcomer] // 2
        rows.read(cache, texts[newcomer][:first])
        compare(rows.read(cache, texts[newcomer][first : read[newcomer]])[0], texts[newcomer][: read[newcomer]])
        present = [present[row] for row in kept] + [newcomer]
        rows.compose(kept, [cache], max(read[row] for row in present))
        for _ in range(_STEPS):
            tokens = [texts[row][read[row]] for row in present]
            for row in present:
                read[row] += 1
            logits = rows.decode(tokens, [read[row] for row in present])
            for number, row in enumerate(present):
                compare(logits[number], texts[row][: read[row]])
    rows.compose([], [], 0)
    return worst
