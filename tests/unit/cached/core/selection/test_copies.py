"""Copies of the same weights: what the default selection leaves out, and what a preset picks."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from cached.contract.errors import Permanent
from cached.core.filters import Rules, select_files
from cached.core.listing import Listing, RemoteFile
from cached.core.selection.indexes import read_indexes
from cached.core.selection.presets import EARLIER, parse_preset

TEXTS = ("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def listing(*paths: str) -> Listing:
    return Listing(tuple(RemoteFile(path, path, 1, "v") for path in sorted(paths)), "here")


def chosen(
    paths: tuple[str, ...], preset: str = "", include: tuple[str, ...] = (), texts: Mapping[str, object] | None = None
) -> set[str]:
    """What a version has of these paths; `texts` are the JSON files that a preset reads, by their path."""
    rules = Rules(include, (), parse_preset(preset)) if preset else Rules(include)
    data = {path: json.dumps(value).encode() for path, value in (texts or {}).items()}
    sizes = {path: len(data[path]) for path in paths if path in data}
    indexes = read_indexes(rules.preset, sizes, lambda path, offset, length: data[path][offset : offset + length])
    return {file.path for file in select_files(listing(*paths), "hf://a/b", rules, indexes).files}


DOUBLES = {
    "consolidated": ("consolidated.safetensors",),
    "consolidated shards": ("consolidated-00001-of-00002.safetensors", "consolidated.safetensors.index.json"),
    "meta": ("original/consolidated.00.pth", "original/params.json", "consolidated.00.pth"),
    "gpt-oss": ("metal/model.bin", "original/model--00001-of-00007.safetensors", "original/dtypes.json"),
    "another precision": ("model.fp16.safetensors",),
    "shards of another precision": ("model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"),
    "precision at the end": ("model-00001-of-00002.fp16.safetensors",),
    "onnx": ("onnx/model.onnx", "onnx/model.onnx_data", "onnx/config.json", "model.onnx"),
    "openvino": ("openvino/openvino_model.bin", "openvino/openvino_model.xml", "openvino_model.bin"),
    "coreml": ("coreml/model.mlpackage/Data/weights.bin", "model.mlmodel", "x.mlpackage/Manifest.json"),
    "tensorflow": ("tf_model.h5", "tf_model-00001-of-00002.h5", "saved_model/saved_model.pb", "model.tflite"),
    "flax": ("flax_model.msgpack", "flax_model.msgpack.index.json"),
    "rust": ("rust_model.ot",),
    "pytorch": ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
    "gguf": ("model-Q4_K_M.gguf", "gguf/model-f16.gguf"),
    "training": ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json"),
    "training folders": ("checkpoint-500/model.safetensors", "global_step10/mp_rank_00_model_states.pt"),
}


@pytest.mark.parametrize("copies", DOUBLES.values(), ids=DOUBLES)
@pytest.mark.parametrize("main", [("model.safetensors",), (*SHARDS, INDEX)], ids=["single", "sharded"])
def test_the_usual_doubles_stay_out(main: tuple[str, ...], copies: tuple[str, ...]) -> None:
    """Beside `model*.safetensors`, the same weights for other engines and a training run's state stay out; `for: all`
    takes them."""
    paths = (*TEXTS, *main, *copies)
    assert chosen(paths) == {*TEXTS, *main}
    assert chosen(paths, "all") == set(paths)
    assert chosen(paths, "transformers") == chosen(paths, "vllm") == {*TEXTS, *main}


@pytest.mark.parametrize(
    "paths",
    [
        ("onnx/model.onnx", "config.json"),
        ("model-Q4_K_M.gguf", "config.json"),
        ("consolidated.safetensors", "params.json", "tekken.json"),
        ("tf_model.h5", "config.json"),
        ("model.fp16.safetensors", "config.json"),
        ("optimizer.pt", "global_step10/mp_rank_00_model_states.pt"),
        ("model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors", "modules.json"),
        ("model.safetensors", "2_Dense/pytorch_model.bin"),
        ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin", "model_index.json"),
        ("adapter_model.safetensors", "adapter_config.json"),
        ("model.safetensors", "silero_vad.onnx"),
        ("model.safetensors", "vocoder/vocoder.onnx"),
        ("model.safetensors", "mtp.safetensors"),
    ],
)
def test_what_is_there_once_stays(paths: tuple[str, ...]) -> None:
    """Weights that no other file has again are the model, whatever their format."""
    assert chosen(paths) == set(paths)


def test_a_pattern_of_the_entry_that_names_only_doubles_means_them() -> None:
    """`onnx/*` and `*.gguf` in `include` bring those files; `*.safetensors` brings no consolidated copy."""
    paths = ("config.json", "model.safetensors", "consolidated.safetensors", "onnx/model.onnx", "m-Q8_0.gguf")
    assert chosen(paths, include=("*.json", "*.safetensors")) == {"config.json", "model.safetensors"}
    assert chosen(paths, include=("*.safetensors", "onnx/*")) == {"model.safetensors", "onnx/model.onnx"}
    assert chosen(paths, include=("*.safetensors", "*.gguf")) == {"model.safetensors", "m-Q8_0.gguf"}
    assert chosen(paths, include=("consolidated*", "*.json", "model.*")) == {*paths[:3]}


def test_the_index_decides_what_a_preset_picks() -> None:
    """Of several safetensors files the ones that the index names are taken, in whatever folder and under any name."""
    odd = ("part_a.safetensors", "sub/part_b.safetensors")
    paths = (*TEXTS, INDEX, *odd, "stale-00001-of-00002.safetensors", "pytorch_model.bin")
    named: dict[str, object] = {INDEX: {"weight_map": {"a": "part_a.safetensors", "b": "./sub/part_b.safetensors"}}}
    for preset in ("transformers", "vllm"):
        assert chosen(paths, preset, texts=named) == {*TEXTS, INDEX, *odd}
    odd = ("consolidated.safetensors", "original/model-00001-of-00001.safetensors")
    named = {INDEX: {"weight_map": dict(zip("ab", odd, strict=True))}}
    for preset in ("transformers", "vllm"):
        assert chosen((*TEXTS, INDEX, *odd), preset, texts=named) == {*TEXTS, INDEX, *odd}


def test_the_index_of_a_copy_names_only_copies() -> None:
    """What `consolidated.safetensors.index.json` or the index of another precision names stays out with it."""
    copies = ("consolidated-00001-of-00001.safetensors", "model.fp16-00001-of-00001.safetensors")
    indexes = ("consolidated.safetensors.index.json", "model.safetensors.index.fp16.json")
    texts = {index: {"weight_map": {"a": name}} for index, name in zip(indexes, copies, strict=True)}
    texts[INDEX] = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    for preset in ("transformers", "vllm"):
        assert chosen((*TEXTS, *SHARDS, *copies, *texts), preset, texts=texts) == {*TEXTS, *SHARDS, INDEX}


def test_each_engine_keeps_its_own_order_of_preference() -> None:
    """transformers takes a single file before an index, and what config.json names before both; vLLM asks the index."""
    paths = ("config.json", "model.safetensors", "new.safetensors", INDEX, *SHARDS)
    named: dict[str, object] = {INDEX: {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}}
    assert chosen(paths, "transformers", texts=named) == {"config.json", INDEX, "model.safetensors"}
    assert chosen(paths, "vllm", texts=named) == {"config.json", INDEX, *SHARDS}
    named["config.json"] = {"transformers_weights": "new.safetensors"}
    assert chosen(paths, "transformers", texts=named) == {"config.json", INDEX, "new.safetensors"}


def test_older_weights_are_picked_where_there_are_no_others() -> None:
    """Without safetensors an engine reads pytorch_model.bin; the doubles beside it stay out."""
    paths = ("config.json", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "training_args.bin")
    for preset in ("", "transformers", "vllm"):
        assert chosen(paths, preset) == {"config.json", "pytorch_model.bin"}


def test_vllm_takes_mistrals_own_format_where_it_is_the_only_one() -> None:
    """`consolidated.safetensors` alone is what vLLM reads; transformers reads none of it, and says so."""
    paths = ("params.json", "consolidated.safetensors", "tekken.json")
    assert chosen(paths, "vllm") == set(paths)
    with pytest.raises(Permanent, match=r"hf://a/b: expected weights that transformers reads.*consolidated"):
        chosen(paths, "transformers")


GGUF = ("README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-IQ4_XS.gguf", "UD/m-UD-Q4_K_M.gguf", "model.safetensors")


def test_a_preset_picks_one_quantization() -> None:
    """`gguf:Q4_K_M` takes the files of that quantization, all their parts, one projector, and no other weights."""
    assert chosen((*GGUF, "config.json"), "gguf:Q4_K_M") == {"README.md", "config.json", "m-Q4_K_M.gguf"}
    assert chosen(GGUF, "gguf:q8_0") == {"README.md", "m-Q8_0.gguf"}
    assert chosen(GGUF, "gguf:UD-Q4_K_M") == {"README.md", "UD/m-UD-Q4_K_M.gguf"}
    split = ("Q6_K/m-00001-of-00002.gguf", "Q6_K/m-00002-of-00002.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf")
    assert chosen((*split, "m.imatrix"), "gguf:Q6_K") == {*split[:3], "m.imatrix"}


def test_a_quantization_that_is_not_there_is_refused_with_those_that_are() -> None:
    """The error names what was asked for and what the source has."""
    with pytest.raises(Permanent, match="Q5_K_S, found these quantizations: IQ4_XS, Q4_K_M, Q8_0, UD-Q4_K_M"):
        chosen(GGUF, "gguf:Q5_K_S")


def test_the_selection_of_earlier_releases_is_kept_for_their_digests() -> None:
    """A pin that was made under the earlier built-in filters can still be met: they choose what they chose."""
    paths = ("config.json", "model.safetensors", "pytorch_model.bin", "original/a.pth", "onnx/model.onnx", "x.swp~")
    files = select_files(listing(*paths), "hf://a/b", Rules(preset=EARLIER)).files
    assert {file.path for file in files} == {"config.json", "model.safetensors", "onnx/model.onnx", "x.swp~"}
