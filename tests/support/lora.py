"""LoRA adapters as PEFT saves them, and the models that come of merging them by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ATTENTION = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj"))
ALL = (*ATTENTION, "model.layers.0.mlp.down_proj")


def save_adapter(
    directory: Path, shapes: dict[str, tuple[int, int]], ranks: dict[str, int], seed: int, **config: Any
) -> Path:
    """An adapter of random matrices for modules that take and give so many numbers, each of its rank."""
    directory.mkdir(parents=True)
    dice = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (taken, given) in shapes.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(ranks[module], taken, generator=dice) * 0.3
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(given, ranks[module], generator=dice) * 0.3
    save_file(tensors, directory / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "acme/tiny", "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**said, "r": 4, "lora_alpha": 8, **config}))
    return directory


def llama_shapes(llama: Path, modules: tuple[str, ...] = ATTENTION) -> dict[str, tuple[int, int]]:
    """How many numbers these modules of a Llama's folder take and give."""
    shapes = {name: tuple(tensor.shape) for name, tensor in _weights(llama).items()}
    return {module: (shapes[f"{module}.weight"][1], shapes[f"{module}.weight"][0]) for module in modules}


def llama_adapter(directory: Path, llama: Path, seed: int, modules: tuple[str, ...] = ATTENTION) -> Path:
    """A plain adapter of rank 4 for a Llama's folder."""
    return save_adapter(directory, llama_shapes(llama, modules), dict.fromkeys(modules, 4), seed)


def merge(llama: Path, adapter: Path, scales: dict[str, float], directory: Path) -> Path:
    """The Llama's folder with scale · B · A added to its weights, in one file."""
    shutil.copytree(llama, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights, halves = _weights(llama), load_file(adapter / "adapter_model.safetensors")
    for module, scale in scales.items():
        prefix = f"base_model.model.{module}"
        delta = halves[f"{prefix}.lora_B.weight"] @ halves[f"{prefix}.lora_A.weight"]
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + scale * delta
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def scale(alpha: float, rank: int, *, by_root: bool) -> float:
    """As PEFT's documentation has it."""
    return alpha / math.sqrt(rank) if by_root else alpha / rank


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
