"""Every field of a sentence-transformers model, against that library itself: the same vectors, or refused by name.

`docs/models.md`, "Embeddings", is the table of these rows. A small random BERT is changed one field at a time.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from cached.contract.errors import Permanent
from server.engine.embedding.recipe import type_names
from server.engine.encoder import Encoder
from server.engine.types import AboutVectors, InvalidRequest, Truncation
from tests.support.embedding import (
    HIDDEN,
    LAYERS,
    POSITIONS,
    Vectors,
    build,
    by_library,
    dense,
    embed,
    modules,
    replace,
    write,
)

TOLERANCE = 1e-5
LONG = " ".join(f"Kelp number {index} of many, held fast" for index in range(40))
TEXTS = ("A holdfast anchors KELP to rock.", "Ümlauts — and 日本語", "x", LONG)
CUT = {"truncation": Truncation()}
ST = "config_sentence_transformers.json"
BERT = "sentence_bert_config.json"
TOKENIZER = "tokenizer_config.json"
POOL = "1_Pooling/config.json"
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sentence") / "base")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of the model, to change."""
    return Path(shutil.copytree(base, tmp_path / "model"))


def fields(name: str, **values: Any) -> Edit:
    return lambda folder: write(folder, name, **values)


def edits(*several: Edit) -> Edit:
    def apply(folder: Path) -> None:
        for one in several:
            one(folder)

    return apply


def pooled(*modes: str, **more: Any) -> Edit:
    mode = modes[0] if len(modes) == 1 else list(modes)
    return lambda folder: replace(folder, POOL, {"embedding_dimension": HIDDEN, "pooling_mode": mode, **more})


def flags(*on: str) -> Edit:
    old = {f"pooling_mode_{name}": True for name in on}
    return lambda folder: replace(folder, POOL, {"word_embedding_dimension": HIDDEN, **old})


def chain(*kinds: str) -> Edit:
    return lambda folder: modules(folder, *kinds)


def dense_at(name: str, inputs: int, outputs: int, **more: Any) -> Edit:
    return lambda folder: dense(folder, name, inputs, outputs, **more)


def weights(path: str, document: object, tensors: dict[str, torch.Tensor]) -> Edit:
    def apply(folder: Path) -> None:
        replace(folder, f"{path}/config.json", document)
        save_file(tensors, folder / path / "model.safetensors")

    return apply


def moved(name: str) -> Edit:
    """Move the transformer with its tokenizer into a folder of its own."""

    def apply(folder: Path) -> None:
        (folder / name).mkdir()
        for one in list(folder.iterdir()):
            if one.is_file() and one.name not in ("modules.json", ST):
                one.rename(folder / name / one.name)
        path = "sentence_transformers.base.modules.transformer.Transformer"
        pooling = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
        entries = [
            {"idx": 0, "name": "a", "path": name, "type": path},
            {"idx": 1, "name": "b", "path": "1_Pooling", "type": pooling, "kwargs": []},
        ]
        replace(folder, "modules.json", entries)

    return apply


def renamed(old: str, new: str) -> Edit:
    def apply(folder: Path) -> None:
        (folder / old).rename(folder / new)

    return apply


def first(kind: str, path: object = "") -> Edit:
    """Name another type, or place, for the first module."""
    entry = {"idx": 0, "name": "0", "path": path, "type": kind}
    pooling = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    return lambda folder: replace(folder, "modules.json", [entry, pooling])


def tokenizer_json(**values: Any) -> Edit:
    return fields("tokenizer.json", **values)


def without_modules(folder: Path) -> None:
    """Leave a plain encoder, without any of sentence-transformers' files."""
    shutil.rmtree(folder / "1_Pooling")
    (folder / BERT).unlink()
    (folder / "modules.json").unlink()


def broken(folder: Path) -> None:
    (folder / "modules.json").write_text("[{")


def plain(_folder: Path) -> None:
    """Change nothing."""


def added_tokens(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["holdfast"])
    tokenizer.save_pretrained(folder)
    model: Any = transformers.BertModel.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Row:
    """A field with a value: how the folder gets it, what a request asks, and what the library is asked."""

    name: str
    edit: Edit
    asked: dict[str, Any] = field(default_factory=dict)
    library: dict[str, Any] = field(default_factory=dict)
    changes: bool = True  # the vectors are others than the unchanged model's


