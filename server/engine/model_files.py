"""Load the models that the server serves: their class, dtype and tokenizer, and a check that no weight is missing.

Law: opens files for reading only; runs no code of the model and never uses the network. Weights are views of the files
on the CPU, and are read straight onto a GPU (`server.weights.pretrained`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import server.engine.libraries.offline  # noqa: F401 - before transformers

# isort: split
import tokenizers
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.utils import logging as logging_of_transformers

from cached.contract.errors import Permanent
from cached.contract.program.units import format_size
from server.engine import architectures
from server.weights.files import load_file
from server.weights.pretrained import assemble, prevailing_dtype, read_config, read_generation_config

_transformers_logging: Any = logging_of_transformers  # untyped there
_LOG = logging.getLogger(__name__)
_NAMES_SHOWN = 8
_TOKENS_OF_NO_WORD = 1  # beside the special ones: the space of a sentencepiece model without pieces
# Models whose positions begin after the padding's id: the configuration's, or a number of the class's own.
_POSITIONS_AFTER_PADDING: dict[str, int | None] = {
    **dict.fromkeys(("camembert", "data2vec-text", "ibert", "longformer", "luke", "roberta", "roberta-prelayernorm")),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "xmod")),
    "mpnet": 1,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode on its device. `weight_bytes` is the size of the tensors in the files."""

    module: Any
    config: Any
    tokenizer: Any
    dtype: torch.dtype
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class LibraryOptions:
    """What a model's folder has its library pass on to transformers: overridden fields of the configuration, arguments
    of the model's class (`dtype`, `attn_implementation`) and of the tokenizer."""

    config: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)


_NO_OPTIONS = LibraryOptions()


# Encoders of encoder-decoders that sentence-transformers 6.2 loads alone, of those that read text.
_ENCODER_HALVES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
}


def load_encoder(
    directory: Path, device: str, dtype: str, options: LibraryOptions = _NO_OPTIONS, *, half: bool = False
) -> Loaded:
    """Load the bare encoder of `directory`, without any head; raises `HoldfastError`. `dtype` auto is the model's own:
    of `options`, else of config.json, else the prevailing one of the weights. `half`: also of an encoder-decoder."""
    config = _read_config(directory, options)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # no token follows: keys and values would be kept for nothing
    half_class = _ENCODER_HALVES.get(config.model_type) if half else None
    if half_class is None and getattr(config, "is_encoder_decoder", False):
        raise _unsupported(directory, config, "an encoder alone or a causal language model")
    if type(config) not in modeling_auto.MODEL_MAPPING:
        raise _unsupported(directory, config, "an architecture that transformers has")
    model_class: Any = modeling_auto.MODEL_MAPPING[type(config)]
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    if half_class is not None:
        model_class = getattr(transformers, half_class)
    # Only hidden states are read: a checkpoint trained with another head has no pooler, and needs none.
    return _load(
        directory,
        model_class,
        config,
        device,
        dtype,
        needless="pooler.",
        options=options,
    )


def load_causal_lm(directory: Path, device: str, dtype: str, architecture: str | None = None) -> Loaded:
    """Load the causal language model of `directory`, by its own architecture or by `architecture`; raises
    `HoldfastError`."""
    config = read_config(directory)
    model_class = _class(
        directory, config, architecture, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, architectures.GENERATORS
    )
    loaded = _load(directory, model_class, config, device, dtype, needless=None, options=_NO_OPTIONS)
    try:
        read_generation_config(directory, loaded.module)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Permanent(
            "invalid_config",
            f"{directory / 'generation_config.json'}: {error}",
            "correct it, or publish the model without it",
        ) from error
    return loaded


def load_classifier(
    directory: Path, architecture: str | None, device: str, dtype: str, options: LibraryOptions = _NO_OPTIONS
) -> Loaded:
    """Load the sequence classification model of `directory`; raises `HoldfastError`. `dtype` as in `load_encoder`."""
    config = _read_config(directory, options)
    mapping = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    model_class = _class(directory, config, architecture, mapping, architectures.CLASSIFIERS)
    return _load(directory, model_class, config, device, dtype, needless=None, options=options)


def _read_config(directory: Path, options: LibraryOptions) -> Any:
    """Return the configuration with the overrides of `options`, each of which must be a field of it."""
    config, left = read_config(directory, return_unused_kwargs=True, **options.config)
    if left:
        raise Permanent(
            "unsupported_model",
            f"{directory}: config_args: expected fields of {type(config).__name__}, found {min(left)!r}",
            "correct the field's name, or serve the model with --app",
        )
    return config


def _class(directory: Path, config: Any, architecture: str | None, mapping: Any, served: frozenset[str]) -> Any:
    """Return the class that transformers' own `AutoModelFor…` takes, which is by model type; raises `Permanent` where
    it is not served."""
    classes = mapping.get(type(config), ())
    classes = classes if isinstance(classes, tuple) else (classes,)
    names = (architecture,) if architecture is not None else config.architectures or ()
    found = next((one for one in classes if one.__name__ in names), classes[0] if classes else None)
    if found is None or found.__name__ not in served:
        shown = getattr(found, "__name__", "no class of transformers")
        raise Permanent(
            "unsupported_model",
            f"{directory}: expected {', '.join(names)}, found the model type {config.model_type}, which is {shown}",
            "check that `architectures` and `model_type` of config.json belong together, or serve it with --app",
        )
    return found


