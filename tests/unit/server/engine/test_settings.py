"""What the folder says about generation: each setting is honoured as `generate` of transformers has it, or refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cached.contract.errors import Permanent
from server.api.requests import parse_chat, parse_completion
from server.engine.generation.generator import TextGenerator
from server.engine.generation.sampling import SamplingState, choose
from server.engine.types import Sampling
from tests.support.generating import Watched, ask, completion, engine, limits, load
from tests.unit.server.conftest import CHAT_TEMPLATE

PROMPTS = ("Holdfasts anchor kelp", "a", "weights " * 4)
_TOKENS = 14

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # transformers', of settings that it warns of


def copied(source: Path, directory: Path) -> Path:
    shutil.copytree(source, directory, dirs_exist_ok=True)
    return directory


def change(path: Path, **fields: Any) -> None:
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**said, **fields}))


def generated(directory: Path, prompt: str, **options: Any) -> list[int]:
    """Greedy tokens by transformers, with the folder's own settings."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False, pad_token_id=1, **options)[0]
    new: list[int] = out[inputs["input_ids"].shape[1] :].tolist()
    return new


async def texts(generator: TextGenerator) -> list[list[tuple[str, int]]]:
    """The greedy answers to the prompts one after the other, and together."""
    watched = Watched()
    with engine(generator, watched) as running:
        alone = [await ask(running, unsaid(prompt)) for prompt in PROMPTS]
        together = await asyncio.gather(*(ask(running, unsaid(prompt)) for prompt in PROMPTS))
    return [[(text, tokens) for [(text, _, tokens)] in found] for found in (alone, together)]


def unsaid(prompt: str) -> Any:
    """A greedy request that leaves all else to the folder."""
    request = completion(prompt, _TOKENS)
    left_out = frozenset({"top_p", "top_k", "min_p", "repetition_penalty"})
    return replace(request, options=replace(request.options, left_out=left_out))


HONOURED: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(2, 130)] + [[140, 141]]},
    "suppress_tokens": {"suppress_tokens": list(range(2, 130))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(2, 180))},
    "sequence_bias": {"sequence_bias": [[[77], 40.0], [[78], 20.0]]},
    "forced_eos_token_id": {"forced_eos_token_id": 0},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(1, 120))},
    "min_length": {"min_length": 18, "eos_token_id": list(range(1, 120))},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [3, 1.9]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.5},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [10, 11, 12, 13]},
}


@pytest.mark.parametrize("name", HONOURED)
async def test_a_setting_of_the_folder_is_honoured(llama: Path, tmp_path: Path, name: str) -> None:
    """Greedy text with the setting is that of `generate`, alone and in a batch, and is not that without it."""
    directory = copied(llama, tmp_path)
    change(directory / "generation_config.json", **HONOURED[name])
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    new = [generated(directory, prompt) for prompt in PROMPTS]
    assert new != [generated(llama, prompt) for prompt in PROMPTS]
    expected = [(tokenizer.decode(one, skip_special_tokens=True), len(one)) for one in new]
    ended = {1} | set(HONOURED[name].get("eos_token_id", []))
    # The end token is no text of an answer.
    expected = [
        (tokenizer.decode(one[:-1] if one[-1] in ended else one, skip_special_tokens=True), tokens)
        for one, (_, tokens) in zip(new, expected, strict=True)
    ]
    assert await texts(load(directory, Watched(), limits())) == [expected, expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("penalty_alpha", 0.6),
        ("guidance_scale", 1.5),
        ("typical_p", 0.9),
        ("epsilon_cutoff", 0.1),
        ("eta_cutoff", 0.1),
        ("top_h", 0.4),
        ("max_time", 2.0),
        ("token_healing", True),
        ("watermarking_config", {"bias": 2.0}),
        ("force_words_ids", [[5]]),
        ("dola_layers", "low"),
    ],
)
def test_a_setting_that_is_not_computed_is_refused(llama: Path, tmp_path: Path, name: str, value: Any) -> None:
    """Another search or a warper that is not here is named with its value: nothing is generated without it."""
    directory = copied(llama, tmp_path)
    change(directory / "generation_config.json", **{name: value})
    with pytest.raises(Permanent, match=f"generation_config.json: {name}=") as caught:
        load(directory, Watched(), limits())
    assert caught.value.code == "unsupported_model"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bad_words_ids", [[-5]]),
        ("exponential_decay_length_penalty", 3),
        ("suppress_tokens", "all"),
        ("max_length", 0),
        ("top_k", "five"),
        ("temperature", -1.0),
        ("eos_token_id", "</s>"),
        ("stop_strings", 512),
        ("stop_strings", ["x", 3]),
    ],
)
def test_a_wrong_value_ends_the_load(llama: Path, tmp_path: Path, name: str, value: Any) -> None:
    """What transformers cannot apply is told with its field when the model is loaded, not by a request."""
    directory = copied(llama, tmp_path)
    change(directory / "generation_config.json", **{name: value})
    with pytest.raises(Permanent, match=rf"generation_config.json: .*{name}") as caught:
        load(directory, Watched(), limits())
    assert caught.value.code == "invalid_config"


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "ends"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, "</s>", {1, 7, 8, 9}),
        ({}, {"eos_token_id": [9, 10]}, "<s>", {0, 9, 10}),
        ({"eos_token_id": 7}, {"eos_token_id": None}, "</s>", {1, 7}),
        ({"eos_token_id": [7, 999]}, {"eos_token_id": 7}, "</s>", {1, 7}),
    ],
)
def test_the_end_tokens_of_all_three_files_count(
    llama: Path, tmp_path: Path, generation: Any, config: Any, tokenizer: str, ends: set[int]
) -> None:
    """The ids of generation_config.json, config.json and the tokenizer's own end token end a text, and no id that the
    vocabulary lacks."""
    directory = copied(llama, tmp_path)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if generation:
        change(directory / "generation_config.json", **generation)
    change(directory / "config.json", **config)
    change(directory / "tokenizer_config.json", eos_token=tokenizer)
    (directory / "special_tokens_map.json").unlink(missing_ok=True)
    assert load(directory, Watched(), limits(batch=1))._settings.ends == ends


