from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cached.contract.errors import Permanent
from server.engine.lora import Adapter, Adapters
from server.engine.types import CompletionRequest
from server.lifecycle.entries import ModelEntry, base_for
from tests.support.generating import Generating, Watched, ask, completion, engine, limits, load
from tests.support.lora import ALL, ATTENTION, llama_adapter, llama_shapes, merge, save_adapter, scale

PROMPTS = ("hold fast", "the weights are there", "a")


def adapted(request: CompletionRequest, adapter: Adapter | None) -> CompletionRequest:
    return replace(request, options=replace(request.options, adapter=adapter))


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def running(llama: Path, watched: Watched) -> Iterator[tuple[Generating, Any]]:
    generator = load(llama, watched, limits())
    with engine(generator, watched) as running:
        yield running, generator


@pytest.mark.parametrize("by_root", [False, True])
async def test_an_adapter_answers_as_its_merged_weights(
    llama: Path, tmp_path: Path, watched: Watched, running: tuple[Generating, Any], by_root: bool
) -> None:
    """scale · B · A beside the weights gives the text of weights that it was added to, whatever sets its scale."""
    shapes = llama_shapes(llama, ALL)
    ranks = {module: 6 if "q_proj" in module else 3 if "layers.1" in module else 4 for module in ALL}
    config = {
        "rank_pattern": {"q_proj": 6, "layers.1.self_attn.v_proj": 3},
        "alpha_pattern": {"mlp.down_proj": 16, "^model.layers.0.self_attn.q_proj": 2},
        "use_rslora": by_root,
    }
    folder = save_adapter(tmp_path / "adapter", shapes, ranks, 1, **config)
    alphas = {module: 16 if "down" in module else 2 if "0.self_attn.q" in module else 8 for module in ALL}
    scales = {module: scale(alphas[module], ranks[module], by_root=by_root) for module in ALL}
    merged = load(merge(llama, folder, scales, tmp_path / "merged"), watched, limits())
    asked, generator = running
    adapter = generator.load_adapter(folder)
    with engine(merged, watched) as other:
        for prompt in PROMPTS:
            expected = await ask(other, completion(prompt))
            assert await ask(asked, adapted(completion(prompt), adapter)) == expected
            assert await ask(asked, completion(prompt)) != expected


def test_the_logits_are_those_of_merged_weights(llama: Path, tmp_path: Path) -> None:
    """In float32 they agree beyond what a choice of tokens would show."""
    from transformers import LlamaForCausalLM

    folder = llama_adapter(tmp_path / "adapter", llama, 5, ALL)
    merged: Any = LlamaForCausalLM.from_pretrained(merge(llama, folder, dict.fromkeys(ALL, 2.0), tmp_path / "merged"))
    module: Any = LlamaForCausalLM.from_pretrained(llama)
    adapters = Adapters(module, torch.float32, "cpu")
    adapters.survey()
    adapter = adapters.load(folder)
    ids = torch.arange(2, 26).reshape(2, 12)
    with torch.inference_mode():
        plain = module(input_ids=ids).logits
        adapters.set_rows([None, adapter])
        mixed = module(input_ids=ids).logits
        expected = merged(input_ids=ids).logits
    torch.testing.assert_close(mixed[0], plain[0])
    torch.testing.assert_close(mixed[1], expected[1], rtol=1e-4, atol=1e-4)
    assert (mixed[1] - plain[1]).abs().max() > 0.1


async def test_a_batch_mixes_the_base_and_adapters(
    llama: Path, tmp_path: Path, watched: Watched, running: tuple[Generating, Any]
) -> None:
    """The base and two adapters in one running batch each say what they say alone."""
    asked, generator = running
    one = generator.load_adapter(llama_adapter(tmp_path / "one", llama, 1))
    two = generator.load_adapter(llama_adapter(tmp_path / "two", llama, 2, ALL))
    requests = [adapted(completion(prompt, 24), adapter) for prompt in PROMPTS for adapter in (None, one, two, one)]
    alone = [await ask(asked, request) for request in requests]
    watched.rows.clear()
    together = await asyncio.gather(*(ask(asked, request) for request in requests))
    assert together == alone
    assert max(watched.rows) == 8
    assert len({str(answer) for answer in alone[:3]}) == 3