def positions(config: Any) -> int | None:
    """Return the most tokens that a model has positions for; None where it has no limit. -1 is XLNet's own for none;
    the positions of RoBERTa and its kin begin after the padding's."""
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    if found is None or found == -1:
        return None
    if text.model_type in _POSITIONS_AFTER_PADDING:
        padding = _POSITIONS_AFTER_PADDING[text.model_type]
        return int(found) - int(text.pad_token_id if padding is None else padding) - 1
    return int(found)


def _check_context(directory: Path, config: Any, tokenizer: Any) -> None:
    """Refuse a context below one token, before weights are read."""
    text = config.get_text_config()
    if text.model_type in _POSITIONS_AFTER_PADDING and type(text.pad_token_id) is not int:
        raise Permanent(
            "invalid_config",
            f"{directory / 'config.json'}: expected a whole number as pad_token_id, after which the positions of "
            f"{text.model_type} begin, found {text.pad_token_id!r}",
            "publish the model with its own config.json",
        )
    found: dict[str, Any] = {"max_position_embeddings of config.json": positions(config)}
    found["model_max_length of tokenizer_config.json"] = tokenizer.model_max_length
    for name, limit in found.items():
        if limit is not None and (not isinstance(limit, int | float) or not limit >= 1):
            raise Permanent(
                "invalid_config",
                f"{directory}: expected a context of at least one token, found {limit!r} by {name}",
                "publish the model with its own config.json and tokenizer_config.json",
            )


def _load(
    directory: Path,
    model_class: Any,
    config: Any,
    device: str,
    dtype: str,
    *,
    needless: str | None,
    options: LibraryOptions,
) -> Loaded:
    started = time.monotonic()
    tokenizer = _tokenizer(directory, options.tokenizer)
    _check_context(directory, config, tokenizer)
    tensors = load_file(directory, device)
    size = sum(tensor.nbytes for tensor in tensors.values())
    own = dict(options.model)
    asked = own.pop("dtype", "auto")
    target = _dtype(asked if dtype == "auto" else dtype, tensors.values(), config)
    module = _assemble(directory, model_class, config, tensors, {"dtype": target, **own}, needless)
    del tensors
    # The weights are on the device: this moves the buffers that no file holds, such as rotary frequencies.
    module = module.to(device).eval().requires_grad_(False)
    _LOG.info(
        "loaded %s in %s: %s of weights on %s in %.2f s",
        model_class.__name__,
        str(target).removeprefix("torch."),
        format_size(size),
        device,
        time.monotonic() - started,
    )
    return Loaded(module, config, tokenizer, target, size)


def _assemble(
    directory: Path,
    model_class: Any,
    config: Any,
    tensors: dict[str, torch.Tensor],
    options: Mapping[str, Any],
    needless: str | None,
) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    _transformers_logging.disable_progress_bar()
    module, report = assemble(directory, model_class, config, tensors, options)
    missing = sorted(name for name in report["missing_keys"] if needless is None or not name.startswith(needless))
    if missing:
        raise Permanent(
            "missing_weights",
            f"{directory}: {model_class.__name__} lacks {len(missing)} tensors in the files: {_some(missing)}",
            "check that config.json and the weights belong together",
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        _LOG.warning(
            "%d tensors in the files are not used by %s: %s", len(unexpected), model_class.__name__, _some(unexpected)
        )
    return module


def _dtype(wanted: str, tensors: Iterable[torch.Tensor], config: Any) -> torch.dtype:
    if wanted != "auto":
        found: torch.dtype = getattr(torch, wanted)
        return found
    # transformers' own order; of a quantized model most bytes are codes, not numbers.
    return config.dtype if isinstance(config.dtype, torch.dtype) else prevailing_dtype(tensors)


def _tokenizer(directory: Path, options: Mapping[str, Any]) -> Any:
    remedy = "publish the tokenizer's files (tokenizer.json, tokenizer_config.json) with the model, whole"
    try:
        found = AutoTokenizer.from_pretrained(directory, **options, local_files_only=True, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # the tokenizers package raises no narrower one for a file that it cannot read
        raise Permanent(
            "no_tokenizer",
            f"{directory}: the tokenizer cannot be read: {error}",
            f"{remedy}; a newer tokenizers package than {tokenizers.__version__} may have written them",
        ) from error
    if len(found) <= len(found.all_special_tokens) + _TOKENS_OF_NO_WORD:
        # transformers 5.23 makes one for many classes, without an error: each word is then the same unknown one.
        vocabulary = f"no vocabulary: {type(found).__name__} has {len(found)} tokens"
        raise Permanent("no_tokenizer", f"{directory}: expected a tokenizer, found {vocabulary}", remedy)
    return found


def _unsupported(directory: Path, config: Any, expected: str) -> Permanent:
    found = ", ".join(config.architectures or ()) or config.model_type
    return Permanent("unsupported_model", f"{directory}: expected {expected}, found {found}", "serve it with --app")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
