from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.generation.schedule import PASS_TOKENS, group_by_length, place_survivors, prefill_budget


@given(st.lists(st.integers(1, PASS_TOKENS), min_size=1, max_size=40), st.integers(1, 32))
def test_every_prompt_is_in_one_group_and_no_pass_is_too_large(lengths: list[int], most: int) -> None:
    """Groups divide the prompts; each has at most `most` rows, and at most PASS_TOKENS tokens with its padding."""
    groups = group_by_length(lengths, most)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) <= most
        assert len(group) * max(lengths[number] for number in group) <= PASS_TOKENS


def test_prompts_of_like_length_share_a_pass_and_a_far_longer_one_does_not() -> None:
    """Eight short prompts are one pass; a prompt of 400 tokens is not padded to by them."""
    assert group_by_length([30, 32, 28, 32, 31, 32, 9, 12], 32) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert group_by_length([12, 400, 9], 32) == [[1], [0, 2]]


@pytest.mark.parametrize(("waiting", "decoding"), [(0, 0), (1, 31), (31, 1), (1000, 0)])
def test_running_sequences_wait_for_a_bounded_number_of_tokens(waiting: int, decoding: int) -> None:
    """However many sequences wait, a step reads between one and four times 512 tokens."""
    assert 512 <= prefill_budget(waiting, decoding) <= 4 * 512


@given(st.sets(st.integers(0, 40)))
def test_surviving_rows_fill_the_front_and_move_only_from_behind(rows: set[int]) -> None:
    """The result has every surviving row once; each is at its old place, or comes from behind the survivors."""
    placed = place_survivors(sorted(rows))
    assert set(placed) == rows and len(placed) == len(rows)
    assert all(row in (place, max(row, len(rows))) for place, row in enumerate(placed))
