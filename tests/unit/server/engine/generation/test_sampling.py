from __future__ import annotations

import math

import pytest
import torch

from server.engine.generation import sampling
from server.engine.generation.sampling import Chosen, SamplingState
from server.engine.types import Sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def choose(logits: torch.Tensor, rows: list[SamplingState]) -> list[Chosen]:
    chosen = [one for one in sampling.choose(logits, rows) if one is not None]
    assert len(chosen) == len(rows)
    return chosen


def drawn(asked: Sampling, times: int) -> list[int]:
    one = SamplingState(asked, 0)
    one.generated.clear()
    return [choose(LOGITS, [one])[0].token for _ in range(times)]


def test_temperature_zero_takes_the_likeliest() -> None:
    """Greedy needs no random numbers."""
    assert drawn(Sampling(temperature=0.0), 3) == [0, 0, 0]
    assert drawn(Sampling(top_p=0.0), 3) == [0, 0, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature: float) -> None:
    """Frequencies of many draws are the softmax of the logits over the temperature."""
    times = 4000
    tokens = drawn(Sampling(temperature=temperature, seed=1), times)
    expected = (LOGITS[0] / temperature).softmax(-1).tolist()
    for token, probability in enumerate(expected):
        assert abs(tokens.count(token) / times - probability) < 5 * math.sqrt(probability / times)


def test_top_p_keeps_the_likeliest_that_reach_it() -> None:
    """With top_p 0.8 the two tokens of 0.64 and 0.24 are drawn and no others."""
    assert set(drawn(Sampling(top_p=0.8, seed=1), 500)) == {0, 1}


def test_penalties_count_what_was_said() -> None:
    """A presence penalty takes off once, a frequency penalty each time: greedy goes on to the next token."""
    assert drawn(Sampling(temperature=0.0, presence_penalty=1.5), 3) == [0, 1, 0]
    assert drawn(Sampling(temperature=0.0, frequency_penalty=0.6), 5) == [0, 0, 1, 0, 1]


def test_a_bias_bans_and_forces_tokens() -> None:
    """-100 is never drawn, 100 always."""
    assert 0 not in drawn(Sampling(seed=1, logit_bias=((0, -100.0),)), 300)
    assert set(drawn(Sampling(seed=1, logit_bias=((3, 100.0),)), 50)) == {3}


def test_a_row_draws_the_same_beside_any_others() -> None:
    """Row by row the tokens are those of each alone, whatever the order of the rows."""
    settings = [Sampling(seed=1), Sampling(temperature=0.3, seed=2), Sampling(top_p=0.5, seed=3), Sampling(seed=4)]
    logits = torch.randn((4, 50), generator=torch.Generator().manual_seed(0))
    alone = [choose(logits[row : row + 1], [SamplingState(one, 0)])[0].token for row, one in enumerate(settings)]
    together = choose(logits, [SamplingState(one, 0) for one in settings])
    assert [one.token for one in together] == alone
    backwards = choose(logits.flip(0), [SamplingState(one, 0) for one in reversed(settings)])
    assert [one.token for one in reversed(backwards)] == alone


def test_a_logit_of_minus_infinity_is_a_number_in_the_answer() -> None:
    """JSON has no infinity: the least logarithm told is -9999."""
    [chosen] = choose(torch.tensor([[0.0, -math.inf]]), [SamplingState(Sampling(temperature=0.0, logprobs=2), 0)])
    assert chosen.top == ((0, 0.0), (1, -9999.0))


@pytest.mark.parametrize(
    "asked", [Sampling(temperature=0.0), Sampling(seed=1, logprobs=2), Sampling(top_p=0.5, seed=1)]
)
@pytest.mark.parametrize("bad", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_that_are_no_numbers_choose_nothing(asked: Sampling, bad: list[float]) -> None:
    """A row of NaN or infinities gets no token; the rows beside it get theirs."""
    first, none, last = sampling.choose(
        torch.tensor([[9.0, 0.0, 0.0], bad, [0.0, 0.0, 99.0]]), [SamplingState(asked, 0)] * 3
    )
    assert none is None
    assert first is not None and last is not None and last.token == 2
