"""Decide what a model's folder computes, from its small JSON files: generate, embed, classify, or nothing served here.

Law: standard library only, reads no weights: a model that is not served here is refused by name before anything heavy.
Each architecture in `allowed` is compared with its library in tests/unit/server/engine/test_architectures.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached.contract.errors import Permanent
from cached.contract.loadable.first_bytes import LOOKED_AT_BYTES
from cached.contract.loadable.names import role_of
from cached.contract.loadable.verdict import find_stand_in
from server.engine import architectures
from server.engine.types import ModelKind

_APP = "serve it with your own code (--app MODULE:FACTORY)"
_VLLM = "serve it with vLLM (--load-format holdfast reads this folder), or with your own code (--app MODULE:FACTORY)"
# What a head is for, by the end of its class's name, and what to use instead. The first that fits counts.
_HEADS = (
    ("ForTokenClassification", "labels single tokens", _VLLM),
    ("ForQuestionAnswering", "marks answers in a text", _APP),
    ("ForMultipleChoice", "chooses between answers", _APP),
    ("ForNextSentencePrediction", "says whether two sentences follow each other", _APP),
    (
        ("ForMaskedLM", "WithLMHeadModel", "ForPreTraining", "ForMaskedLM"),
        "fills in masked tokens; how its hidden states become a vector is not said",
        "to embed with it, publish it as sentence-transformers saves it (modules.json, 1_Pooling/config.json); else "
        + _APP,
    ),
    (("ForConditionalGeneration", "ForSpeechSeq2Seq"), "is an encoder-decoder or reads more than text", _VLLM),
    (("Segmentation", "Detection", "ForMaskedImageModeling", "DepthEstimation"), "reads images", _APP),
    (("ImageClassification", "VideoClassification"), "classifies images", _APP),
    (("AudioClassification", "ForCTC", "ForXVector", "AudioFrameClassification"), "reads audio", _APP),
    (("ForRetrieval", "ForTextEncoding", "WithProjection"), "is a part or a retriever of its own kind", _APP),
    ("ForSequenceClassification", "classifies texts, but is not compared with its library", _VLLM),
    (("ForCausalLM", "LMHeadModel"), "generates text, but is not compared with its library", _VLLM),
)
_MORE_THAN_TEXT = {"vision_config": "images", "audio_config": "audio", "speech_config": "audio"}
# The root, the folders of modules, and chat templates.
_READ_HERE = ("*", "[0-9]*_*/*", "additional_chat_templates/*")
_ROLES = ("configuration", "tokenizer", "vocabulary", "chat template")
_SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True)
class Declared:
    """What a folder says of itself. `inside`: the transformer's folder within it. `architecture` is None where
    config.json names none: the tensors' names decide then (`server.engine.model_files`)."""

    kind: ModelKind | None
    inside: str
    architecture: str | None
    model_type: str


def refuse_unserved(directory: Path) -> None:
    """Raise `Permanent` where the model in `directory` says that it is none that is served here; adapters have no kind
    of their own."""
    if not (directory / "adapter_config.json").is_file():
        read_kind(directory)


def read_kind(directory: Path) -> Declared:
    """Return what the model in `directory` computes; raises `Permanent`: `invalid_config`, `unsupported_model`,
    `lfs_pointer`, `web_page`."""
    _refuse_stand_ins(directory)
    if (directory / "modules.json").is_file():
        return _by_modules(directory)
    config = _config(directory)
    names = _architectures(directory, config)
    model_type = str(config.get("model_type") or "")
    _refuse_bad_context(directory, config)
    if _reads(config) is not None:  # also where the class is the text part's
        raise _unsupported(directory, names or [f"the model type {model_type}"], config)
    if (directory / "1_Pooling" / "config.json").is_file():
        return Declared(_encoder(directory, config), "", names[0] if names else None, model_type)
    for name in names:
        kind = _kind_of(name, model_type)
        if kind is not None:
            return Declared(kind, "", name, model_type)
    if names:
        raise _unsupported(directory, names, config)
    if not model_type:
        raise _invalid(directory / "config.json", "expected `architectures` or `model_type`, found neither")
    if config.get("is_encoder_decoder"):
        raise _unsupported(directory, [f"the model type {model_type}"], config)
    return Declared(None, "", None, model_type)


def _refuse_stand_ins(directory: Path) -> None:
    """Refuse a pointer or a page in place of a file that is read here: a pointer would be taken for a vocabulary, or
    for a chat template, without an error."""
    for pattern in _READ_HERE:
        for path in sorted(directory.glob(pattern)):
            name = str(path.relative_to(directory))
            if role_of(name) not in _ROLES or not path.is_file():
                continue
            try:
                with path.open("rb") as file:
                    beginning, size = file.read(LOOKED_AT_BYTES), path.stat().st_size
            except OSError as error:
                raise _invalid(path, str(error)) from error
            found = find_stand_in(name, size, beginning)
            if found is not None:
                raise Permanent(found.code, f"{directory / found.message}", f"{found.remedy}, then publish it again")


