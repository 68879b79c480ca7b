"""Model folders whose weights lie in odd files: which of them count, and which tensor comes from where.

Law: writes folders of a tiny Llama; each case is a function of its folder and of two sets of weights, those that a
reader should find and stale ones that lie beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}


def build_model(seed: int) -> Any:
    """A tiny Llama with random weights."""
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def write_index(path: Path, weight_map: Mapping[str, object], **more: object) -> None:
    """Write an index as transformers does."""
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map} | more))


def write_shards(folder: Path, state: State, *names: str) -> dict[str, str]:
    """Spread the tensors over these files, the first ones in the first file; return the weight map."""
    share = -(-len(state) // len(names))
    tensors = list(state)
    weight_map: dict[str, str] = {}
    for number, name in enumerate(names):
        part = tensors[number * share : (number + 1) * share]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({tensor: state[tensor] for tensor in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    return weight_map


def set_field(folder: Path, value: object) -> None:
    """Set `transformers_weights` in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_weights": value}))


INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

Case = Callable[[Path, State, State], None]
EQUAL: dict[str, Case] = {}
REFUSED: dict[str, Case] = {}


def _equal(case: Case) -> Case:
    EQUAL[case.__name__] = case
    return case


def _refused(case: Case) -> Case:
    REFUSED[case.__name__] = case
    return case


def _index(name: str, *names: str, **more: object) -> None:
    """Add a case of an index over files of these names."""

    def case(folder: Path, good: State, stale: State) -> None:
        write_index(folder / INDEX, write_shards(folder, good, *names), **more)

    EQUAL[name] = case


def _beside(name: str, *left_over: str) -> None:
    """Add a case of two shards and an index, with stale files of these names beside them."""

    def case(folder: Path, good: State, stale: State) -> None:
        write_index(folder / INDEX, write_shards(folder, good, *SHARDS))
        for other in left_over:
            write_shards(folder, stale, other)

    EQUAL[name] = case


def _beside_one(name: str, *left_over: str) -> None:
    """Add a case of one file, with stale files of these names beside it."""

    def case(folder: Path, good: State, stale: State) -> None:
        write_shards(folder, good, "model.safetensors")
        for other in left_over:
            write_shards(folder, stale, other)

    EQUAL[name] = case


def _named(name: str, *names: str, field: str, index: str | None = None) -> None:
    """Add a case of a file or an index that config.json names, with stale weights under the usual names."""

    def case(folder: Path, good: State, stale: State) -> None:
        write_shards(folder, stale, "model.safetensors")
        write_index(folder / INDEX, write_shards(folder, stale, *SHARDS))
        weight_map = write_shards(folder, good, *names)
        if index is not None:
            write_index(folder / index, weight_map)
        set_field(folder, field)

    EQUAL[name] = case


