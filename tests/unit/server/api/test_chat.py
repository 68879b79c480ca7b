from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest
import transformers

from server.engine.generation.generator import TextGenerator
from server.engine.types import ChatRequest, InvalidRequest
from tests.support.generating import Watched, completion, limits
from tests.support.serving import ServerProcess, eventually

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What anchors kelp?"},
]
NO_END: dict[str, int] = {"1": -100}  # the end token never comes


@pytest.fixture
def client(completions_server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{completions_server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "acme/tiny", "messages": MESSAGES, "max_tokens": 20, **more})


def test_a_greedy_answer_is_that_of_plain_transformers(client: openai.OpenAI, chat_llama: Path) -> None:
    """The conversation is written by the model's own chat template, and nothing is added to it."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(chat_llama)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(chat_llama)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=1)[0]
    new = out[inputs["input_ids"].shape[1] :]
    answer = ask(client, temperature=0)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == tokenizer.decode(new, skip_special_tokens=True)
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.usage.completion_tokens == len(new)
    assert answer.object == "chat.completion"


def test_a_stream_says_whose_text_it_is_and_joins_to_the_answer(client: openai.OpenAI) -> None:
    """The role comes first, the pieces are the text, one finish reason, the usage last."""
    whole = ask(client, seed=3)
    chunks = list(ask(client, seed=3, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert deltas[0].delta.role == "assistant"
    assert "".join(one.delta.content or "" for one in deltas) == whole.choices[0].message.content
    assert [one.finish_reason for one in deltas if one.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_several_choices_are_streamed_by_index(client: openai.OpenAI) -> None:
    """`n` choices come mixed, each with its own role, text and end."""
    whole = ask(client, seed=5, n=3)
    texts = ["", "", ""]
    roles, ends = [], []
    for chunk in ask(client, seed=5, n=3, stream=True):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role else []
        ends += [choice.index] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(roles) == sorted(ends) == [0, 1, 2]
    assert whole.usage.completion_tokens > 20


def test_the_most_tokens_have_two_names(client: openai.OpenAI) -> None:
    """`max_completion_tokens` bounds the answer as `max_tokens` does."""
    answer = client.chat.completions.create(
        model="acme/tiny", messages=MESSAGES, max_completion_tokens=4, logit_bias={"1": -100}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.choices[0].finish_reason == "length"


def test_without_a_limit_an_answer_ends_with_the_context(client: openai.OpenAI) -> None:
    """A chat that gives no most number of tokens may use what the context has left."""
    long: list[Any] = [{"role": "user", "content": "x" * 4060}]
    answer = client.chat.completions.create(model="acme/tiny", messages=long, logit_bias=NO_END)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4096
    assert answer.choices[0].finish_reason == "length"


def test_logprobs_tell_each_token(client: openai.OpenAI) -> None:
    """There is an entry for each token, with as many likely ones as asked, in a stream too."""
    answer = ask(client, seed=1, logprobs=True, top_logprobs=2, max_tokens=8, logit_bias=NO_END)
    content = answer.choices[0].logprobs.content
    assert len(content) == 8
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in content)
    streamed: list[Any] = []
    for chunk in ask(client, seed=1, logprobs=True, top_logprobs=2, max_tokens=8, logit_bias=NO_END, stream=True):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [one.token for one in streamed] == [one.token for one in content]


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    """The answer ends before the stop text, and the reason is `stop`."""
    full = ask(client, seed=5, max_tokens=40, logit_bias=NO_END).choices[0].message.content
    stop = full[5:8]
    [choice] = ask(client, seed=5, max_tokens=40, logit_bias=NO_END, stop=[stop]).choices
    assert choice.message.content == full[: full.index(stop)]
    assert choice.finish_reason == "stop"


def test_the_template_is_given_what_a_request_sets(client: openai.OpenAI) -> None:
    """`chat_template_kwargs` reach the template: this one writes louder, and the answer is another."""
    plain = ask(client, temperature=0, max_tokens=30)
    loud = ask(client, temperature=0, max_tokens=30, extra_body={"chat_template_kwargs": {"shout": True}})
    assert loud.choices[0].message.content != plain.choices[0].message.content


def test_what_the_template_refuses_is_a_bad_request(client: openai.OpenAI) -> None:
    """A conversation the model's template raises for is a 400 with the template's own words."""
    twice: list[Any] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(openai.BadRequestError, match="roles must alternate") as caught:
        ask(client, messages=twice)
    assert caught.value.param == "messages"


def test_tools_and_formats_are_refused_by_name(client: openai.OpenAI) -> None:
    """What is not supported is a 400 that names the parameter."""
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {}}}
    for more in ({"tools": [tool]}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **more)
        assert caught.value.param in more


def test_a_model_without_a_template_cannot_chat(llama: Path) -> None:
    """Where the tokenizer has no chat template a chat is refused with the way out; completions go on."""
    generator = TextGenerator.load(llama, "cpu", "float32", limits(), Watched())
    assert not generator.about.chat
    wanted = completion("x").options
    with pytest.raises(InvalidRequest, match="/v1/completions") as caught:
        generator.prepare(ChatRequest(tuple(MESSAGES), {}, wanted))
    assert caught.value.code == "no_chat_template"
    assert generator.prepare(completion("x")).prompts == ((89,),)


def test_closing_a_stream_cancels_its_generation(client: openai.OpenAI, completions_server: ServerProcess) -> None:
    """A client that closes its stream has its row freed long before the tokens that were asked for."""
    stream = ask(client, stream=True, max_tokens=3900, seed=1, logit_bias=NO_END)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    running = 'holdfast_server_queue_running{model="acme/tiny"}'
    gone = 'holdfast_server_requests_total{endpoint="/v1/chat/completions",model="acme/tiny",status="499"}'
    eventually(lambda: completions_server.metric(gone) >= 1, "the request is over")
    eventually(lambda: completions_server.metric(running) == 0, "the model is free")


def test_models_say_that_they_chat(completions_server: ServerProcess) -> None:
    """`/v1/models` tells whether a model has a chat template, and how many sequences it works on at once."""
    with urllib.request.urlopen(f"{completions_server.url}/v1/models", timeout=120) as answer:
        [model] = json.loads(answer.read())["data"]
    assert model["chat"] is True
    assert model["batch"] == 32