async def test_a_text_ends_where_the_tokenizer_alone_says_so(llama: Path, tmp_path: Path) -> None:
    """A chat model whose configs name other end tokens ends with its tokenizer's, which is not part of the text."""
    third = generated(llama, PROMPTS[0])[2]
    directory = copied(llama, tmp_path)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    change(directory / "tokenizer_config.json", eos_token=tokenizer.convert_ids_to_tokens(third))
    (directory / "special_tokens_map.json").unlink(missing_ok=True)
    watched = Watched()
    with engine(load(directory, watched, limits()), watched) as running:
        [(_, reason, tokens)] = await ask(running, unsaid(PROMPTS[0]))
    assert (reason, tokens) == ("stop", 3)


def chat(**fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return parse_chat(json.dumps(body).encode(), None)


def test_the_folders_sampling_holds_where_a_request_says_nothing(chat_llama: Path, tmp_path: Path) -> None:
    """Each field that a request leaves out is the folder's; one that it names is its own."""
    directory = copied(chat_llama, tmp_path)
    said: dict[str, Any] = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
    change(directory / "generation_config.json", do_sample=True, max_new_tokens=33, **said)
    generator = load(directory, Watched(), limits(batch=1))
    found = generator.prepare(chat(seed=1))
    assert found.sampling == Sampling(seed=1, **said)
    assert found.max_tokens == (33,)
    asked: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert generator.prepare(chat(seed=1, max_tokens=4, **asked)).sampling == Sampling(seed=1)
    assert generator.prepare(chat(seed=1, max_tokens=4)).max_tokens == (4,)
    named = generator.prepare(parse_completion(b'{"prompt": "x", "temperature": 0, "seed": 1}', None))
    assert named.sampling == Sampling(seed=1, **{**said, "temperature": 0.0})


@pytest.mark.parametrize(
    ("said", "expected", "most"),
    [
        ({"do_sample": False, "top_k": 5}, Sampling(temperature=0.0, seed=1), 4096 - 25),
        ({"max_length": 64}, Sampling(seed=1), 39),
        ({"max_length": 3}, Sampling(seed=1), 1),
        ({}, Sampling(seed=1), 4096 - 25),
    ],
)
def test_greedy_folders_and_lengths(chat_llama: Path, tmp_path: Path, said: Any, expected: Sampling, most: int) -> None:
    """`do_sample: false` is greedy, `max_length` counts the prompt; without both, OpenAI's defaults hold."""
    directory = copied(chat_llama, tmp_path)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if said:
        change(directory / "generation_config.json", eos_token_id=1, **said)
    generator = load(directory, Watched(), limits(batch=1))
    found = generator.prepare(chat(seed=1))
    assert (found.sampling, len(found.prompts[0]), found.max_tokens) == (expected, 25, (most,))


async def test_the_folders_stop_texts_stop(llama: Path, tmp_path: Path) -> None:
    """`stop_strings` end a text as a request's own `stop` does, beside it."""
    directory = copied(llama, tmp_path)
    watched = Watched()
    with engine(load(directory, watched, limits()), watched) as running:
        [(text, _, _)] = await ask(running, unsaid(PROMPTS[0]))
    at = len(text) // 2
    change(directory / "generation_config.json", stop_strings=[text[at : at + 2]])
    with engine(load(directory, watched, limits()), watched) as running:
        [(cut, reason, _)] = await ask(running, unsaid(PROMPTS[0]))
    assert (cut, reason) == (text[: text.find(text[at : at + 2])], "stop")


@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"top_k": 5}, lambda: [transformers.TopKLogitsWarper(5)]),
        ({"top_k": 40, "top_p": 0.5}, lambda: [transformers.TopKLogitsWarper(40), transformers.TopPLogitsWarper(0.5)]),
        ({"min_p": 0.3}, lambda: [transformers.MinPLogitsWarper(0.3)]),
        (
            {"temperature": 0.7, "top_k": 9, "min_p": 0.2},
            lambda: [
                transformers.TemperatureLogitsWarper(0.7),
                transformers.TopKLogitsWarper(9),
                transformers.MinPLogitsWarper(0.2),
            ],
        ),
    ],
)
def test_sampling_draws_what_transformers_leaves(options: Any, warpers: Callable[[], list[Any]]) -> None:
    """Over many draws exactly the tokens that transformers' warpers leave are drawn, in any company."""
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(3)) * 2
    left = logits.clone()
    for warper in warpers():
        left = warper(None, left)
    expected = set(left[0].isfinite().nonzero().flatten().tolist())
    rows = [SamplingState(Sampling(seed=1, **options), index) for index in range(3000)]
    others = [SamplingState(Sampling(seed=2), index) for index in range(3)]
    drawn = choose(logits.repeat(3003, 1), [*rows, *others])[:3000]
    assert {one.token for one in drawn if one is not None} <= expected
    likely = {token for token in expected if float(left[0].softmax(-1)[token]) > 0.01}
    assert {one.token for one in drawn if one is not None} >= likely