_beside_one("one_file")
_beside_one("one_file_beside_another", "extra.safetensors")
_beside_one("one_file_beside_a_variant", "model.fp16.safetensors")
_beside_one("one_file_beside_a_dot_file", "._model.safetensors")
_beside_one("one_file_beside_an_adapter", "adapter_model.safetensors")
_beside_one("one_file_beside_a_subfolder", "original/model.safetensors")
_beside_one("one_file_beside_shards_without_an_index", *SHARDS)
_index("two_shards", *SHARDS)
_index("twelve_shards_of_names_that_sort_as_text", *(f"part-{number}.safetensors" for number in range(12)))
_index("shards_of_other_names", "a.safetensors", "größe 2.safetensors")
_index("shards_with_a_dot_before_the_slash", *(f"./{name}" for name in SHARDS))
_index("shards_in_a_subfolder", *(f"weights/{name}" for name in SHARDS))
_index("shards_in_two_subfolders", "a/model.safetensors", "b/c/model.safetensors")
_index("shards_by_a_way_round", *(f"weights/../{name}" for name in SHARDS))
_index("shards_with_double_slashes", *(f"weights//{name}" for name in SHARDS))
_index("a_dot_file_that_the_index_names", ".hidden.safetensors", "shown.safetensors")
_index("metadata_of_text", *SHARDS, metadata={"total_size": "much", "total_parameters": None})
_index("metadata_that_is_nested", *SHARDS, metadata={"total_size": 1.5e30, "more": [{"a": []}]})
_index("metadata_that_is_no_number", *SHARDS, metadata={"total_size": float("nan"), "least": float("-inf")})
_index("metadata_without_a_size", *SHARDS, metadata={})
_index("more_fields_in_the_index", *SHARDS, format="pt", weight_maps={})
_beside("a_shard_that_no_index_names", "model-00003-of-00003.safetensors")
_beside("a_file_of_another_format_of_the_model", "consolidated.safetensors")
_beside("dot_files_beside_shards", *(f"._{name}" for name in SHARDS))
_beside("variants_beside_shards", "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors")
_named("a_file_that_the_configuration_names", "other.safetensors", field="other.safetensors")
_named("a_file_in_a_subfolder_that_it_names", "sub/other.safetensors", field="sub/other.safetensors")
_named("a_file_with_a_dot_that_it_names", "other.safetensors", field="./other.safetensors")
_named("an_index_that_it_names", "x.safetensors", "y.safetensors", field="o" + INDEX, index="o" + INDEX)
_named("an_index_of_a_suffix_that_it_names", "x.safetensors", field="o.safetensors.index.json", index="o." + INDEX[6:])


@_equal
def an_index_in_a_subfolder_that_it_names(folder: Path, good: State, stale: State) -> None:
    """The files of an index in a subfolder are relative to the model's folder."""
    weight_map = write_shards(folder, good, *SHARDS)
    (folder / "sub").mkdir()
    write_shards(folder / "sub", stale, *SHARDS)
    write_index(folder / "sub" / INDEX, weight_map)
    set_field(folder, f"sub/{INDEX}")


@_equal
def a_name_of_null(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, good, "model.safetensors")
    set_field(folder, None)


@_equal
def one_file_and_an_index_of_others(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, good, "model.safetensors")
    write_index(folder / INDEX, write_shards(folder, stale, *SHARDS))


@_equal
def a_folder_under_the_files_name(folder: Path, good: State, stale: State) -> None:
    (folder / "model.safetensors").mkdir()
    write_index(folder / INDEX, write_shards(folder, good, *SHARDS))


@_equal
def a_pickle_beside_the_file(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, good, "model.safetensors")
    torch.save(stale, folder / "pytorch_model.bin")


@_equal
def two_names_for_a_file(folder: Path, good: State, stale: State) -> None:
    weight_map = write_shards(folder, good, *SHARDS)
    write_index(folder / INDEX, weight_map | {"model.norm.weight": f"./{weight_map['model.norm.weight']}"})


@_equal
def a_tensor_that_the_index_has_twice(folder: Path, good: State, stale: State) -> None:
    text = json.dumps({"metadata": {}, "weight_map": write_shards(folder, good, *SHARDS)})
    (folder / INDEX).write_text(text.replace('"weight_map": {', '"weight_map": {"model.norm.weight": "gone", '))


@_equal
def a_tensor_in_two_files_of_which_the_index_names_the_last(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, good, "b.safetensors")
    save_file({"model.norm.weight": stale["model.norm.weight"], "over": torch.ones(3)}, folder / "a.safetensors")
    write_index(folder / INDEX, dict.fromkeys(good, "b.safetensors") | {"over": "a.safetensors"})


@_equal
def symlinks_to_shards(folder: Path, good: State, stale: State) -> None:
    """As a Hub's cache has them: the files lie outside the folder."""
    blobs = folder.parent / f"{folder.name}.blobs"
    weight_map = write_shards(blobs, good, *SHARDS)
    for number, name in enumerate(SHARDS):
        (blobs / name).rename(blobs / f"blob{number}")
        (folder / name).symlink_to(blobs / f"blob{number}")
    write_index(folder / INDEX, weight_map)


