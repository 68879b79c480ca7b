"""What a file of a model is for, by its name.

Law: pure. The names are those that transformers 5.23, sentence-transformers 6.2 and vLLM read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate

WEIGHT_SUFFIXES = (
    *(".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz"),
    *(".ot", ".tflite", ".mlmodel", ".pdparams", ".nemo", ".engine", ".plan", ".ggml", ".llamafile", ".keras"),
)
# Files with a weight's suffix that hold none.
_NO_WEIGHTS = re.compile(
    r"training_args\.bin|(?:optimizer|scheduler|scaler|rng_state|random_states|.*optim_states).*\.(?:bin|pt|pth|pkl)"
)
_INDEX = re.compile(r"\.(?P<format>safetensors|bin)\.index(?:\.[^./]+)?\.json$")
_SHARD = re.compile(
    r"(?P<stem>.*?)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<rest>(?:\.[^./]+)?\.(?:safetensors|bin|gguf|pt|pth))"
)
_RANKS_PART = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # transformers' `is_sharded_checkpoint`
CONFIG = "config.json"
_CONFIGURATION = (
    *(CONFIG, "generation_config.json", "modules.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    "params.json",
)
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WHOLE_TOKENIZERS = ("tokenizer.json", "tekken.json")  # each has the vocabulary and the rules
# A vocabulary, or a part of one. `merges.txt` and `vocab.json` are one together.
VOCABULARIES = (
    *("tokenizer.model", "tokenizer.model.*", "tokenizer.mm.model*", "tokenizer.tok.json", "vocab.json", "merges.txt"),
    *("vocab.txt", "vocab.bpe", "encoder.json", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model"),
    *("source.spm", "target.spm", "spm.model", "spm_char.model", "*.tiktoken", "bpe.codes", "dict.txt"),
    *("prophetnet.tokenizer", "tokenizer*.vocab", "entity_vocab.json", "*.spm"),
)
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_CODE = ("modeling_*.py", "configuration_*.py", "tokenization_*.py", "processing_*.py", "image_processing_*.py")


def folder_of(path: str) -> str:
    """Return the folder of a path, with a `/` at its end; empty for the root."""
    return path[: path.rfind("/") + 1]


def name_of(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def is_weights(path: str) -> bool:
    """Return whether a file holds weights, of any engine."""
    name = name_of(path)
    return name.lower().endswith(WEIGHT_SUFFIXES) and not name.startswith(".") and not _NO_WEIGHTS.fullmatch(name)


def is_ranks_part(path: str) -> bool:
    """Return whether a file at the root is what one rank wrote of a distributed checkpoint."""
    return _RANKS_PART.fullmatch(path) is not None


def index_format(path: str) -> str | None:
    """Return the format (`safetensors` or `bin`) whose files an index lists; None if the file is no index."""
    found = _INDEX.search(path)
    return None if found is None else found["format"]


def _any_of(*patterns: str) -> str:
    return "|".join(translate(pattern) for pattern in patterns)


# Of a file's name, and of the last folder's for templates: one match tells the role.
_ROLES = re.compile(
    r"(?P<index>.*\.(?:safetensors|bin)\.index(?:\.[^./]+)?\.json)"
    rf"|(?P<tokenizer>{_any_of(*WHOLE_TOKENIZERS, *_TOKENIZER)})"
    rf"|(?P<vocabulary>{_any_of(*VOCABULARIES)})"
    rf"|(?P<configuration>{_any_of(*_CONFIGURATION)})"
    rf"|(?P<template>{_any_of(*_TEMPLATES)})"
    rf"|(?P<code>{_any_of(*_CODE)})"
)
_TEMPLATE_FOLDER = "additional_chat_templates"


def role_of(path: str) -> str | None:
    """Return what an engine reads the file for, None for files that it does not read by their names.

    One of `configuration`, `tokenizer`, `vocabulary`, `chat template`, `code`, `index`.
    """
    folders, _, name = path.rpartition("/")
    found = _ROLES.fullmatch(name)
    if found is not None:
        return "chat template" if found.lastgroup == "template" else found.lastgroup
    is_template = name.endswith(".jinja") and folders.rpartition("/")[2] == _TEMPLATE_FOLDER
    return "chat template" if is_template else None


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The files `<stem>-0000i-of-0000n` of one folder: those `found`, and how many there should be."""

    pattern: str
    found: tuple[str, ...]
    count: int

    @property
    def is_complete(self) -> bool:
        return len(self.found) >= self.count


def shard_sets(paths: Iterable[str]) -> dict[str, ShardSet]:
    """Return the sets of numbered shards among the paths, by their name with `*` for the number."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    counts: dict[str, int] = {}
    for path in paths:
        shard = _SHARD.fullmatch(path)
        if shard is not None:
            pattern = f"{shard['stem']}-*-of-{shard['count']}{shard['rest']}"
            found[pattern].add(path)
            counts[pattern] = int(shard["count"])
    return {pattern: ShardSet(pattern, tuple(sorted(names)), counts[pattern]) for pattern, names in found.items()}
