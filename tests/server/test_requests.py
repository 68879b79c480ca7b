from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.requests import (
    MAX_INPUTS,
    CompletionRequest,
    EmbeddingRequest,
    InvalidRequest,
    parse_completion,
    parse_embeddings,
)


def encode(**document: Any) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("given_input", "expected"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_every_form_of_input_is_read(given_input: object, expected: tuple[object, ...]) -> None:
    """Text, texts, token ids and lists of token ids become one tuple of prompts."""
    assert parse_embeddings(encode(input=given_input)) == EmbeddingRequest(None, expected, False)  # type: ignore[arg-type]  # the cases are of all types


def test_a_completion_has_openais_defaults() -> None:
    """What a request leaves out is what OpenAI documents: 16 tokens, temperature and top_p 1."""
    expected = CompletionRequest("m", ("x",), 16, 1.0, 1.0, None, (), False, False)
    assert parse_completion(encode(model="m", prompt="x"), None) == expected
    assert parse_completion(encode(model="m", prompt="x"), 4).max_tokens == 4


def test_neutral_values_of_unsupported_parameters_are_taken() -> None:
    """A client that spells out the defaults is served."""
    body = encode(prompt="x", n=1, best_of=1, echo=False, logprobs=None, presence_penalty=0, logit_bias={}, user="u")
    assert parse_completion(body, None).prompts == ("x",)


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["x"] * (MAX_INPUTS + 1)}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "x", "model": 3}, "model"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 101}, "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "temperature": 2.1}, "temperature"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "top_p": -0.1}, "top_p"),
        ({"prompt": "x", "seed": 1.5}, "seed"),
        ({"prompt": "x", "seed": 2**63}, "seed"),
        ({"prompt": "x", "stop": ["a"] * 5}, "stop"),
        ({"prompt": "x", "stop": ""}, "stop"),
        ({"prompt": "x", "stream": 1}, "stream"),
        ({"prompt": "x", "stream_options": {}}, "stream_options"),
        ({"prompt": "x", "stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ({"prompt": "x", "n": 2}, "n"),
        ({"prompt": "x", "logprobs": 0}, "logprobs"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "top_k": 5}, "top_k"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(document: dict[str, Any], param: str) -> None:
    """Every refusal names the parameter at fault."""
    with pytest.raises(InvalidRequest) as caught:
        parse_completion(encode(**document), 100)
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


@pytest.mark.parametrize("document", [{"input": "x", "dimensions": 8}, {"input": "x", "encoding_format": "int8"}])
def test_embeddings_refuse_what_they_cannot_do(document: dict[str, Any]) -> None:
    """Other dimensions and encodings are refused, not ignored."""
    with pytest.raises(InvalidRequest):
        parse_embeddings(encode(**document))


@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt", "stop", "seed", "n", "stream", "stream_options", "temperature"]), inner
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """No body makes the parser fail in another way than by refusing."""
    for parse in (lambda: parse_completion(body, 10), lambda: parse_embeddings(body)):
        try:
            parse()
        except InvalidRequest as error:
            assert error.message