PROMPTS = {"prompts": {"query": "Query: ", "passage": "Passage, to be found: "}}
LOWER = edits(
    fields(TOKENIZER, do_lower_case=False),
    tokenizer_json(normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                               "strip_accents": False, "lowercase": False}),
)  # fmt: skip
LAYER_WEIGHTS = weights(
    "1_WeightedLayerPooling",
    {"embedding_dimension": HIDDEN, "layer_start": 1, "num_hidden_layers": LAYERS},
    {"layer_weights": torch.tensor([1.0, 2.0, 3.0])},
)
HONOURED = [
    # Pooling
    *(Row(f"pooling {mode}", pooled(mode), changes=mode != "mean")
      for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")),
    Row("pooling concatenated", pooled("cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", "max", "mean")),
    Row("pooling list of one", pooled("max")),
    *(Row(f"pooling old {name}", flags(name), changes=name != "mean_tokens")
      for name in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
                   "lasttoken")),
    Row("pooling old flags together", flags("mean_tokens", "cls_token", "lasttoken")),
    Row("pooling old flags, none on", flags(), changes=False),
    Row("pooling both", edits(flags("cls_token"), fields(POOL, pooling_mode="max"))),
    # Prompts
    Row("prompts", fields(ST, **PROMPTS), {"prompt_name": "passage"}, {"prompt_name": "passage"}),
    Row("prompts unused", fields(ST, **PROMPTS), changes=False),
    Row("prompts empty query", plain, {"prompt_name": "query"}, {"prompt_name": "query"}, changes=False),
    Row("prompts null", fields(ST, prompts={"query": None}), {"prompt_name": "query"}, {"prompt_name": "query"},
        changes=False),
    Row("default_prompt_name", fields(ST, **PROMPTS, default_prompt_name="query")),
    Row("default_prompt_name overridden", fields(ST, **PROMPTS, default_prompt_name="query"),
        {"prompt_name": "document"}, {"prompt_name": "document"}, changes=False),
    Row("encode_query", fields(ST, **PROMPTS), {"input_type": "query"}, {"call": "encode_query"}),
    Row("encode_document", fields(ST, prompts={"document": "Doc: "}), {"input_type": "document"},
        {"call": "encode_document"}),
    Row("query_length", fields(BERT, query_length=9), {"input_type": "query"}, {"call": "encode_query"}),
    Row("document_length", fields(BERT, document_length=12), {"input_type": "document"}, {"call": "encode_document"}),
    Row("query_length unused", fields(BERT, query_length=9), changes=False),
    *(Row(f"include_prompt false, {mode}", edits(pooled(mode, include_prompt=False), fields(ST, **PROMPTS)),
          {"prompt_name": "passage"}, {"prompt_name": "passage"})
      for mode in ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")),
    Row("include_prompt false, default prompt",
        edits(pooled("mean", include_prompt=False), fields(ST, **PROMPTS, default_prompt_name="query"))),
    # Length
    Row("max_seq_length", fields(BERT, max_seq_length=20)),
    Row("model_max_length", fields(TOKENIZER, model_max_length=16)),
    Row("model_max_length and max_seq_length", edits(fields(TOKENIZER, model_max_length=16),
                                                   fields(BERT, max_seq_length=20))),
    Row("positions", fields(TOKENIZER, model_max_length=512), changes=False),
    Row("tokenizer_args.model_max_length", fields(BERT, max_seq_length=30, tokenizer_args={"model_max_length": 11})),
    Row("processing_kwargs max_length", fields(BERT, processing_kwargs={"text": {"max_length": 14}})),
    Row("processing_kwargs common", fields(BERT, processing_kwargs={"text": {"max_length": 14},
                                                                   "common": {"max_length": 10}})),
    Row("processing_kwargs add_special_tokens",
        fields(BERT, processing_kwargs={"text": {"add_special_tokens": False}})),
    Row("processing_kwargs padding max_length",
        fields(BERT, processing_kwargs={"text": {"padding": "max_length"}}), changes=False),
    Row("processing_kwargs padding", fields(BERT, processing_kwargs={"text": {"padding": "longest",
                                                                             "pad_to_multiple_of": 8}}), changes=False),
    Row("tokenizer.json truncation", tokenizer_json(truncation={"direction": "Right", "max_length": 5,
        "strategy": "LongestFirst", "stride": 0}), changes=False),
    # Tokenizer
    Row("do_lower_case", edits(LOWER, fields(BERT, do_lower_case=True))),
    Row("do_lower_case false", LOWER),
    Row("do_lower_case of the tokenizer", edits(
        tokenizer_json(normalizer=None), fields(TOKENIZER, do_lower_case=False, tokenizer_class="TokenizersBackend"))),
    Row("truncation_side", fields(TOKENIZER, truncation_side="left")),
    Row("padding_side", fields(TOKENIZER, padding_side="left"), changes=False),
    Row("tokenizer_args.truncation_side", fields(BERT, tokenizer_args={"truncation_side": "left"})),
    Row("processor_kwargs", fields(BERT, processor_kwargs={"truncation_side": "left"})),
    Row("tokenizer_args before processor_kwargs", fields(BERT, processor_kwargs={"truncation_side": "left"},
                                                      tokenizer_args={}), changes=False),
    Row("added tokens", added_tokens),
    Row("a pad token that the model has not", fields(TOKENIZER, pad_token="<none>"), changes=False),
    Row("token types", edits(fields(TOKENIZER, tokenizer_class="TokenizersBackend"), tokenizer_json(post_processor={
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 1}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}}))),
    Row("model_input_names", fields(TOKENIZER, model_input_names=["input_ids", "attention_mask"]), changes=False),
    # Transformer
    Row("config_args", fields(BERT, config_args={"hidden_act": "relu"})),
    Row("config_kwargs", fields(BERT, config_kwargs={"num_hidden_layers": LAYERS, "hidden_act": "relu"})),
    Row("model_args dtype", fields(BERT, model_args={"torch_dtype": "bfloat16"})),
    Row("model_kwargs", fields(BERT, model_kwargs={"attn_implementation": "eager", "add_pooling_layer": False,
                                                  "revision": "main", "trust_remote_code": True}), changes=False),
    Row("config_args dtype", fields(BERT, config_args={"dtype": "bfloat16"})),
    Row("config.json return_dict", fields("config.json", return_dict=False), changes=False),
    Row("config.json dtype", fields("config.json", dtype="float16")),
    Row("transformer_task", fields(BERT, transformer_task="feature-extraction"), changes=False),
    Row("modality_config", fields(BERT, module_output_name="token_embeddings", modality_config={
        "text": {"method": "forward", "method_output_name": ["last_hidden_state"]}}), changes=False),
    Row("module_output_name alone", fields(BERT, module_output_name="sentence_embedding"), changes=False),
    Row("unpad_inputs", fields(BERT, unpad_inputs=False), changes=False),
    Row("backend, cache_dir", fields(BERT, backend="onnx", cache_dir="/nowhere"), changes=False),
    Row("query_expansion null", fields(BERT, query_expansion=None), changes=False),
    Row("its own folder", moved("0_Transformer"), changes=False),
    Row("an older settings file", edits(fields(BERT, max_seq_length=20), renamed(BERT, "sentence_xlnet_config.json"))),
    # Modules
    Row("Normalize", chain("Pooling", "Normalize")),
    Row("Normalize of tokens", edits(chain("Normalize", "Pooling"), renamed("1_Pooling", "2_Pooling"),
                                    fields("1_Normalize/config.json", module_input_name="token_embeddings"))),
    Row("Normalize before Pooling", edits(chain("Normalize", "Pooling"), renamed("1_Pooling", "2_Pooling")),
        changes=False),
    Row("Dense", edits(chain("Pooling", "Dense"), dense_at("2_Dense", HIDDEN, 5))),
    *(Row(f"Dense {name}", edits(chain("Pooling", "Dense"),
                                 dense_at("2_Dense", HIDDEN, 5, activation_function=f"torch.nn.{name}")))
      for name in ("modules.linear.Identity", "modules.activation.Tanh", "modules.activation.GELU", "ReLU",
                   "modules.activation.Sigmoid", "SiLU", "modules.activation.PReLU")),
    Row("Dense without bias", edits(chain("Pooling", "Dense"), dense_at("2_Dense", HIDDEN, 5, bias=False))),
    Row("Dense use_residual", edits(chain("Pooling", "Dense"), dense_at("2_Dense", HIDDEN, HIDDEN, use_residual=True))),
    Row("Dense use_residual, projected",
        edits(chain("Pooling", "Dense"), dense_at("2_Dense", HIDDEN, 7, use_residual=True))),
    Row("Dense twice, Normalize", edits(chain("Pooling", "Dense", "Dense", "Normalize"),
                                       dense_at("2_Dense", HIDDEN, 20), dense_at("3_Dense", 20, 6))),
    Row("Dense of tokens", edits(chain("Dense", "Pooling"), renamed("1_Pooling", "2_Pooling"), dense_at(
        "1_Dense", HIDDEN, 5, module_input_name="token_embeddings", module_output_name="token_embeddings"))),
    Row("Dense of several poolings", edits(pooled("cls", "max"), chain("Pooling", "Dense"),
                                          dense_at("2_Dense", 2 * HIDDEN, 5))),
    Row("LayerNorm", edits(chain("Pooling", "LayerNorm"), weights(
        "2_LayerNorm", {"dimension": HIDDEN},
        {"norm.weight": torch.linspace(0.5, 2, HIDDEN), "norm.bias": torch.linspace(-1, 1, HIDDEN)}))),
    Row("Dropout", edits(chain("Pooling", "Dropout"), fields("2_Dropout/config.json", dropout=0.5)), changes=False),
    Row("WeightedLayerPooling", edits(
        fields("config.json", output_hidden_states=True),
        chain("WeightedLayerPooling", "Pooling"), renamed("1_Pooling", "2_Pooling"),
        LAYER_WEIGHTS)),
    Row("WeightedLayerPooling without hidden states", edits(
        chain("WeightedLayerPooling", "Pooling"), renamed("1_Pooling", "2_Pooling"),
        LAYER_WEIGHTS), changes=False),
    # The model
    Row("truncate_dim", fields(ST, truncate_dim=6)),
    Row("truncate_dim beyond", fields(ST, truncate_dim=600), changes=False),
    Row("similarity_fn_name", fields(ST, similarity_fn_name="dot"), changes=False),
    Row("model_type", fields(ST, model_type="SentenceTransformer"), changes=False),
    Row("requirements", fields(ST, requirements={"transformers": ">=5", "python": {"specifier": ">=3.11"},
                                                "sentence-transformers": ">=6"}), changes=False),
    # Requests
    Row("dimensions", fields("config.json", is_matryoshka=True), {"dimensions": 4}, {"truncate_dim": 4}),
    Row("dimensions beyond truncate_dim", fields(ST, truncate_dim=6), {"dimensions": 9}, {"truncate_dim": 9}),
    Row("dimensions, normalize", edits(chain("Pooling", "Normalize"), fields("config.json", matryoshka_dimensions=[4])),
        {"dimensions": 4, "normalize": True}, {"truncate_dim": 4, "normalize_embeddings": True}),
    Row("normalize", plain, {"normalize": True}, {"normalize_embeddings": True}),
    Row("truncate_prompt_tokens", plain, {"truncation": Truncation(tokens=8)},
        {"processing_kwargs": {"text": {"max_length": 8}}}),
    # Without modules.json
    Row("no modules.json", without_modules, changes=False),
    Row("no modules.json, tokenizer's limit", edits(without_modules, fields(TOKENIZER, model_max_length=16))),
]  # fmt: skip


