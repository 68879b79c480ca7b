"""Decide how many prompt tokens a step reads, which prompts share a forward pass, and where surviving rows go.

Law: pure functions over numbers; knows neither sequences nor tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

_BUDGET_TOKENS = 512  # prefilled between two decode steps
_MOST_BUDGETS = 4
PASS_TOKENS = 512  # prefilled in one pass, padding included: bounds its memory
# Padding of one prompt that costs less than a pass of its own, which reads all weights once. On two CPU cores a pass of
# a Llama of 45M parameters takes as long as 30 tokens of a longer one; on a GPU it is more.
_MOST_PADDING = 64


def prefill_budget(waiting: int, decoding: int) -> int:
    """Return how many tokens to prefill before the next decode step: more where more sequences wait for their first
    token than for their next one, yet bounded, as every decoding sequence waits for it."""
    return _BUDGET_TOKENS * min(_MOST_BUDGETS, max(1, waiting // max(1, decoding)))


def group_by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Divide prompts into groups of at most `most`, each prefilled in one pass: numbers of `lengths`, in order within a
    group."""
    groups: list[list[int]] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        length = lengths[number]
        rows = len(groups[-1]) + 1 if groups else 0
        if not groups or rows > most or longest - length > _MOST_PADDING or rows * longest > PASS_TOKENS:
            groups.append([])
            longest = length
        groups[-1].append(number)
    return [sorted(group) for group in groups]


def place_survivors(rows: Sequence[int]) -> list[int]:
    """Order the rows that stay so that as few as possible move: row i of the result is the former row at its place, and
    each either stays or comes from behind the others."""
    staying = {row for row in rows if row < len(rows)}
    behind = [row for row in rows if row >= len(rows)]
    return [row if row in staying else behind.pop() for row in range(len(rows))]
