from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch
import transformers

from cached.contract.snapshot.lease import is_held
from server.engine.generation.generator import TextGenerator
from tests.support.generating import Watched, limits
from tests.support.serving import Published, ServerProcess, eventually

PROMPT = "Holdfasts anchor kelp"


@pytest.fixture
def client(completions_server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{completions_server.url}/v1", api_key="none", max_retries=0)


def plain_greedy(directory: Path, prompt: str, tokens: int) -> tuple[str, int, bool]:
    """Text, number of tokens and whether an end token came, by plain transformers."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=1)[0]
    new = out[inputs["input_ids"].shape[1] :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text, len(new), new[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("tokens", [1, 40])
def test_greedy_text_equals_plain_transformers(client: openai.OpenAI, llama: Path, tokens: int) -> None:
    """At temperature 0 text, usage and finish reason are those of plain transformers on the same files."""
    text, count, ended = plain_greedy(llama, PROMPT, tokens)
    answer = client.completions.create(model="acme/tiny", prompt=PROMPT, max_tokens=tokens, temperature=0)
    assert answer.choices[0].text == text
    assert answer.choices[0].finish_reason == ("stop" if ended else "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == count
    assert answer.usage.prompt_tokens == len(PROMPT)


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    """Streamed pieces join to the text of the whole answer, with one finish reason and the usage last."""
    whole = client.completions.create(model="acme/tiny", prompt=PROMPT, max_tokens=60, seed=3)
    chunks = list(
        client.completions.create(
            model="acme/tiny", prompt=PROMPT, max_tokens=60, seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [c.choices[0] for c in chunks if c.choices]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert [p.finish_reason for p in pieces if p.finish_reason] == [whole.choices[0].finish_reason]
    assert len(pieces) > 5
    assert chunks[-1].usage == whole.usage


def test_a_stream_ends_with_done(completions_server: ServerProcess) -> None:
    """Server-sent events, each `data: …` and an empty line, end with `data: [DONE]`."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": 3, "stream": True}).encode()
    with urllib.request.urlopen(f"{completions_server.url}/v1/completions", data=body, timeout=120) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        events = answer.read().split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(event.startswith(b"data: {") for event in events[:-2])


def test_a_seed_repeats_and_no_seed_does_not(client: openai.OpenAI) -> None:
    """The same seed gives the same text; without one, texts differ."""

    def ask(seed: int | None) -> str:
        answer = client.completions.create(model="acme/tiny", prompt=PROMPT, max_tokens=24, temperature=1, seed=seed)
        return answer.choices[0].text

    assert ask(11) == ask(11)
    assert len({ask(None) for _ in range(3)}) > 1


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    """The answer ends before the first stop text, in a stream too, and the reason is `stop`."""
    full = client.completions.create(model="acme/tiny", prompt=PROMPT, max_tokens=40, seed=5).choices[0].text
    stop = full[6:9]
    request: dict[str, Any] = {"model": "acme/tiny", "prompt": PROMPT, "max_tokens": 40, "seed": 5, "stop": stop}
    answer = client.completions.create(**request)
    assert answer.choices[0].text == full[: full.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**request, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == full[: full.index(stop)]


def test_several_prompts_have_a_choice_each(client: openai.OpenAI) -> None:
    """Text and token prompts in one request are answered by index, each as if it were alone."""
    prompts = ["one", "two two"]
    answer = client.completions.create(model="acme/tiny", prompt=prompts, max_tokens=8, temperature=0)
    alone = [client.completions.create(model="acme/tiny", prompt=p, max_tokens=8, temperature=0) for p in prompts]
    assert [c.text for c in answer.choices] == [a.choices[0].text for a in alone]
    assert [c.index for c in answer.choices] == [0, 1]


def test_a_prompt_beyond_the_context_is_refused(client: openai.OpenAI) -> None:
    """Prompt and `max_tokens` together must fit the context, also when streaming is asked for."""
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="acme/tiny", prompt="x" * 4000, max_tokens=97, stream=stream)
        assert caught.value.code == "context_length_exceeded"
    answer = client.completions.create(model="acme/tiny", prompt="x" * 4094, max_tokens=2, temperature=0)
    assert answer.usage is not None


def test_embeddings_of_a_language_model_are_refused(client: openai.OpenAI) -> None:
    """The wrong kind of request is a 400 that says what the model answers."""
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.embeddings.create(model="acme/tiny", input="x")


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    """A request for a model that is not served here is a 404 with OpenAI's code."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="acme/other", prompt="x")
    assert caught.value.code == "model_not_found"


def test_unsupported_parameters_are_refused_by_name(client: openai.OpenAI) -> None:
    """What would change the answer and is not supported is a 400 that names it, never ignored."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="acme/tiny", prompt="x", suffix="y")
    assert caught.value.param == "suffix"


