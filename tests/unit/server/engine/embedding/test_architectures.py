"""Sentence encoders of many architectures, tiny and random, against sentence-transformers: alone and in a batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from server.engine.encoder import Encoder
from server.engine.types import Truncation
from tests.support.embedding import by_library, embed, modules, replace, save_tokenizer, write

TEXTS = ("A holdfast anchors KELP to rock.", "x", "kelp of many", "held fast " * 60)
TOLERANCE = 1e-5
POSITIONS = 64
_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
_ROBERTA = {**_SMALL, "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2}
_DECODER = {**_SMALL, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2}
# Architecture, the class that is saved, pooling.
ENCODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BertModel": ("BertConfig", _SMALL, "mean"),
    "BertForMaskedLM": ("BertConfig", _SMALL, "cls"),
    "RobertaModel": ("RobertaConfig", _ROBERTA, "mean"),
    "XLMRobertaModel": ("XLMRobertaConfig", _ROBERTA, "cls"),
    "CamembertModel": ("CamembertConfig", _ROBERTA, "mean"),
    "MPNetModel": ("MPNetConfig", _ROBERTA, "mean"),
    "DistilBertModel": (
        "DistilBertConfig",
        {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": POSITIONS},
        "mean",
    ),
    "AlbertModel": ("AlbertConfig", {**_SMALL, "embedding_size": 8}, "mean"),
    "ElectraModel": ("ElectraConfig", {**_SMALL, "embedding_size": 8}, "cls"),
    "DebertaV2Model": ("DebertaV2Config", {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c"]}, "mean"),
    "ModernBertModel": ("ModernBertConfig", {**_SMALL, "bos_token_id": 2, "eos_token_id": 3}, "cls"),
    "XLNetModel": ("XLNetConfig", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, "lasttoken"),
    "GPT2Model": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}, "weightedmean"),
    "LlamaForCausalLM": ("LlamaConfig", _DECODER, "lasttoken"),
    "Qwen3ForCausalLM": ("Qwen3Config", _DECODER, "lasttoken"),
    "MistralModel": ("MistralConfig", _DECODER, "lasttoken"),
    "Gemma3TextModel": ("Gemma3TextConfig", {**_DECODER, "use_bidirectional_attention": True}, "mean"),
    "T5EncoderModel": ("T5Config", _T5, "mean"),
    "T5ForConditionalGeneration": ("T5Config", _T5, "mean"),
    "MT5EncoderModel": ("MT5Config", _T5, "mean"),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_has_the_vectors_of_the_library(architecture: str, side: str, tmp_path: Path) -> None:
    """Texts alone and in one batch, cut where too long, have the vectors that the library gives each text alone; the
    side of the padding, which changes the library's own batches of some models, changes nothing here."""
    config_name, values, pooling = ENCODERS[architecture]
    torch.manual_seed(5)
    vocabulary = save_tokenizer(tmp_path)
    config = getattr(transformers, config_name)(**values, vocab_size=vocabulary, initializer_range=0.3)
    model: Any = getattr(transformers, architecture)(config)
    model.save_pretrained(tmp_path)
    write(tmp_path, "tokenizer_config.json", padding_side=side, tokenizer_class="TokenizersBackend")
    modules(tmp_path, "Pooling", "Normalize")
    replace(tmp_path, "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": pooling})
    replace(tmp_path, "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    expected = by_library(tmp_path, TEXTS)
    encoder = Encoder.load(tmp_path, "cpu", "auto")
    encoder.warm_up()
    together = embed(encoder, TEXTS, truncation=Truncation())
    alone = np.concatenate([embed(encoder, [text], truncation=Truncation()) for text in TEXTS])
    assert np.abs(alone - expected).max() <= TOLERANCE
    assert np.abs(together - expected).max() <= TOLERANCE
    assert encoder.about.context == 40
    shutil.rmtree(tmp_path)