async def test_the_modules_of_gpt2_are_adapted_too(gpt2: Path, tmp_path: Path, watched: Watched) -> None:
    """Its linear modules keep their weights the other way round."""
    modules = {"transformer.h.0.attn.c_attn": (32, 96), "transformer.h.1.mlp.c_proj": (128, 32)}
    folder = save_adapter(tmp_path / "adapter", modules, dict.fromkeys(modules, 4), 1, fan_in_fan_out=True)
    halves = load_file(folder / "adapter_model.safetensors")
    plain, changed = load(gpt2, watched, limits()), load(gpt2, watched, limits())
    for module in modules:
        prefix = f"base_model.model.{module}"
        weight = changed._loaded.module.get_submodule(module).weight
        weight.data = weight.data + 2 * (halves[f"{prefix}.lora_B.weight"] @ halves[f"{prefix}.lora_A.weight"]).T
    with engine(plain, watched) as asked, engine(changed, watched) as merged:
        adapter = plain.load_adapter(folder)
        for prompt in PROMPTS:
            assert await ask(asked, adapted(completion(prompt), adapter)) == await ask(merged, completion(prompt))


def test_an_adapter_of_another_base_is_refused_by_its_tensor(llama: Path, tmp_path: Path, watched: Watched) -> None:
    """A shape or a module that the base lacks is named, with what was expected; nothing is adapted."""
    generator = load(llama, watched, limits())
    shapes = llama_shapes(llama)
    other = {module: (taken + 1, given) for module, (taken, given) in shapes.items()}
    folder = save_adapter(tmp_path / "shape", other, dict.fromkeys(other, 4), 1)
    with pytest.raises(
        Permanent, match=r"layers.0.self_attn.q_proj.lora_A.weight: expected shape \(4, 64\), found shape"
    ):
        generator.load_adapter(folder)
    folder = save_adapter(
        tmp_path / "module", {"model.layers.7.self_attn.q_proj": (64, 64)}, {"model.layers.7.self_attn.q_proj": 4}, 1
    )
    with pytest.raises(Permanent, match=r"no 'model.layers.7.self_attn.q_proj' in LlamaForCausalLM"):
        generator.load_adapter(folder)
    folder = save_adapter(tmp_path / "kind", {"model.embed_tokens": (64, 258)}, {"model.embed_tokens": 4}, 1)
    with pytest.raises(Permanent, match=r"expected a linear module .* found Embedding"):
        generator.load_adapter(folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    llama: Path, tmp_path: Path, watched: Watched, config: dict[str, Any], named: str
) -> None:
    """An adapter that is more than plain LoRA is refused with what it is and what to do instead."""
    folder = save_adapter(tmp_path / "a", llama_shapes(llama), dict.fromkeys(ATTENTION, 4), 1, **config)
    with pytest.raises(Permanent) as caught:
        load(llama, watched, limits()).load_adapter(folder)
    assert named in caught.value.message and "merge" in caught.value.remedy


def test_a_damaged_adapter_is_refused(llama: Path, tmp_path: Path, watched: Watched) -> None:
    """A file that is missing, a config that is no JSON, and tensors of another kind are each named."""
    generator = load(llama, watched, limits())
    folder = llama_adapter(tmp_path / "a", llama, 1)
    save_file({"base_model.model.lm_head.weight": torch.zeros(2)}, folder / "adapter_model.safetensors")
    with pytest.raises(Permanent, match=r"lm_head\.weight: expected a tensor"):
        generator.load_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(Permanent, match=r"expected .*adapter_model.safetensors, found none"):
        generator.load_adapter(folder)
    for text in ("[1]", "{", json.dumps({"peft_type": "LORA", "r": 4})):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(Permanent, match=r"adapter_config\.json"):
            generator.load_adapter(folder)


def test_an_adapters_base_is_the_only_one_or_the_one_it_names() -> None:
    """Among several models the adapter's own word decides; where it does not, that is an error with the names."""
    adapter = ModelEntry("lora", Path("/models/lora/v1"))
    small, large = (
        ModelEntry("small", Path("/models/acme--Tiny-1B/v1")),
        ModelEntry("large", Path("/models/acme--Tiny-8B/v1")),
    )
    assert base_for(adapter, "whatever", [small]) == "small"
    for says in ("acme/tiny-8b", "/home/me/Tiny-8B/", "large"):
        assert base_for(adapter, says, [small, large]) == "large"
    for says in ("", "other"):
        with pytest.raises(Permanent, match="small, large"):
            base_for(adapter, says, [small, large])