@pytest.fixture(scope="module")
def unchanged(base: Path) -> Vectors:
    return embed(Encoder.load(base, "cpu", "auto"), TEXTS, **CUT)


@pytest.mark.parametrize("row", HONOURED, ids=lambda row: row.name.replace(" ", "-"))
def test_a_field_is_honoured_as_the_library_honours_it(row: Row, folder: Path, unchanged: Vectors) -> None:
    """With a field set, texts alone and in one batch have the vectors that `SentenceTransformer.encode` gives."""
    row.edit(folder)
    expected = by_library(folder, TEXTS, **row.library)
    encoder = Encoder.load(folder, "cpu", "auto")
    encoder.warm_up()
    asked = {**CUT, **row.asked}
    together = embed(encoder, TEXTS, **asked)
    assert together.shape == expected.shape
    alone = np.concatenate([embed(encoder, [text], **asked) for text in TEXTS])
    # In half precision only a batch of one has the rounding of the library's batch of one.
    exact = encoder.about.dtype == "float32"
    assert np.abs(alone - expected).max() <= TOLERANCE
    assert np.abs(together - expected).max() <= (TOLERANCE if exact else 0.1)
    differs = expected.shape != unchanged.shape or np.abs(expected - unchanged).max() > TOLERANCE
    assert differs == row.changes, "the row does not try its field"