@_equal
def tensors_over_and_missing(folder: Path, good: State, stale: State) -> None:
    kept = {name: tensor for name, tensor in good.items() if name != "model.norm.weight"}
    write_shards(folder, kept | {"model.over.weight": torch.ones(3)}, "model.safetensors")


@_equal
def headers_with_metadata(folder: Path, good: State, stale: State) -> None:
    save_file(good, folder / "model.safetensors", metadata={"format": "mlx", "ü": ""})


@_equal
def a_header_whose_metadata_is_null(folder: Path, good: State, stale: State) -> None:
    save_file(good, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": None} | json.loads(data[8 : 8 + length])).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def _named_wrongly(name: str, field: object) -> None:
    """Add a case of a configuration that names no file that may be read."""

    def case(folder: Path, good: State, stale: State) -> None:
        write_shards(folder, stale, "model.safetensors")
        write_shards(folder.parent, stale, "outside.safetensors")
        set_field(folder, field)

    REFUSED[name] = case


def _indexed_wrongly(name: str, content: object) -> None:
    """Add a case of an index that names nothing."""

    def case(folder: Path, good: State, stale: State) -> None:
        write_shards(folder, stale, *SHARDS)
        (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))

    REFUSED[name] = case


def _replaced(name: str, content: bytes) -> None:
    """Add a case of a file of other content in place of the weights."""

    def case(folder: Path, good: State, stale: State) -> None:
        (folder / "model.safetensors").write_bytes(content)

    REFUSED[name] = case


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 4976698672\n"
_named_wrongly("a_configuration_that_names_an_absent_file", "gone.safetensors")
_named_wrongly("a_configuration_that_names_an_absent_index", f"gone{INDEX[5:]}")
_named_wrongly("a_configuration_that_names_a_file_outside", "../outside.safetensors")
_named_wrongly("a_configuration_that_names_an_absolute_file", "/etc/outside.safetensors")
_named_wrongly("a_configuration_that_names_another_format", "pytorch_model.bin")
_named_wrongly("a_configuration_that_names_nothing", "")
_named_wrongly("a_configuration_that_names_a_number", 5)
_indexed_wrongly("an_index_of_no_tensors", {"metadata": {}, "weight_map": {}})
_indexed_wrongly("an_index_without_a_map", {"metadata": {}})
_indexed_wrongly("an_index_whose_map_is_a_list", {"metadata": {}, "weight_map": [*SHARDS]})
_indexed_wrongly("an_index_of_numbers", {"metadata": {}, "weight_map": {"model.norm.weight": 1}})
_indexed_wrongly(
    "an_index_of_an_absent_file", {"metadata": {}, "weight_map": {"model.norm.weight": "gone.safetensors"}}
)
_indexed_wrongly("an_index_that_is_a_list", [])
_indexed_wrongly("an_index_that_is_cut_short", '{"metadata": {}, "weight_map": {"model.norm')
_indexed_wrongly("an_index_that_is_a_pointer", LFS.decode())
_replaced("a_pointer_in_place_of_weights", LFS)
_replaced("a_page_in_place_of_weights", b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>")
_replaced("an_empty_file", b"")


@_refused
def a_file_that_is_cut_short(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, good, "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


@_refused
def a_variant_alone(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, stale, "model.fp16.safetensors")


@_refused
def a_dot_file_alone(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, stale, "._model.safetensors", "._model-00001-of-00001.safetensors")


@_refused
def an_unusual_name_alone(folder: Path, good: State, stale: State) -> None:
    write_shards(folder, stale, "weights.safetensors")


@_refused
def nothing(folder: Path, good: State, stale: State) -> None:
    pass


def make(case: Case, folder: Path) -> None:
    """Write the folder of a case."""
    folder.mkdir()
    model = build_model(1)
    model.config.save_pretrained(folder)
    case(
        folder, *({name: tensor.clone() for name, tensor in build_model(seed).state_dict().items()} for seed in (1, 2))
    )
