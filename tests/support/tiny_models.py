"""Models of any architecture of transformers, small enough to build in a moment, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.generating import save

# Sizes by the names that configurations have for them; a configuration takes those that it has.
_SMALL: dict[str, Any] = {
    "vocab_size": 258,
    "vocab_size_per_layer_input": 258,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "embedding_size": 32,
    "embed_dim": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "d_inner": 48,
    "dim_ff": 48,
    "dim": 32,
    "hidden_dim": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "n_layers": 2,
    "num_attention_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "attention_head_size": 16,
    "rotary_dim": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "state_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "sep_token_id": None,
    "cls_token_id": None,
}


# What some model types need besides: sizes that depend on each other, and a layer of each kind that they mix.
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "bailing_hybrid": {"num_hidden_layers": 4},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "layer_types": ["mamba", "attention"],
    },
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {"num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"num_hidden_layers": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "mistral4": {"head_dim": 16},
    "modernbert-decoder": {"pad_token_id": 0, "cls_token_id": 0, "sep_token_id": 1},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 0, "sep_token_id": 1},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen4_exp_text": {"num_hidden_layers": 4},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": 3},
}


def small_config(model_type: str, **overrides: Any) -> Any:
    """A configuration of this model type whose model has some 10,000 weights."""
    config_class: Any = transformers.CONFIG_MAPPING[model_type]
    known = {*config_class().to_dict(), *getattr(config_class, "attribute_map", {})}
    aliases = getattr(config_class, "attribute_map", {})
    sizes = {aliases.get(name, name): value for name, value in _SMALL.items() if name in known}
    if "qk_rope_head_dim" in sizes:
        sizes["head_dim"] = sizes["qk_rope_head_dim"]
    return config_class(**{**sizes, **_OWN.get(model_type, {}), **overrides})


def build(architecture: str, directory: Path, model_type: str | None = None, **overrides: Any) -> Path:
    """Write a model of this class, and of its own model type or the given one, with random weights that tell tokens
    and positions apart."""
    model_class: Any = getattr(transformers, architecture)
    torch.manual_seed(5)
    return save(model_class(small_config(model_type or model_class.config_class.model_type, **overrides)), directory)