REFUSED = [
    # modules.json
    *(Row(f"module {kind}", chain("Pooling", kind))
      for kind in ("CNN", "LSTM", "WordWeights", "Router", "Asym", "Transformer", "BoW", "SparseAutoEncoder")),
    *(Row(f"first module {kind}", first(f"sentence_transformers.models.{kind}"))
      for kind in ("StaticEmbedding", "CLIPModel", "WordEmbeddings", "BoW", "Router", "Pooling")),
    *(Row(f"type {name}", first(name)) for name in (
        "Transformer", "st.models.Transformer", "modeling_mine.Transformer", "other.models.Transformer",
        "sentence_transformers.sparse_encoder.modules.mlm_transformer.MLMTransformer",
        "sentence_transformers_extra.models.Transformer", "transformers.Transformer", "pylate.models.Dense.Dense")),
    Row("modules.json empty", lambda folder: replace(folder, "modules.json", [])),
    Row("modules.json no list", lambda folder: replace(folder, "modules.json", {"0": "Transformer"})),
    Row("modules.json broken", broken),
    Row("modules.json without a name", lambda folder: replace(folder, "modules.json", [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}])),
    *(Row(f"modules.json path {path}", first("sentence_transformers.models.Transformer", path))
      for path in ("../x", "/etc", "C:x", 3)),
    Row("modules.json one name twice", lambda folder: replace(folder, "modules.json", [
        {"name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"))])),
    Row("no Pooling", chain()),
    Row("Dense before Pooling", edits(chain("Dense", "Pooling"), renamed("1_Pooling", "2_Pooling"),
                                     dense_at("1_Dense", HIDDEN, 5))),
    Row("lost modules.json", lambda folder: (folder / "modules.json").unlink()),
    Row("a Dense that lies there", edits(without_modules, dense_at("2_Dense", HIDDEN, 5))),
    Row("settings that lie there", edits(without_modules, fields(ST, default_prompt_name="query", **PROMPTS))),
    # Pooling
    Row("pooling unknown mode", pooled("attention")),
    Row("pooling no mode", pooled()),
    Row("pooling null", fields(POOL, pooling_mode=None)),
    Row("pooling unknown field", fields(POOL, pooling_mode_attention=True)),
    Row("pooling include_prompt", fields(POOL, include_prompt="no")),
    Row("pooling without a file", lambda folder: (folder / POOL).unlink()),
    # Dense and LayerNorm
    *(Row(f"Dense {name}={value}", edits(chain("Pooling", "Dense"), dense_at("2_Dense", HIDDEN, 5),
                                         fields("2_Dense/config.json", **{name: value})))
      for name, value in (("activation_function", "mine.Swish"), ("activation_function", None),
                          ("activation_function", "torch.nn.functional.relu"),
                          ("activation_function", "torch.nn.modules.activation.Nothing"),
                          ("activation_function", "torch.nn.modules.linear.Linear"),
                          ("activation_function", "torch.nn.init.Tanh"), ("in_features", HIDDEN + 1),
                          ("init_weight", [[1.0]]),
                          ("out_features", 0), ("bias", False), ("bias", "yes"), ("use_residual", True),
                          ("module_input_name", "all_layer_embeddings"), ("module_output_name", "scores"))),
    Row("Dense without weights", edits(chain("Pooling", "Dense"), fields("2_Dense/config.json", in_features=HIDDEN,
                                                                        out_features=5))),
    Row("Dense with a pickle", edits(chain("Pooling", "Dense"), dense_at("2_Dense", HIDDEN, 5),
                                    renamed("2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"))),
    Row("Dropout beyond 1", edits(chain("Pooling", "Dropout"), fields("2_Dropout/config.json", dropout=7))),
    Row("LayerNorm unknown field", edits(chain("Pooling", "LayerNorm"),
                                        fields("2_LayerNorm/config.json", dimension=HIDDEN, eps=1e-3))),
    # sentence_bert_config.json
    *(Row(f"transformer_task {task}", fields(BERT, transformer_task=task)) for task in (
        "sequence-classification", "text-generation", "any-to-any", "fill-mask", "retrieval", "other")),
    *(Row(f"{name}={value}", fields(BERT, **{name: value})) for name, value in (
        ("max_seq_length", 0), ("max_seq_length", -1), ("max_seq_length", "256"), ("max_seq_length", True),
        ("do_lower_case", "yes"), ("query_length", 0), ("document_length", "x"),
        ("query_expansion", {"strategy": "fixed", "length": 32}), ("tokenizer_name_or_path", "bert-base-uncased"),
        ("pooling", "cls"), ("model_args", {"quantization_config": {}}), ("model_args", {"variant": "fp16"}),
        ("model_args", {"use_safetensors": False}), ("model_args", {"torch_dtype": "int8"}),
        ("model_args", {"attn_implementation": "flash_attention_2"}), ("model_args", []),
        ("tokenizer_args", {"tokenizer_file": "/etc/passwd"}), ("tokenizer_args", {"gguf_file": "x"}),
        ("config_args", {"no_such_field": 1}),
        ("config_args", {"return_unused_kwargs": True}),
        ("config_args", {"hidden_act": 3}),
        ("tokenizer_args", {"config": {}}),
        ("processing_kwargs", {"text": {"stride": 3}}),
        ("processing_kwargs", {"text": {"truncation": False}}),
        ("processing_kwargs", {"text": {"return_tensors": "np"}}),
        ("processing_kwargs", {"sound": {}}))),
    Row("modality_config without output", fields(BERT, modality_config={
        "text": {"method": "forward", "method_output_name": "last_hidden_state"}})),
    *(Row(f"modality_config {number}", fields(BERT, module_output_name=name, modality_config=modality))
      for number, (name, modality) in enumerate((
          ("sentence_embedding", {"text": {"method": "forward", "method_output_name": "pooler_output"}}),
          ("token_embeddings", {"text": {"method": "get_text_features", "method_output_name": "last_hidden_state"}}),
          ("token_embeddings", {"text": {"method": "forward", "method_output_name": ["hidden_states", 0]}}),
          ("token_embeddings", {"text": {"method": "forward", "method_output_name": "last_hidden_state"},
                                "message": {"method": "forward", "method_output_name": "last_hidden_state"}}),
          ("token_embeddings", {"image": {"method": "forward", "method_output_name": "last_hidden_state"}}),
          ("token_embeddings", {})))),
    Row("an adapter", fields("adapter_config.json", base_model_name_or_path="other", peft_type="LORA")),
    # config_sentence_transformers.json
    *(Row(f"model_type {kind}", fields(ST, model_type=kind)) for kind in (
        "SparseEncoder", "CrossEncoder", "MultiVectorEncoder", "ColBERT")),
    Row("default_prompt_name unknown", fields(ST, default_prompt_name="ask")),
    Row("default_prompt_name no name", fields(ST, default_prompt_name=["query"])),
    Row("prompts no text", fields(ST, prompts={"query": 3})),
    Row("prompts a list", fields(ST, prompts=["query"])),
    Row("truncate_dim 0", fields(ST, truncate_dim=0)),
    *(Row(f"requirements {package}", fields(ST, requirements={package: wanted})) for package, wanted in (
        ("transformers", "<5"), ("no-such-package", ">=1"), ("python", {"specifier": "<3", "reason": "old"}))),
    # Without modules.json
    Row("a chat template", edits(without_modules, fields(TOKENIZER, chat_template="{{ messages }}"))),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name.replace(" ", "-")[:60])