def test_a_body_beyond_the_limit_is_refused(completions_server: ServerProcess) -> None:
    """A body over --body-limit is a 413 in OpenAI's shape."""
    body = json.dumps({"prompt": "x" * 70_000}).encode()
    with pytest.raises(urllib.request.HTTPError) as caught:
        urllib.request.urlopen(f"{completions_server.url}/v1/completions", data=body, timeout=120)
    with caught.value as error:
        assert error.code == 413
        assert json.loads(error.read())["error"]["type"] == "invalid_request_error"


def test_models_tells_name_version_and_digest(client: openai.OpenAI, published_llama: Published) -> None:
    """`/v1/models` has the name from the cache's path, its version, and the snapshot's digest."""
    [model] = client.models.list().data
    assert model.id == "acme/tiny"
    extra: Any = model
    assert extra.version == "v1"
    assert extra.digest == f"sha256:{published_llama.snapshot.name}"
    assert client.models.retrieve("acme/tiny").id == "acme/tiny"


def test_the_lease_is_held_while_serving(completions_server: ServerProcess, published_llama: Published) -> None:
    """An eviction cannot take the snapshot that is served."""
    assert completions_server.process.poll() is None
    assert is_held(published_llama.lease)


def test_metrics_have_bounded_labels(completions_server: ServerProcess) -> None:
    """Unknown paths share one label, the model is described with its digest, and the process metrics are there."""
    completions_server.get("/nobody/knows/1")
    completions_server.get("/nobody/knows/2")
    text = completions_server.get("/metrics")[1]
    assert 'endpoint="other",model="",status="404"' in text
    assert "nobody" not in text
    assert "process_resident_memory_bytes" in text
    [described] = [line for line in text.splitlines() if line.startswith("holdfast_server_model_info{")]
    assert 'model="acme/tiny"' in described
    assert 'digest="sha256:' in described
    assert 'holdfast_server_load_seconds{stage="load"}' in text


def test_a_client_that_hangs_up_cancels_its_generation(completions_server: ServerProcess) -> None:
    """After a disconnect the model is free long before the tokens that were asked for."""
    tokens = 'holdfast_server_tokens_total{kind="completion",model="acme/tiny"}'
    gone = 'holdfast_server_requests_total{endpoint="/v1/completions",model="acme/tiny",status="499"}'
    before, gone_before = completions_server.metric(tokens), completions_server.metric(gone)
    address = urlsplit(completions_server.url)
    assert address.hostname is not None
    body = json.dumps(
        {"prompt": "x", "max_tokens": 4000, "stream": True, "seed": 1, "logit_bias": {"1": -100}}
    ).encode()
    with socket.create_connection((address.hostname, address.port or 0)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    running = 'holdfast_server_queue_running{model="acme/tiny"}'
    eventually(lambda: completions_server.metric(gone) == gone_before + 1, "the request is over")
    eventually(lambda: completions_server.metric(running) == 0, "the model is free")
    assert completions_server.metric("holdfast_server_in_flight") == 0
    assert completions_server.metric(tokens) < before + 4000


def test_a_bfloat16_model_is_batched(gpt2: Path) -> None:
    """GPT-2 in bfloat16 passes its dummy inference and the trial of its batches; its context is config.json's."""
    generator = TextGenerator.load(gpt2, "cpu", "auto", limits(), Watched())
    generator.warm_up()
    assert generator.about.dtype == "bfloat16"
    assert generator.about.context == 128
    assert generator.about.batch == 8
    assert torch.is_grad_enabled()


def test_numbers_of_a_model_are_told(client: openai.OpenAI, completions_server: ServerProcess) -> None:
    """Time to the first token, tokens a second, the wait and the batch are measured for the model by name."""
    client.completions.create(model="acme/tiny", prompt=PROMPT, max_tokens=5, logit_bias={"1": -100})
    for name in ("first_token_seconds", "choice_tokens_per_second", "queue_seconds", "batch_sequences", "step_seconds"):
        assert completions_server.metric(f'holdfast_server_{name}_count{{model="acme/tiny"}}') >= 1, name


def _lines_of(server: ServerProcess, request_id: str) -> list[str]:
    """The lines of the log about a request."""
    return [line for line in server.log.read_text().splitlines() if line.endswith(f" id={request_id}")]


def test_the_access_log_has_the_request_and_none_of_its_text(completions_server: ServerProcess) -> None:
    """A line has method, path, status, model, tokens and the id that the client gave; never a prompt or an answer."""
    body = json.dumps({"prompt": "a secret text", "max_tokens": 3, "logit_bias": {"1": -100}}).encode()
    request = urllib.request.Request(
        f"{completions_server.url}/v1/completions?also=secret", data=body, headers={"X-Request-Id": "mine-1"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.headers["X-Request-Id"] == "mine-1"
    deadline = time.monotonic() + 100  # the line comes after the answer
    while not (lines := _lines_of(completions_server, "mine-1")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(lines) == 1
    assert "POST /v1/completions 200 " in lines[0]
    assert "model=acme/tiny prompt_tokens=13 completion_tokens=3 id=mine-1" in lines[0]
    assert "secret" not in completions_server.log.read_text()
