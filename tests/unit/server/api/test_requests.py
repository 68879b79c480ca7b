from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.requests import MAX_INPUTS, parse_chat, parse_completion, parse_embeddings
from server.engine.types import CompletionRequest, EmbeddingRequest, GenerationOptions, InvalidRequest, Sampling

_FIELDS = [
    *("prompt", "messages", "role", "content", "type", "text", "stop", "seed", "n", "logit_bias", "stream"),
    *("stream_options", "name"),
]
HELLO = [{"role": "user", "content": "hello"}]


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
    expected = CompletionRequest(("x",), GenerationOptions("m", 16, 1, Sampling(1.0, 1.0, None), (), False, False))
    assert parse_completion(encode(model="m", prompt="x"), None) == expected
    assert parse_completion(encode(model="m", prompt="x"), 4).options.max_tokens == 4


def test_a_chat_has_openais_defaults() -> None:
    """A chat may go on for as long as the context has room; its messages are as they came, `developer` is `system`."""
    found = parse_chat(encode(messages=[{"role": "developer", "content": "be kind"}, *HELLO]), None)
    assert found.messages == ({"role": "system", "content": "be kind"}, *HELLO)
    assert found.options == GenerationOptions(None, None, 1, Sampling(1.0, 1.0, None), (), False, False)


def test_parts_of_text_are_one_text() -> None:
    """Content in parts is what it says when joined."""
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert parse_chat(encode(messages=[{"role": "user", "content": parts}]), None).messages == tuple(HELLO)


def test_both_names_of_the_most_tokens_are_read() -> None:
    """`max_completion_tokens` and its older name `max_tokens` mean the same."""
    for name in ("max_tokens", "max_completion_tokens"):
        assert parse_chat(encode(messages=HELLO, **{name: 7}), None).options.max_tokens == 7


def test_logprobs_are_asked_for_in_two_ways() -> None:
    """A completion gives a number, a chat a yes and a number."""
    assert parse_completion(encode(prompt="x", logprobs=0), None).options.sampling.logprobs == 0
    assert parse_completion(encode(prompt="x"), None).options.sampling.logprobs is None
    assert parse_chat(encode(messages=HELLO, logprobs=True), None).options.sampling.logprobs == 0
    assert parse_chat(encode(messages=HELLO, logprobs=True, top_logprobs=4), None).options.sampling.logprobs == 4


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
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": ["x"] * 1000, "n": 3}, "n"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "presence_penalty": 3}, "presence_penalty"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": []}, "logit_bias"),
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


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_completion_tokens": 101}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_what_no_chat_can_answer_is_refused_by_name(document: dict[str, Any], param: str) -> None:
    """Every refusal of a chat names the parameter at fault."""
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(encode(**{"messages": HELLO, **document}), 100)
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


def test_neutral_values_of_a_chat_are_taken() -> None:
    """A client that spells out what it does not use is served."""
    body = encode(
        messages=HELLO,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        n=1,
        logprobs=False,
        store=False,
        service_tier="auto",
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    assert parse_chat(body, None).options.stream_usage


@pytest.mark.parametrize(
    "document",
    [
        {"dimensions": 0},
        {"dimensions": "8"},
        {"encoding_format": "int8"},
        {"truncate": "END"},
        {"truncate": 1},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2},
        {"truncate_prompt_tokens": 4, "truncate": False},
        {"truncation_direction": "Right"},
        {"truncate": True, "truncation_direction": "middle"},
        {"prompt_name": 3},
        {"input_type": "classification"},
        {"normalize": "yes"},
        {"prompt": "Query: "},
    ],
)
def test_embeddings_refuse_what_they_cannot_do(document: dict[str, Any]) -> None:
    """A value that an embedding's field does not take is refused by the field's name, not ignored."""
    with pytest.raises(InvalidRequest):
        parse_embeddings(encode(**document))


@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(_FIELDS),
                inner,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """No body makes the parser fail in another way than by refusing."""
    for parse in (lambda: parse_completion(body, 10), lambda: parse_chat(body, 10), lambda: parse_embeddings(body)):
        try:
            parse()
        except InvalidRequest as error:
            assert error.message