def test_what_is_not_honoured_is_refused_by_name(row: Row, folder: Path) -> None:
    """A field that would change the vectors and is not served ends the load, with the file and what to do instead."""
    row.edit(folder)
    with pytest.raises(Permanent) as caught:
        Encoder.load(folder, "cpu", "auto").warm_up()
    assert caught.value.code in ("unsupported_model", "invalid_config", "missing_weights", "unmet_requirement")
    assert str(folder) in caught.value.message and "expected" in caught.value.message
    assert caught.value.remedy


TOLD = [
    Row("model field", fields(ST, matryoshka=True)),
    Row("entry field", lambda folder: replace(folder, "modules.json", [
        {"name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}", "matryoshka": 1}
        for index, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))])),
    Row("Normalize field", edits(chain("Pooling", "Normalize"), fields("2_Normalize/config.json", matryoshka=2))),
    Row("Dense field", edits(chain("Pooling", "Dense"), dense_at("2_Dense", HIDDEN, 5, matryoshka=2))),
    Row("a module that is not named", dense_at("2_Dense_matryoshka", HIDDEN, 5)),
    Row("a tokenizer's argument", fields(BERT, tokenizer_args={"matryoshka": 2})),
    Row("a newer library", fields(ST, __version__={"sentence_transformers": "99.0+matryoshka"})),
    Row("a requirement that cannot be read", fields(ST, requirements={"matryoshka": "new"})),
    Row("requirements that cannot be read", fields(ST, requirements="matryoshka")),
]  # fmt: skip


