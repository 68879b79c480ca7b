"""What a request gets in company is what it gets alone; through the engine, with real models small enough to build."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cached.contract.errors import HoldfastError, Permanent
from server.engine.engine import Job
from server.engine.generation.generator import TextGenerator
from server.engine.generation.kv_cache import SPARE_COLUMNS
from server.engine.generation.sequence import GenerationJob
from server.engine.protocol import EngineLoad
from server.engine.types import CompletionRequest, Sampling
from tests.support.generating import GREEDY, Watched, ask, completion, engine, limits, load, save, started
from tests.support.generating import read as read_events
from tests.support.lora import llama_adapter
from tests.unit.server.conftest import save_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
# One of each kind: rotary, a window narrower than the prompts, learned positions, biases by distance (ALiBi).
_BATCHED: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_SIZES, head_dim=16)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_SIZES, sliding_window=5)),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=258,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            word_embed_proj_dim=32,
            eos_token_id=1,
        )
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=2, eos_token_id=1)
    ),
}
_ALONE: dict[str, Callable[[], Any]] = {
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=1)
    ),
    "rope by the longest": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **_SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        )
    ),
}
PROMPTS = ["Holdfasts anchor kelp", "a", "weights " * 9, "to rock and to other", "x" * 40]


def built(make: Callable[[], Any], directory: Path) -> Path:
    torch.manual_seed(5)
    save(make(), directory)
    save_tokenizer(directory)
    return directory


def plainly(directory: Path, prompt: str, tokens: int, **more: Any) -> tuple[str, str, int]:
    """Greedy text, reason and number of tokens by transformers' `generate`."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=1, **more)[0]
    new = out[inputs["input_ids"].shape[1] :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text, "stop" if new[-1] == 1 else "length", len(new)


@pytest.mark.parametrize("name", _BATCHED)
async def test_greedy_text_in_company_is_that_of_plain_transformers(name: str, tmp_path: Path) -> None:
    """Requests that come one after the other into a running batch each get the text of `generate` alone."""
    directory = built(_BATCHED[name], tmp_path)
    watched = Watched()
    generator = load(directory, watched, limits(batch=3))
    assert generator.about.batch == 3
    lengths = {"first " * 5: 80, **{prompt: 10 + 3 * number for number, prompt in enumerate(PROMPTS)}}
    endless = Sampling(temperature=0.0, logit_bias=((1, -100.0),))  # the end token never comes
    with engine(generator, watched) as running:
        requests = [completion(prompt, tokens, endless) for prompt, tokens in lengths.items()]
        answers = await asyncio.gather(*(ask(running, request) for request in requests))
    expected = [plainly(directory, prompt, tokens, suppress_tokens=[1]) for prompt, tokens in lengths.items()]
    assert [answer[0] for answer in answers] == expected
    assert max(watched.rows) == 3


def _spoil(generator: TextGenerator, character: str) -> None:
    """Make NaN of the numbers of a character's token."""
    module: Any = generator._loaded.module
    [spoiled] = generator._loaded.tokenizer.encode(character, add_special_tokens=False)
    with torch.no_grad():
        weight = torch.nn.Parameter(module.get_input_embeddings().weight.clone())
        weight[spoiled] = torch.nan
        module.get_input_embeddings().weight = weight


class Passes:
    """Records the (rows, tokens) of a model's forward passes; `fails` says at which token ids the model breaks."""

    def __init__(self, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.fails: Callable[[torch.Tensor], bool] = lambda _ids: False
        module = generator._loaded.module
        forward = module.forward

        @functools.wraps(forward)  # its signature says what the model takes
        def recorded(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"]
            self.shapes.append(tuple(ids.shape))
            if self.fails(ids):
                raise torch.OutOfMemoryError("the inside")
            return forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", recorded)

    @property
    def prefills(self) -> list[tuple[int, int]]:
        return [shape for shape in self.shapes if shape[1] > 1]


async def answered(
    generator: TextGenerator, requests: Sequence[CompletionRequest]
) -> list[list[tuple[str, str, int]] | HoldfastError]:
    """Have requests admitted in one step, as those that come at the same time are; return their answers."""
    jobs: list[GenerationJob] = [Job(generator.prepare(request)) for request in requests]
    generator.step(jobs)
    while generator.busy:
        generator.step([])
    found = await asyncio.gather(*(read_events(job.stream()) for job in jobs), return_exceptions=True)
    return [one if isinstance(one, list | HoldfastError) else pytest.fail(repr(one)) for one in found]


@pytest.mark.parametrize("name", _BATCHED)
async def test_prompts_that_come_together_are_read_in_one_pass(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of unequal length that wait at the same time share a pass, and each gets the text of `generate`."""
    directory = built(_BATCHED[name], tmp_path)
    generator = load(directory, Watched(), limits())
    passes = Passes(generator, monkeypatch)
    endless = Sampling(temperature=0.0, logit_bias=((1, -100.0),))
    answers = await answered(generator, [completion(prompt, 9, endless) for prompt in PROMPTS])
    assert answers == [[plainly(directory, prompt, 9, suppress_tokens=[1])] for prompt in PROMPTS]
    [(rows, _)] = passes.prefills
    assert rows == len(PROMPTS) - 1  # the one of a single token is not padded to the length of the longest


async def test_prompts_of_different_adapters_share_a_pass(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts for the base and for two adapters are read in one pass, and each gets the text that it gets alone."""
    generator = load(llama, Watched(), limits())
    adapters = [None, *(generator.load_adapter(llama_adapter(tmp_path / str(one), llama, one)) for one in (1, 2))]
    requests = [
        replace(asked, options=replace(asked.options, adapter=adapter))
        for adapter in adapters
        for asked in (completion("hold fast"), completion("the weights"))
    ]
    alone = [answer for request in requests for answer in await answered(generator, [request])]
    passes = Passes(generator, monkeypatch)
    assert await answered(generator, requests) == alone
    assert [rows for rows, _ in passes.prefills] == [6]
    assert len({str(answer) for answer in alone[::2]}) == 3


async def test_of_prompts_read_together_the_one_that_breaks_the_model_fails_alone(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a pass over several prompts fails, each is read alone: the others get their text."""
    generator = load(llama, Watched(), limits())
    passes = Passes(generator, monkeypatch)
    [broken] = generator._loaded.tokenizer.encode("~", add_special_tokens=False)
    passes.fails = lambda ids: bool((ids == broken).any())
    prompts = ["first", "second ~", "the third"]
    first, second, third = await answered(generator, [completion(prompt) for prompt in prompts])
    assert isinstance(second, Permanent) and second.code == "model_failed"
    monkeypatch.undo()
    assert [first, third] == [[plainly(llama, prompt, 12)] for prompt in ("first", "the third")]


async def test_numbers_that_are_none_stay_in_their_row(llama: Path) -> None:
    """A prompt that makes NaN, read in one pass with longer and shorter ones, fails alone."""
    generator = load(llama, Watched(), limits())
    _spoil(generator, "~")
    prompts = ["kelp ~", "stays and stays", "a"]
    first, *others = await answered(generator, [completion(prompt, 4) for prompt in prompts])
    assert isinstance(first, Permanent) and "NaN or infinite" in first.message
    assert others == [[plainly(llama, prompt, 4)] for prompt in prompts[1:]]


async def test_a_crowd_of_prompts_does_not_stop_a_running_sequence(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While long and short prompts wait, no pass reads more than 512 tokens, padding included, and no more than a few
    passes follow each other without a token for those that run."""
    generator = load(llama, Watched(), limits(batch=32))
    running: GenerationJob = Job(generator.prepare(completion("first", 60)))
    generator.step([running])
    passes = Passes(generator, monkeypatch)
    prompts = ["kelp and rock " * 100, *(f"{number} " * 40 for number in range(25)), "x" * 900, "a"]
    jobs: list[GenerationJob] = [Job(generator.prepare(completion(prompt, 3))) for prompt in prompts]
    generator.step(jobs)
    while generator.busy:
        generator.step([])
    assert max(rows * tokens for rows, tokens in passes.prefills) <= 512
    read = 0
    for rows, tokens in passes.shapes:
        read = read + rows * tokens if tokens > 1 else 0
        assert read <= 4 * 512 + 32 * 64  # the budget of a step, and padding
    assert (await read_events(running.stream()))[0] == plainly(llama, "first", 60)


async def test_a_model_that_reads_only_alone_is_batched_all_the_same(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the check at warm-up finds other logits for padded prompts only, prompts are read one by one and decode in
    a batch."""
    generator = TextGenerator.load(llama, "cpu", "float32", limits(), Watched())
    passes = Passes(generator, monkeypatch)

    def padded(ids: torch.Tensor) -> bool:
        if ids.shape[1] < 2:
            return False
        repeated = ids[:, 0] == ids[:, 1]
        return bool(repeated.any()) and not bool(repeated.all())

    passes.fails = padded
    generator.warm_up()
    assert generator.about.batch == 8
    passes.shapes.clear()
    answers = await answered(generator, [completion(prompt) for prompt in PROMPTS])
    assert {rows for rows, _ in passes.prefills} == {1}
    assert max(rows for rows, _ in passes.shapes) > 1
    monkeypatch.undo()
    assert answers == [[plainly(llama, prompt, 12)] for prompt in PROMPTS]


@pytest.mark.parametrize("name", _ALONE)
async def test_what_cannot_be_batched_is_served_one_by_one(name: str, tmp_path: Path) -> None:
    """An architecture without a cache of rows answers the same requests, each with the text of `generate`."""
    directory = built(_ALONE[name], tmp_path)
    watched = Watched()
    generator = load(directory, watched, limits())
    assert generator.about.batch == 1
    with engine(generator, watched) as running:
        answers = await asyncio.gather(*(ask(running, completion(prompt, 8)) for prompt in PROMPTS[:3]))
        sampled = Sampling(temperature=1.0, seed=4)
        twice = [await ask(running, completion("a", 8, sampled)) for _ in range(2)]
    assert [answer[0] for answer in answers] == [plainly(directory, prompt, 8) for prompt in PROMPTS[:3]]
    assert twice[0] == twice[1]
    assert set(watched.rows) == {1}


async def test_a_seed_means_the_same_in_any_company(llama: Path) -> None:
    """A sampled request with a seed has the same text alone, beside others, and beside others of other settings."""
    watched = Watched()
    mine = completion("kelp", 40, Sampling(temperature=0.9, top_p=0.8, seed=17, frequency_penalty=0.5))
    others = [
        completion("a" * 30, 30, Sampling(seed=17)),
        completion("b", 50, GREEDY),
        completion("c" * 9, 20, Sampling(top_p=0.3)),
    ]
    with engine(load(llama, watched, limits()), watched) as running:
        alone = await ask(running, mine)
        async with asyncio.TaskGroup() as group:
            for other in others:
                group.create_task(ask(running, other))
            in_company = await ask(running, mine)
    assert max(watched.rows) > 1
    assert in_company == alone


async def test_choices_of_one_request_differ_and_repeat(llama: Path) -> None:
    """`n` choices with one seed are different texts, and the same ones the next time."""
    watched = Watched()
    request = completion("kelp", 20, Sampling(seed=3), choices=4)
    with engine(load(llama, watched, limits()), watched) as running:
        first, second = await ask(running, request), await ask(running, request)
    assert len({text for text, _, _ in first}) == 4
    assert second == first


async def test_short_memory_sets_the_newest_aside_and_changes_no_text(llama: Path) -> None:
    """Where the cache has no room for all, a client waits and is read again: every text is that of `generate`."""
    watched = Watched()
    each = 2 * 2 * 2 * 16 * 4  # bytes a token: two layers' keys and values, two heads of 16 in float32
    tokens = 2 * (SPARE_COLUMNS + 160)
    generator = load(llama, watched, limits(cache_bytes=tokens * each))
    assert generator.about.context == tokens - SPARE_COLUMNS
    with engine(generator, watched) as running:
        answers = await asyncio.gather(*(ask(running, completion(prompt, 200)) for prompt in PROMPTS[:3]))
    assert [answer[0] for answer in answers] == [plainly(llama, prompt, 200) for prompt in PROMPTS[:3]]
    assert {1, 2} <= set(watched.rows)
    assert max(watched.rows) < 3


async def test_a_prompt_longer_than_one_piece_is_read_in_pieces(llama: Path) -> None:
    """A prompt of thousands of tokens, read between the tokens of another, changes neither text."""
    watched = Watched()
    long = "kelp and rock " * 100
    with engine(load(llama, watched, limits()), watched) as running:
        async with started(running, completion("first", 60)) as first:
            assert (await ask(running, completion(long, 6)))[0] == plainly(llama, long, 6)
            assert (await read_events(first))[0] == plainly(llama, "first", 60)


async def test_who_gives_up_leaves_the_batch_and_no_one_else(llama: Path) -> None:
    """A request given up in the middle frees its row while the others go on, and the model comes to rest."""
    watched = Watched()
    with engine(load(llama, watched, limits(batch=2)), watched) as running:
        async with started(running, completion("stays", 60)) as stays:
            async with started(running, completion("goes", 3000, Sampling(seed=1, logit_bias=((1, -100.0),)))):
                pass
            assert (await ask(running, completion("comes", 9)))[0] == plainly(llama, "comes", 9)
            assert (await read_events(stays))[0] == plainly(llama, "stays", 60)
        async with asyncio.timeout(100):
            while running.capacity() != EngineLoad(0, 0):
                await asyncio.sleep(0.01)
    assert len(watched.rows) < 1000


async def test_more_choices_than_rows_are_all_answered(llama: Path) -> None:
    """A request of more choices than the batch has rows is answered by and by, whole."""
    watched = Watched()
    with engine(load(llama, watched, limits(batch=3)), watched) as running:
        answers = await ask(running, completion("kelp", 6, Sampling(seed=1), choices=10))
    assert len(answers) == 10
    assert max(watched.rows) <= 3


async def test_a_prompt_that_breaks_the_model_fails_alone(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong while one prompt is read is that request's failure; those in the batch go on."""
    watched = Watched()
    generator = load(llama, watched, limits())
    module = generator._loaded.module
    forward = module.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] == 7:
            raise torch.OutOfMemoryError("the inside")
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", failing)
    with engine(generator, watched) as running:
        async with started(running, completion("stays", 30)) as stays:
            with pytest.raises(Exception, match="the model failed") as caught:
                await ask(running, completion("seventh"))
            assert "the inside" not in str(caught.value)
            text = (await read_events(stays))[0]
    monkeypatch.undo()
    assert text == plainly(llama, "stays", 30)


@pytest.mark.parametrize("batch", [1, 8])
async def test_numbers_that_are_none_fail_their_request_alone(llama: Path, batch: int) -> None:
    """A prompt that makes NaN of the model's logits gets an error, not noise; others get their text."""
    watched = Watched()
    generator = load(llama, watched, limits(batch))
    _spoil(generator, "~")
    with engine(generator, watched) as running:
        stays = asyncio.create_task(ask(running, completion("stays", 30)))
        with pytest.raises(Permanent, match="NaN or infinite") as caught:
            await ask(running, completion("kelp ~"))
        assert caught.value.code == "model_failed"
        assert (await stays)[0] == plainly(llama, "stays", 30)


def test_a_model_whose_batch_would_be_wrong_is_not_batched(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the trial at warm-up finds other logits in a batch than alone, the model is served one by one."""
    watched = Watched()
    generator = TextGenerator.load(llama, "cpu", "float32", limits(), watched)
    module = generator._loaded.module
    forward = module.forward
    monkeypatch.setattr(
        module,
        "forward",
        lambda input_ids, position_ids=None, **more: forward(input_ids=input_ids, **more),  # deaf to positions
    )
    generator.warm_up()
    assert generator.about.batch == 1


async def test_logprobs_are_those_of_the_plain_forward_pass(llama: Path) -> None:
    """Each token's logarithm is the model's own, whatever the temperature, and the likeliest are in order."""
    watched = Watched()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(llama)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(llama)
    request = completion("kelp", 5, Sampling(temperature=0.5, seed=2, logprobs=3))
    with engine(load(llama, watched, limits()), watched) as running:
        async with running.submit(request) as job:
            told = [token async for event in job.stream() for token in getattr(event, "logprobs", ())]
    ids = tokenizer.encode("kelp")
    for token in told:
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        likeliest = [tokenizer.decode([one]) for one in expected.topk(3).indices.tolist()]
        assert [text for text, _ in token.top] == likeliest
        chosen = int((expected - token.logprob).abs().argmin())
        assert tokenizer.decode([chosen]) == token.text
        assert abs(float(expected[chosen]) - token.logprob) < 1e-4
        ids.append(chosen)
    assert len(told) == 5
