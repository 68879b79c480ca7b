"""The modules after the transformer, as their `config.json` describe them.

Law: reads JSON only, no weights. Source of names, defaults and of what the library itself ignores:
sentence-transformers 6.2.0, `sentence_transformer/modules` and `base/modules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from server.engine.embedding.documents import (
    Document,
    count,
    damaged,
    flag,
    read_document,
    refuse_unknown,
    required_count,
    unsupported,
    warn_unknown,
)

TOKENS = "token_embeddings"
SENTENCE = "sentence_embedding"
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# In the order in which the vectors of several modes are concatenated.
_OLD_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_DIMENSION = ("embedding_dimension", "word_embedding_dimension")  # now, and before version 5.4
_DENSE_FIELDS = (
    "in_features",
    "out_features",
    "bias",
    "activation_function",
    "module_input_name",
    "module_output_name",
    "use_residual",
    "init_weight",
    "init_bias",
)


@dataclass(frozen=True, slots=True)
class PoolingSettings:
    """Tokens to one vector; the vectors of several modes are concatenated. Without `include_prompt` the prompt's tokens
    are left out."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    source: ClassVar[str] = TOKENS
    target: ClassVar[str] = SENTENCE


@dataclass(frozen=True, slots=True)
class DenseSettings:
    """A linear layer, its activation and an optional residual; weights in `folder`. `activation` is a class of torch's
    by its full name."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str
    source: str
    target: str
    residual: bool


@dataclass(frozen=True, slots=True)
class NormalizeSettings:
    """Vectors of `source` to unit length, written to `target`."""

    source: str = SENTENCE
    target: str = SENTENCE


@dataclass(frozen=True, slots=True)
class LayerNormSettings:
    """A layer normalization of the vector; weights in `folder`."""

    folder: Path
    dimension: int
    source: ClassVar[str] = SENTENCE
    target: ClassVar[str] = SENTENCE


@dataclass(frozen=True, slots=True)
class LayerPoolingSettings:
    """The weighted mean of the hidden states from layer `start` on; weights in `folder`."""

    folder: Path
    start: int
    layers: int
    source: ClassVar[str] = TOKENS
    target: ClassVar[str] = TOKENS


StepSettings = PoolingSettings | DenseSettings | NormalizeSettings | LayerNormSettings | LayerPoolingSettings


def read_pooling(folder: Path) -> PoolingSettings:
    """Read `1_Pooling/config.json`, fields old and new; raises `Permanent`."""
    path = folder / "config.json"
    document = read_document(path)
    refuse_unknown(path, document, {"pooling_mode", "include_prompt", *_OLD_POOLING_FLAGS, *_DIMENSION})
    _dimension(path, document)  # without effect: the hidden states have the dimension that they have
    named: Any = document.get("pooling_mode")
    if named is None and "pooling_mode" not in document:
        modes: list[Any] = [
            mode for field, mode in _OLD_POOLING_FLAGS.items() if flag(path, document, field, default=False)
        ]
        modes = modes or ["mean"]
    else:  # the library then passes over the old flags
        modes = named if isinstance(named, list) else [named]
    if not modes or not all(mode in POOLING_MODES for mode in modes):
        raise unsupported(path, "pooling_mode", named, f"one or more of {', '.join(POOLING_MODES)}")
    return PoolingSettings(tuple(modes), flag(path, document, "include_prompt", default=True))


def read_dense(folder: Path) -> DenseSettings:
    """Read the settings of a `Dense` module. Raises `Permanent` (`invalid_config`, `unsupported_model`)."""
    path = folder / "config.json"
    document = read_document(path)
    warn_unknown(path, document, _DENSE_FIELDS)
    activation = document.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(activation, str) or not activation.startswith("torch.nn."):
        raise unsupported(
            path,
            "activation_function",
            activation,
            "a class of torch.nn, such as torch.nn.modules.activation.Tanh or torch.nn.modules.linear.Identity",
        )
    for field in ("init_weight", "init_bias"):
        if document.get(field) is not None:
            raise unsupported(path, field, document[field], "the weights in model.safetensors")
    source, target = _ends(path, document)
    return DenseSettings(
        folder,
        required_count(path, document, "in_features"),
        required_count(path, document, "out_features"),
        flag(path, document, "bias", default=True),
        activation,
        source,
        target,
        flag(path, document, "use_residual", default=False),
    )


def read_normalize(folder: Path) -> NormalizeSettings:
    """Read the settings of a `Normalize` module, whose file may be missing. Raises `Permanent`, as `read_dense`."""
    path = folder / "config.json"
    document = read_document(path) if path.exists() else {}  # before version 6 it had no file
    warn_unknown(path, document, ("module_input_name", "module_output_name"))
    return NormalizeSettings(*_ends(path, document))


def read_layer_norm(folder: Path) -> LayerNormSettings:
    """Read the settings of a `LayerNorm` module. Raises `Permanent`, as `read_dense`."""
    path = folder / "config.json"
    document = read_document(path)
    refuse_unknown(path, document, ("dimension",))
    return LayerNormSettings(folder, required_count(path, document, "dimension"))


def read_layer_pooling(folder: Path) -> LayerPoolingSettings:
    """Read the settings of a `WeightedLayerPooling` module. Raises `Permanent`, as `read_dense`."""
    path = folder / "config.json"
    document = read_document(path)
    refuse_unknown(path, document, (*_DIMENSION, "layer_start", "num_hidden_layers"))
    _dimension(path, document)
    start = document.get("layer_start", 4)
    layers = document.get("num_hidden_layers", 12)
    if type(start) is not int or type(layers) is not int or not 0 <= start <= layers:
        raise damaged(
            path,
            f"expected 0 <= layer_start <= num_hidden_layers, found {start!r} and {layers!r}",
        )
    return LayerPoolingSettings(folder, start, layers)


def read_dropout(folder: Path) -> None:
    """Check the file of a module that only acts in training."""
    path = folder / "config.json"
    document = read_document(path)
    refuse_unknown(path, document, ("dropout",))
    found = document.get("dropout", 0.2)
    if not isinstance(found, int | float) or not 0 <= found <= 1:
        raise damaged(path, f"dropout: expected a number from 0 to 1, found {found!r}")


READERS: dict[str, Callable[[Path], StepSettings | None]] = {
    "Pooling": read_pooling,
    "Dense": read_dense,
    "Normalize": read_normalize,
    "LayerNorm": read_layer_norm,
    "WeightedLayerPooling": read_layer_pooling,
    "Dropout": read_dropout,
}


def _dimension(path: Path, document: Document) -> None:
    for field in _DIMENSION:
        count(path, document, field)


def _ends(path: Path, document: Document) -> tuple[str, str]:
    """Return where a module reads and writes; its target is its source unless the file says otherwise."""
    source = document.get("module_input_name", SENTENCE)
    target = document.get("module_output_name")
    target = source if target is None else target
    for field, name in (("module_input_name", source), ("module_output_name", target)):
        if name not in (TOKENS, SENTENCE):
            raise unsupported(path, field, name, f"{SENTENCE} or {TOKENS}")
    return source, target