@pytest.mark.parametrize("row", TOLD, ids=lambda row: row.name.replace(" ", "-"))
def test_what_the_library_passes_over_is_told(row: Row, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A field that the library itself ignores changes nothing, and a warning names it."""
    row.edit(folder)
    expected = by_library(folder, TEXTS)
    with caplog.at_level(logging.WARNING, "server"):
        found = embed(Encoder.load(folder, "cpu", "auto"), TEXTS, **CUT)
    assert np.abs(found - expected).max() <= TOLERANCE
    assert "matryoshka" in caplog.text


def test_no_field_of_the_library_is_missing_from_the_table(folder: Path) -> None:
    """Every field that the library's constructors take from a file, or that it writes, is a row of docs/models.md."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules as library
        from sentence_transformers.sentence_transformer.modules import pooling

        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    names: set[str] = {
        *model._get_model_config(),
        "truncate_dim",
        "requirements",
        "kwargs",
        "idx",
        "name",
        "path",
        "type",
    }
    names |= {*pooling._LEGACY_POOLING_MODE_KWARGS} & {"pooling_mode_cls_token"}  # "and the five others"
    assert len(pooling._LEGACY_POOLING_MODE_KWARGS) == 6
    names |= {"model_args", "tokenizer_args", "config_args"}
    for kind in ("Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout", "WeightedLayerPooling"):
        found: Any = getattr(library, kind)
        names |= {*found.config_keys, *found.config_key_renames, *inspect.signature(found.__init__).parameters}
    names -= {"self", "model_name_or_path", "layer_weights", "init_weight", "init_bias"}  # no values of a JSON file
    table = (Path(__file__).parents[5] / "docs/models.md").read_text()
    assert not [name for name in sorted(names) if f"`{name}`" not in table]
    kinds = {name for name in library.__all__ if name not in ("Module", "InputModule")}
    assert not [kind for kind in sorted(kinds) if f"`{kind}`" not in table]


@pytest.mark.parametrize("kind", ["Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout"])
def test_every_name_of_a_type_is_the_librarys_class(kind: str) -> None:
    """A `type` of modules.json that is taken for a class is a name of that class in the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers.sentence_transformer import modules as library
        from sentence_transformers.util import import_from_string

        assert {import_from_string(name) for name in type_names(kind)} == {getattr(library, kind)}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (TOKENIZER, {"model_max_length": 0}),
        (TOKENIZER, {"model_max_length": -1}),
        (TOKENIZER, {"model_max_length": "512"}),
        (TOKENIZER, {"model_max_length": 12.5}),
    ],
)
def test_a_model_without_room_for_a_token_is_refused(name: str, values: dict[str, Any], folder: Path) -> None:
    """A limit below 1, or none that is a number, ends the load and names the fields that make it."""
    write(folder, name, **values)
    with pytest.raises(Permanent, match="model_max_length") as caught:
        Encoder.load(folder, "cpu", "auto")
    assert caught.value.code in ("invalid_config", "no_tokenizer")


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_folder_that_the_library_writes_is_served(include_prompt: bool, folder: Path, tmp_path: Path) -> None:
    """What `SentenceTransformer.save` writes of modules and settings has its vectors, and no warning."""
    saved = tmp_path / "saved"
    texts = ["", "x", "kelp of many", "[SEP] kelp [MASK]"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules as library

        model = SentenceTransformer(
            modules=[
                library.Transformer(str(folder), max_seq_length=30),
                library.Pooling(HIDDEN, ("mean", "cls"), include_prompt=include_prompt),
                library.Dense(2 * HIDDEN, 8),
                library.LayerNorm(8),
                library.Normalize(),
            ],
            prompts={"query": "Query: "},
            default_prompt_name="query",
            truncate_dim=6,
            similarity_fn_name="dot",
            device="cpu",
        )
        model.save(str(saved), create_model_card=False)
        expected = model.encode(texts, show_progress_bar=False)
    encoder = Encoder.load(saved, "cpu", "auto")
    assert np.abs(embed(encoder, texts) - expected).max() <= TOLERANCE
    assert encoder.about.context == 30
    assert encoder.about.vectors == AboutVectors(6, 8, None, ("query", "document"), "query", "dot")


def test_the_context_is_what_the_library_cuts_to(folder: Path) -> None:
    """The context is the least of positions and the length that the folder sets, and is told in `/v1/models`."""
    for length, tokenizer, expected in ((20, 512, 20), (None, 512, POSITIONS), (None, 16, 16), (600, 512, POSITIONS)):
        write(folder, BERT, max_seq_length=length)
        write(folder, TOKENIZER, model_max_length=tokenizer)
        encoder = Encoder.load(folder, "cpu", "auto")
        assert encoder.about.context == expected
        with pytest.raises(InvalidRequest, match=str(expected)) as caught:
            embed(encoder, [LONG])
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("edit", "asked", "param"),
    [
        (plain, {"dimensions": 4}, "dimensions"),
        (fields("config.json", is_matryoshka=True), {"dimensions": HIDDEN + 1}, "dimensions"),
        (fields("config.json", matryoshka_dimensions=[4, 8]), {"dimensions": 5}, "dimensions"),
        (plain, {"prompt_name": "passage"}, "prompt_name"),
        (fields(ST, **PROMPTS), {"input_type": "document"}, "input_type"),
        (plain, {"truncation": Truncation(tokens=POSITIONS + 1)}, "truncate_prompt_tokens"),
        (plain, {"truncation": Truncation(tokens=1)}, "input"),
    ],
)
def test_a_request_that_the_model_does_not_allow_is_refused(
    edit: Edit, asked: dict[str, Any], param: str, folder: Path
) -> None:
    """A dimension, prompt or length that the model does not have is refused by the field's name."""
    edit(folder)
    with pytest.raises(InvalidRequest, match=param) as caught:
        embed(Encoder.load(folder, "cpu", "auto"), [LONG], **asked)
    assert caught.value.param == param


def test_the_models_own_dimension_may_be_asked_for(folder: Path) -> None:
    """`dimensions` with the number that the vectors have anyway changes nothing."""
    encoder = Encoder.load(folder, "cpu", "auto")
    assert np.array_equal(embed(encoder, ["kelp"], dimensions=HIDDEN), embed(encoder, ["kelp"]))


def test_token_ids_take_no_prompt(folder: Path) -> None:
    """Ids are embedded as they are sent; a prompt asked for beside them is refused, for it stands before a text."""
    write(folder, ST, **PROMPTS, default_prompt_name="query")
    encoder = Encoder.load(folder, "cpu", "auto")
    ids = transformers.AutoTokenizer.from_pretrained(folder)("Query: kelp")["input_ids"]
    assert np.array_equal(embed(encoder, [tuple(ids)]), embed(encoder, ["kelp"]))
    with pytest.raises(InvalidRequest, match="prompt_name"):
        embed(encoder, [tuple(ids)], prompt_name="query")


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_input_is_cut_at_the_side_that_the_request_says(side: str, folder: Path) -> None:
    """A text cut on a side has the vector of the library's tokenizer cut on that side, and so have ids."""
    write(folder, TOKENIZER, truncation_side=side)
    expected = by_library(folder, [LONG])
    write(folder, TOKENIZER, truncation_side="right" if side == "left" else "left")
    encoder = Encoder.load(folder, "cpu", "auto")
    cut = Truncation(side=side)
    assert np.abs(embed(encoder, [LONG], truncation=cut) - expected).max() <= TOLERANCE
    ids = tuple(range(5, 5 + 2 * POSITIONS))
    kept = ids[-POSITIONS:] if side == "left" else ids[:POSITIONS]
    assert np.array_equal(embed(encoder, [ids], truncation=cut), embed(encoder, [kept]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_far_too_long_is_cut_as_a_whole_one(side: str, folder: Path) -> None:
    """Of a text of many contexts only a part is read, and its vector is the one of the whole."""
    write(folder, TOKENIZER, truncation_side=side)
    text = " ".join(f"{index} kelp" for index in range(5000))
    expected = by_library(folder, [text])
    assert np.abs(embed(Encoder.load(folder, "cpu", "auto"), [text], **CUT) - expected).max() <= TOLERANCE
