"""Adapters that PEFT itself makes and saves: what they compute here is what PEFT computes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cached.contract.errors import Permanent
from server.engine import lora
from server.engine.lora import Adapters

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # PEFT's own, of embeddings that it saves and configs that it corrects

IDS = torch.arange(2, 26).reshape(2, 12)
HEAD = {"target_modules": ["q_proj", "lm_head"]}
# The fields of `LoraConfig` by what they do here; each but the refused ones has a case below.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "the output layer": HEAD,
    "all linear": {"target_modules": "all-linear"},
    "by pattern": {"target_modules": r".*layers\.1\.(self_attn|mlp)\..*_proj"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "rank-stabilized": {"target_modules": ["q_proj"], "use_rslora": True},
    "ranks and scales": {**HEAD, "rank_pattern": {"lm_head": 2}, "alpha_pattern": {"q_proj": 3}},
    "dropout": {"target_modules": ["q_proj"], "lora_dropout": 0.5},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "fan in": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
}


def adapted(base: Path, directory: Path, seed: int, **config: Any) -> Any:
    """PEFT's own model, in evaluation, with random matrices; its adapter is saved in `directory`."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    said = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **config)
    found = peft.get_peft_model(model, said).eval()
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in found.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=dice) * 0.3
    found.save_pretrained(directory)
    return found


def load(base: Path, directory: Path) -> tuple[Any, Adapters, Any]:
    module: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters = Adapters(module, torch.float32, "cpu")
    adapters.survey()
    return module, adapters, adapters.load(directory)


@torch.inference_mode()
def compare(base: Path, directory: Path, library: Any) -> None:
    """One row with the adapter and one without, each equal to its own model."""
    module, adapters, adapter = load(base, directory)
    plain = module(input_ids=IDS).logits.clone()
    adapters.set_rows([None, adapter])
    mixed = module(input_ids=IDS).logits
    torch.testing.assert_close(mixed[0], plain[0])
    expected = library(input_ids=IDS).logits[1]
    # Ranks that differ are padded to one, which rounds otherwise: logits of 14 were 2e-5 from PEFT's, which were
    # 5e-5 from its own in float64.
    rounding = 32 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(mixed[1], expected, rtol=0, atol=rounding)
    assert (mixed[1] - plain[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_computes_what_peft_computes(llama: Path, tmp_path: Path, name: str) -> None:
    """The logits are PEFT's own, also where the output layer, tied to the embedding, is among the targets."""
    compare(llama, tmp_path, adapted(llama, tmp_path, 3, **CASES[name]))


def test_the_modules_of_gpt2_are_adapted_as_by_peft(gpt2: Path, tmp_path: Path) -> None:
    """Conv1D keeps its weights the other way round, which PEFT calls fan_in_fan_out."""
    compare(gpt2, tmp_path, adapted(gpt2, tmp_path, 4, target_modules=["c_attn", "lm_head"], fan_in_fan_out=True))


def test_the_output_layer_that_peft_saves_must_be_the_bases(llama: Path, tmp_path: Path) -> None:
    """PEFT saves the base's output layer with the adapter. Equal weights are no news; others are refused by name."""
    adapted(llama, tmp_path, 3, **HEAD)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    [saved] = [name for name in tensors if "lora_" not in name]
    assert saved.endswith("lm_head.base_layer.weight")
    load(llama, tmp_path)
    save_file({**tensors, saved: tensors[saved] + 1e-3}, path)
    with pytest.raises(
        Permanent, match=r"lm_head\.base_layer\.weight: expected the weights of the base's lm_head\.weight"
    ):
        load(llama, tmp_path)
    save_file({**tensors, saved: torch.cat([tensors[saved], tensors[saved][:2]])}, path)
    with pytest.raises(Permanent, match=r"found other weights, shape \(260, 64\), where the base has \(258, 64\)"):
        load(llama, tmp_path)


NARROWED: dict[str, dict[str, Any]] = {
    "another module": {"target_modules": ["v_proj"]},
    "part of a name": {"target_modules": ["proj"]},
    "a pattern": {"target_modules": r".*layers\.0\..*q_proj"},
    "excluded": {"exclude_modules": ["q_proj"]},
    "excluded by a pattern": {"exclude_modules": r".*layers\.1\..*"},
    "other layers": {"layers_to_transform": [0]},
    "one layer": {"layers_to_transform": 0},
    "another list of layers": {"layers_to_transform": [0, 1], "layers_pattern": "h"},
}


@pytest.mark.parametrize("name", NARROWED)
def test_a_tensor_that_peft_would_leave_out_is_refused(llama: Path, tmp_path: Path, name: str) -> None:
    """A file that has matrices of modules which adapter_config.json leaves out computes something else with PEFT, which
    passes over them: it is refused by the tensor's name."""
    adapted(llama, tmp_path, 3, target_modules=["q_proj"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | NARROWED[name]))
    with pytest.raises(Permanent, match=r"q_proj\.lora_A\.weight: expected a module that adapter_config\.json names"):
        load(llama, tmp_path)


def test_a_name_that_peft_would_not_find_is_refused(llama: Path, tmp_path: Path) -> None:
    """PEFT passes over a tensor whose name does not begin as it saves it: that is refused here."""
    adapted(llama, tmp_path, 3, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    save_file({name.removeprefix("base_model.model."): tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(Permanent, match=r"expected a tensor `base_model\.model\.….lora_A\.weight`"):
        load(llama, tmp_path)


def test_an_adapted_embedding_is_refused(llama: Path, tmp_path: Path) -> None:
    """LoRA of an embedding, and PEFT's tying of it to the output layer, are not computed here."""
    adapted(llama, tmp_path / "embedding", 3, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(Permanent, match="lora_embedding_A"):
        load(llama, tmp_path / "embedding")
    adapted(llama, tmp_path / "tied", 3, target_modules=["q_proj", "lm_head"], ensure_weight_tying=True)
    with pytest.raises(Permanent, match=r"ensure_weight_tying|lora_embedding_A"):
        load(llama, tmp_path / "tied")


def test_every_field_of_pefts_config_is_known() -> None:
    """A field of LoraConfig is honoured, refused or without effect: none of this version is unknown."""
    names = {field.name for field in fields(peft.LoraConfig)}
    assert names - lora.HONOURED - lora.WITHOUT_EFFECT - set(lora.NOT_COMPUTED) == set()
