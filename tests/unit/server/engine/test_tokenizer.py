from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from server.engine.tokenizer import GrowingText, Tokens
from server.engine.types import InvalidRequest


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> Any:
    """A tokenizer whose tokens are bytes."""
    return AutoTokenizer.from_pretrained(llama)


def grow(tokenizer: Any, text: str, stops: tuple[str, ...]) -> tuple[list[str], bool]:
    growing = GrowingText(tokenizer, tokenizer.encode("prompt"), stops)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(growing.push(token))
        if growing.stopped:
            break
    return [*pieces, growing.finish()], growing.stopped


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_the_pieces_are_the_text(tokenizer: Any, text: str) -> None:
    """Whatever bytes a character is made of, the pieces join to the text and none holds half a character."""
    pieces, stopped = grow(tokenizer, text, ())
    assert "".join(pieces) == text
    assert not stopped
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_beyond_the_first_stop_text_is_given_out(tokenizer: Any, text: str, stops: list[str]) -> None:
    """The pieces join to the text before the stop text that ends first, or to all of it where there is none."""
    pieces, stopped = grow(tokenizer, text, tuple(stops))
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if ends:
        seen = text[: min(ends)]
        assert "".join(pieces) == seen[: min(seen.index(stop) for stop in stops if stop in seen)]
    else:
        assert "".join(pieces) == text


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Any) -> None:
    """A text that ends inside a character ends with the replacement character, given out last."""
    growing = GrowingText(tokenizer, [5], ())
    first, *_ = tokenizer.encode("é")
    assert growing.push(first) == ""
    assert growing.finish() == "\ufffd"


@pytest.mark.parametrize("text", ["", "abc", "aé🎉"])
@pytest.mark.parametrize("kind", ["half a character", "special"])
def test_tokens_that_come_to_no_text_are_not_decoded_again_and_again(tokenizer: Any, kind: str, text: str) -> None:
    """A thousand of them cost as much each as the first few, and what is around them is text as ever."""
    token = tokenizer.bos_token_id if kind == "special" else tokenizer.encode("é")[0]
    decoded = 0

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(tokenizer.decode(ids, **options))

    growing = GrowingText(Counting(), tokenizer.encode("prompt"), ())
    ids = [*tokenizer.encode(text), *[token] * 1000, *tokenizer.encode(text)]
    pieces = [growing.push(one) for one in ids]
    assert "".join([*pieces, growing.finish()]) == tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded < 100 * len(ids)


class Words:
    """A tokenizer whose tokens are words; it remembers how much it was given to read."""

    read: ClassVar[list[int]] = []
    model_max_length = 10**30
    pad_token_id = bos_token_id = None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        self.read.append(len(text))
        return [0] * len(text.split())


@pytest.fixture
def words() -> Tokens:
    Words.read.clear()
    return Tokens(Words(), SimpleNamespace(vocab_size=1), 100)


def test_a_text_far_beyond_the_context_is_not_read_to_its_end(words: Tokens) -> None:
    """It is refused as soon as that is certain, for no other request's text is read until then."""
    with pytest.raises(
        InvalidRequest, match="maximum context length is 100 tokens, the request has more than"
    ) as caught:
        words.encode("a " * 1_000_000, "prompt")
    assert caught.value.code == "context_length_exceeded"
    assert sum(Words.read) < 10_000


def test_a_long_text_of_few_tokens_is_read_whole(words: Tokens) -> None:
    """What fits is answered, however many characters it has."""
    assert len(words.encode(" " * 100_000 + "a " * 99, "prompt", room=1)) == 99
    assert len(words.encode("a" * 100_000, "prompt")) == 1
