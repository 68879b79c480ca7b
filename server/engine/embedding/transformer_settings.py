"""How the transformer and its tokenizer are loaded and called, as `sentence_bert_config.json` says.

Law: reads JSON only. What the library passes on to transformers is passed on by us, or refused by name where it would
read other files, other weights or another kind of input. Source: sentence-transformers 6.2.0,
`base/modules/transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from server.engine.embedding.documents import (
    Document,
    count,
    flag,
    read_document,
    refuse_unknown,
    section,
    unsupported,
)

# The first of these that is there and not empty.
_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SETTINGS_FILES = _FILES
_SECTIONS = (("model_args", "model_kwargs"), ("tokenizer_args", "processor_kwargs"), ("config_args", "config_kwargs"))
_FIELDS = {
    "transformer_task",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
    "unpad_inputs",
    "query_length",
    "document_length",
    "query_expansion",
    "max_seq_length",
    "do_lower_case",
    "tokenizer_name_or_path",
    "backend",
    "cache_dir",
    *(name for names in _SECTIONS for name in names),
}
# Where files come from: the library overrides the first six, and nothing is downloaded here.
_HUB = {"subfolder", "token", "cache_dir", "revision", "local_files_only", "trust_remote_code"}
_HUB |= {"force_download", "proxies", "code_revision", "use_auth_token", "resume_download"}
_RESERVED = {"return_unused_kwargs", "path", "pretrained_model_name_or_path", "name_or_path", "config", "directory"}
# Placement and memory, which the server decides, and the pooler, which no vector is made of.
_NEUTRAL_MODEL = {
    "add_pooling_layer",
    "low_cpu_mem_usage",
    "device_map",
    "max_memory",
    "offload_folder",
    "weights_only",
}
_DTYPES = ("auto", "float32", "float16", "bfloat16")
_ATTENTION = ("eager", "sdpa")
_SAME_PADDING = (True, "longest", False, "do_not_pad", "max_length")  # whatever is padded is masked
_NO_MODALITIES = {"audio", "image", "video", "chat_template"}  # of processing_kwargs: not called for a text


@dataclass(frozen=True, slots=True)
class Computed:
    """What a Transformer is loaded for: the library's task, transformers' output that counts, and the library's name of
    it."""

    task: str
    output: str
    name: str


TOKEN_VECTORS = Computed("feature-extraction", "last_hidden_state", "token_embeddings")
SCORES = Computed("sequence-classification", "logits", "scores")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """`folder` is the transformer's inside the model's. `max_length`, `query_length` and `document_length` are limits
    in tokens that replace the tokenizer's own. The options go to the configuration, the model and the tokenizer."""

    folder: str = ""
    max_length: int | None = None
    query_length: int | None = None
    document_length: int | None = None
    lower_case: bool = False
    special_tokens: bool = True
    config_options: Mapping[str, Any] = field(default_factory=_nothing)
    model_options: Mapping[str, Any] = field(default_factory=_nothing)
    tokenizer_options: Mapping[str, Any] = field(default_factory=_nothing)


def read_transformer(directory: Path, folder: str, computed: Computed = TOKEN_VECTORS) -> TransformerSettings:
    """Read the settings of the transformer in `directory / folder`, which serves as `computed`; raises `Permanent`."""
    path, document = _find(directory / folder)
    refuse_unknown(path, document, _FIELDS)
    _refuse_other_inputs(path, document, computed)
    model, tokenizer, config = (_section(path, document, *names) for names in _SECTIONS)
    _refuse_reserved(path, "config_args", config)
    for name in ("dtype", "torch_dtype"):  # of the configuration, where model_args has none
        if name in config:
            model.setdefault("dtype", config.pop(name))
    tokenizer = _tokenizer_options(path, tokenizer)
    length = count(path, document, "max_seq_length")
    if length is not None:
        tokenizer.setdefault("model_max_length", length)
    max_length, special_tokens = _processing(path, section(path, document, "processing_kwargs"))
    return TransformerSettings(
        folder=folder,
        max_length=max_length,
        query_length=count(path, document, "query_length"),
        document_length=count(path, document, "document_length"),
        lower_case=flag(path, document, "do_lower_case", default=False),
        special_tokens=special_tokens,
        config_options=MappingProxyType(config),
        model_options=MappingProxyType(_model_options(path, model)),
        tokenizer_options=MappingProxyType(tokenizer),
    )


