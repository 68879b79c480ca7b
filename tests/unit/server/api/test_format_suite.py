"""What both formats of a generation's answer promise: the whole and the pieces say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from server.api.formats import ChatFormat, ChoiceAnswer, CompletionFormat, Format
from server.engine.types import TokenLogprob

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
TOKENS = [TokenLogprob("Hé", -0.5, (("Hé", -0.5), ("Ho", -1.5))), TokenLogprob("llo", -0.25, (("llo", -0.25),))]
ANSWERS = [ChoiceAnswer("Héllo", "stop", TOKENS), ChoiceAnswer("", "length", [])]
CASES: dict[str, Callable[[str], Format]] = {"completion": CompletionFormat, "chat": ChatFormat}


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest) -> Callable[[str], Format]:
    return CASES[request.param]


def streamed(form: Format) -> list[dict[str, Any]]:
    """`ANSWERS`, piece by piece, as the API sends them."""
    pieces = [*form.opening(len(ANSWERS)), *(form.piece(0, token.text, [token]) for token in TOKENS)]
    pieces += [form.ending(index, answer.reason or "") for index, answer in enumerate(ANSWERS)]
    return [*pieces, form.usage(USAGE)]


def text_of(choice: dict[str, Any]) -> str:
    found = choice.get("text") or choice.get("message", choice.get("delta", {})).get("content")
    return str(found or "")


def test_everything_is_json(make: Callable[[str], Format]) -> None:
    """The whole and each piece can be sent as they are."""
    for each in (make("m").whole(ANSWERS, USAGE, logprobs=True), *streamed(make("m"))):
        assert json.loads(json.dumps(each)) == each


def test_one_answer_has_one_head(make: Callable[[str], Format]) -> None:
    """All pieces of an answer have one id, time, kind and model; another answer has another id."""
    form = make("acme/m")
    heads = {tuple(piece[key] for key in ("id", "object", "created", "model")) for piece in streamed(form)}
    assert len(heads) == 1
    whole = form.whole(ANSWERS, USAGE, logprobs=False)
    assert (whole["id"], whole["model"]) == (heads.pop()[0], "acme/m")
    assert make("acme/m").whole(ANSWERS, USAGE, logprobs=False)["id"] != whole["id"]


def test_the_pieces_join_to_the_whole(make: Callable[[str], Format]) -> None:
    """Each choice's pieces have its text and its reason, which comes once, with its last piece."""
    whole = make("m").whole(ANSWERS, USAGE, logprobs=False)["choices"]
    texts, reasons = {0: "", 1: ""}, dict[int, list[str]]()
    for piece in streamed(make("m")):
        for choice in piece["choices"]:
            assert choice["index"] not in reasons
            texts[choice["index"]] += text_of(choice)
            if choice["finish_reason"] is not None:
                reasons[choice["index"]] = choice["finish_reason"]
    assert [choice["index"] for choice in whole] == [0, 1]
    assert texts == {choice["index"]: text_of(choice) for choice in whole} == {0: "Héllo", 1: ""}
    assert reasons == {choice["index"]: choice["finish_reason"] for choice in whole} == {0: "stop", 1: "length"}


def test_logprobs_are_told_where_they_were_asked_for(make: Callable[[str], Format]) -> None:
    """Every token's text and logprob is in the whole and in its piece, and nowhere where it was not asked for."""
    (first, _) = make("m").whole(ANSWERS, USAGE, logprobs=True)["choices"]
    shown = json.dumps([piece["choices"][0]["logprobs"] for piece in streamed(make("m")) if piece["choices"]])
    for said in (json.dumps(first["logprobs"]), shown):
        assert all(json.dumps(token.text) in said and str(token.logprob) in said for token in TOKENS)
    assert all(each["logprobs"] is None for each in make("m").whole(ANSWERS, USAGE, logprobs=False)["choices"])
    assert make("m").piece(0, "Hé", [])["choices"][0]["logprobs"] is None


def test_usage_comes_with_the_whole_or_in_a_piece_of_its_own(make: Callable[[str], Format]) -> None:
    """A stream's usage is in its last piece, which has no choice."""
    assert make("m").whole(ANSWERS, USAGE, logprobs=False)["usage"] == USAGE
    *others, last = streamed(make("m"))
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert not any(piece.get("usage") for piece in others)