def _by_modules(directory: Path) -> Declared:
    """Read what sentence-transformers wrote: its three kinds of models have the same files."""
    said = _object(directory / _SENTENCE_TRANSFORMERS) if (directory / _SENTENCE_TRANSFORMERS).is_file() else {}
    family = str(said.get("model_type") or "SentenceTransformer")
    types, inside = _module_types(directory)
    config = _config(directory / inside)
    names = _architectures(directory / inside, config)
    name, model_type = (names[0] if names else None), str(config.get("model_type") or "")
    _refuse_bad_context(directory / inside, config)
    if family == "SentenceTransformer":
        half = model_type in architectures.WITH_MODULES
        kind = ModelKind.EMBEDDINGS if half else _encoder(directory / inside, config)
        return Declared(kind, inside, name, model_type)
    if family != "CrossEncoder":
        raise Permanent(
            "unsupported_model",
            f"{directory / _SENTENCE_TRANSFORMERS}: expected a SentenceTransformer or a CrossEncoder, found {family}",
            _APP,
        )
    if types != ["Transformer"]:
        raise Permanent(
            "unsupported_model",
            f"{directory / 'modules.json'}: expected a CrossEncoder of one Transformer that classifies sequences, "
            f"found {', '.join(types) or 'no modules'}",
            _VLLM,
        )
    if name is None or _kind_of(name, model_type) is not ModelKind.CLASSIFICATION:
        raise _unsupported(directory / inside, names or [model_type], config)
    return Declared(ModelKind.CLASSIFICATION, inside, name, model_type)


def _module_types(directory: Path) -> tuple[list[str], str]:
    """Return the last parts of the modules' types, and the path of the transformer."""
    path = directory / "modules.json"
    found = _json(path)
    if not (isinstance(found, list) and all(isinstance(one, dict) and "type" in one for one in found)):
        raise _invalid(path, "expected a list of objects with `type` and `path`")
    types = [str(one["type"]).rpartition(".")[2] for one in found]
    where: Any = next((one.get("path", "") for one in found if str(one["type"]).endswith("Transformer")), "")
    if not isinstance(where, str) or where.startswith("/") or ".." in Path(where).parts or "\0" in where:
        raise _invalid(path, f"expected a path inside the folder, found {where!r}")
    return types, where


def _encoder(directory: Path, config: dict[str, Any]) -> ModelKind:
    model_type = str(config.get("model_type") or "")
    if model_type not in architectures.ENCODERS or _reads(config) is not None:
        raise _unsupported(directory, _architectures(directory, config) or [model_type], config)
    return ModelKind.EMBEDDINGS


def _kind_of(architecture: str, model_type: str) -> ModelKind | None:
    if architecture in architectures.GENERATORS:
        return ModelKind.COMPLETIONS
    if architecture in architectures.CLASSIFIERS:
        return ModelKind.CLASSIFICATION
    return ModelKind.EMBEDDINGS if architectures.ENCODERS.get(model_type) == architecture else None


def _unsupported(directory: Path, names: list[str], config: dict[str, Any]) -> Permanent:
    """Return the refusal of these architectures: what they are, and what to use instead."""
    what, remedy = _describe(names[0], config)
    return Permanent(
        "unsupported_model",
        f"{directory}: expected a model that generates text, embeds texts or classifies sequences, found "
        f"{', '.join(names)}, which {what}",
        remedy,
    )


def _reads(config: dict[str, Any]) -> str | None:
    """Return what a model reads besides text; None for nothing."""
    return next((what for key, what in _MORE_THAN_TEXT.items() if config.get(key) is not None), None)


def _describe(name: str, config: dict[str, Any]) -> tuple[str, str]:
    more = _reads(config)
    if more is not None:
        return f"reads {more}", _VLLM
    for ends, what, remedy in _HEADS:
        if name.endswith(ends):
            return what, remedy
    if config.get("is_encoder_decoder"):
        return "is an encoder-decoder", _VLLM
    if config.get("auto_map"):
        return "needs the code that comes with it, which is never run", _VLLM
    if config.get("image_size") is not None:
        return "reads images", _APP
    return "is not one of the architectures that are compared with transformers (docs/models.md)", _VLLM


def _refuse_bad_context(directory: Path, config: dict[str, Any]) -> None:
    """Refuse a number of positions below 1. -1 is XLNet's own for none (sentence-transformers has the same rule)."""
    for key in ("max_position_embeddings", "n_positions"):
        found = config.get(key)
        if found is None or found == -1:
            continue
        if type(found) is not int or found < 1:
            raise _invalid(directory / "config.json", f"expected {key} of at least 1, found {found!r}")


def _architectures(directory: Path, config: dict[str, Any]) -> list[str]:
    found = config.get("architectures") or []
    if not (isinstance(found, list) and all(isinstance(one, str) for one in found)):
        raise _invalid(directory / "config.json", f"expected `architectures` to be a list of names, found {found!r}")
    return found


def _config(directory: Path) -> dict[str, Any]:
    return _object(directory / "config.json")


def _object(path: Path) -> dict[str, Any]:
    found = _json(path)
    if not isinstance(found, dict):
        raise _invalid(path, f"expected a JSON object, found {type(found).__name__}")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _invalid(path, str(error)) from error


def _invalid(path: Path, message: str) -> Permanent:
    return Permanent(
        "invalid_config",
        f"expected a JSON object in {path}: {message}" if "expected" not in message else f"{path}: {message}",
        f"publish the model's {path.name} with it, or serve the folder with --app",
    )