def _find(folder: Path) -> tuple[Path, Document]:
    for name in _FILES:
        path = folder / name
        if path.exists() and (document := read_document(path)):
            return path, document
    return folder / _FILES[0], {}


def _section(path: Path, document: Document, old: str, new: str) -> Document:
    """Return the options under their old name, which wins in the library, or their new one, without a Hub's."""
    name = old if old in document else new
    return {key: value for key, value in section(path, document, name).items() if key not in _HUB}


def _refuse_other_inputs(path: Path, document: Document, computed: Computed) -> None:
    """Refuse another head, another kind of input, another output, and files that lie elsewhere."""
    task = document.get("transformer_task", "feature-extraction")
    if task != computed.task:
        raise unsupported(path, "transformer_task", task, computed.task)
    for name in ("query_expansion", "tokenizer_name_or_path"):
        if document.get(name) is not None:
            raise unsupported(path, name, document[name], "null")
    output = document.get("module_output_name", computed.name)
    modalities = document.get("modality_config")
    if "modality_config" in document:
        plain = {"method": "forward", "method_output_name": computed.output}
        found = modalities.get("text") if isinstance(modalities, dict) and modalities.keys() == {"text"} else None
        if not isinstance(found, dict) or {**found, "method_output_name": _single(found)} != plain:
            raise unsupported(path, "modality_config", modalities, f"text alone, as {plain}")
        if "module_output_name" not in document:
            raise unsupported(path, "module_output_name", None, f"{computed.name} beside modality_config")
        if output != computed.name:
            raise unsupported(path, "module_output_name", output, computed.name)
    # Without modality_config the library sets module_output_name itself.


def _single(entry: Document) -> Any:
    """Return the output's name, which may be written as a list of one."""
    name = entry.get("method_output_name")
    return name[0] if isinstance(name, list) and len(name) == 1 else name


def _model_options(path: Path, options: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in _NEUTRAL_MODEL or (name == "use_safetensors" and value is not False):
            continue
        if name in ("dtype", "torch_dtype") and value in (*_DTYPES, None):
            found.setdefault("dtype", value or "auto")
        elif name == "attn_implementation" and value in (*_ATTENTION, None):
            found[name] = value
        else:
            expected = "dtype or attn_implementation"
            if name in ("dtype", "torch_dtype"):
                expected = f"one of {', '.join(_DTYPES)}"
            elif name == "attn_implementation":
                expected = f"one of {', '.join(_ATTENTION)}"
            raise unsupported(path, f"model_args.{name}"[:80], value, expected)
    return found


def _refuse_reserved(path: Path, section_name: str, options: Document) -> None:
    """Refuse names that are not fields but arguments of transformers' own functions."""
    for name, value in options.items():
        if name in _RESERVED or name.startswith("_"):
            raise unsupported(
                path, f"{section_name}.{name}"[:80], value, "a field that the files of the folder can have"
            )


def _tokenizer_options(path: Path, options: Document) -> dict[str, Any]:
    _refuse_reserved(path, "tokenizer_args", options)
    for name, value in options.items():
        if name.endswith("_file") or name == "tokenizer_type":
            raise unsupported(path, f"tokenizer_args.{name}"[:80], value, "the tokenizer that lies in the folder")
    if "model_max_length" in options:
        count(path, options, "model_max_length")
    return dict(options)


def _processing(path: Path, options: Document) -> tuple[int | None, bool]:
    """Return the length limit and whether special tokens are added, of the options of the tokenizer's call."""
    refuse_unknown(path, options, {"common", "text", *_NO_MODALITIES})
    # Common options win for a tokenizer.
    call = {**section(path, options, "text"), **section(path, options, "common")}
    for name, value in call.items():
        neutral = (
            (name == "padding" and value in _SAME_PADDING)
            or (name == "truncation" and value in (True, "longest_first"))
            or (name == "return_tensors" and value == "pt")
            or name in ("pad_to_multiple_of", "padding_side", "logits_to_keep", "return_attention_mask", "verbose")
        )
        if not neutral and name not in ("max_length", "add_special_tokens"):
            raise unsupported(
                path, f"processing_kwargs.text.{name}"[:80], value, "max_length, add_special_tokens or padding"
            )
    return count(path, call, "max_length"), flag(path, call, "add_special_tokens", default=True)