def test_a_repetition_penalty_is_transformers_own() -> None:
    """The prompt's and the generated tokens are penalized, each once, as RepetitionPenaltyLogitsProcessor does."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(4))
    prompt = [3, 3, 9, int(logits.argmax())]
    state = SamplingState(Sampling(temperature=0.0, repetition_penalty=3.0), 0, prompt)
    ids = list(prompt)
    for _ in range(5):
        [chosen] = choose(logits, [state])
        expected = transformers.RepetitionPenaltyLogitsProcessor(3.0)(torch.tensor([ids]), logits.clone()).argmax()
        assert chosen is not None and chosen.token == int(expected)
        ids.append(chosen.token)


@pytest.mark.parametrize(
    ("tokenizer", "refused"),
    [
        ({"clean_up_tokenization_spaces": True}, False),
        (
            {
                "clean_up_tokenization_spaces": True,
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
            },
            True,
        ),
    ],
)
def test_a_tokenizer_that_changes_written_text_is_refused(
    llama: Path, tmp_path: Path, tokenizer: Any, refused: bool
) -> None:
    """Cleaned spaces would change what was streamed already; transformers ignores the setting for BPE, so does this."""
    directory = copied(llama, tmp_path)
    change(directory / "tokenizer_config.json", **tokenizer)
    if not refused:
        load(directory, Watched(), limits(batch=1))
        return
    with pytest.raises(Permanent, match="clean_up_tokenization_spaces=true"):
        load(directory, Watched(), limits(batch=1))


def add_named_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("no")


NAMED = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "rag", "template": "no"}]
TEMPLATES: dict[str, Callable[[Path], object]] = {
    "chat_template.jinja": lambda d: (d / "chat_template.jinja").write_text(CHAT_TEMPLATE),
    "tokenizer_config.json": lambda d: change(d / "tokenizer_config.json", chat_template=CHAT_TEMPLATE),
    "named": lambda d: change(d / "tokenizer_config.json", chat_template=NAMED),
    "additional_chat_templates": add_named_template,
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tokenizer", [{}, {"add_bos_token": True}, {"add_eos_token": True}])
def test_prompts_are_the_tokenizers_own(llama: Path, tmp_path: Path, name: str, tokenizer: Any) -> None:
    """Where the chat template lies, and the tokens that a tokenizer adds, are as AutoTokenizer reads them."""
    directory = copied(llama, tmp_path)
    TEMPLATES[name](directory)
    change(directory / "tokenizer_config.json", **tokenizer)
    library: Any = transformers.AutoTokenizer.from_pretrained(directory)
    generator = load(directory, Watched(), limits(batch=1))
    messages = [{"role": "user", "content": "hello"}]
    expected = library.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert generator.prepare(chat()).prompts == (tuple(expected),)
    assert generator.prepare(completion("hello")).prompts == (tuple(library("hello")["input_ids"]),)
