"""Build a model around mapped weights: tensors are views of the files, and no second copy is made on the host.

Law: opens files for reading only; runs no code that came with the model and never reaches for the network.
transformers builds the module on the meta device, renames old keys, fills buffers that no checkpoint holds and ties
weights; the bytes are ours.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before transformers is imported, which reads them once: nothing is ever looked for on a Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import torch
import transformers

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.units import format_size
from server.safetensors import Header, TensorEntry, find_shards

_transformers_logging: Any = transformers.utils.logging  # untyped there
_LOG = logging.getLogger(__name__)
_NAMES_SHOWN = 8

# F4 and the F6 types are read by the parser, but torch has no tensor of their shape.
_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_COMPUTE_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode on its device. `weight_bytes` is the size of the tensors in the files."""

    module: Any
    config: Any
    tokenizer: Any
    dtype: torch.dtype
    weight_bytes: int


def load_encoder(directory: Path, device: str, dtype: str) -> Loaded:
    """Load the bare encoder of `directory`, without any head; raises `HoldfastError`."""
    config = _config(directory)
    if getattr(config, "is_encoder_decoder", False):
        raise _unsupported(directory, config, "an encoder alone or a causal language model")
    if type(config) not in transformers.MODEL_MAPPING:
        raise _unsupported(directory, config, "an architecture that transformers has")
    model_class: Any = transformers.MODEL_MAPPING[type(config)]
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    # Only hidden states are read: a checkpoint trained with another head has no pooler, and none is missed.
    return _load(directory, model_class, config, device, dtype, needless="pooler.")


def load_causal_lm(directory: Path, device: str, dtype: str) -> Loaded:
    """Load the causal language model of `directory`; raises `HoldfastError`."""
    config = _config(directory)
    model_class = next((getattr(transformers, name, None) for name in config.architectures or ()), None)
    if model_class is None:
        raise _unsupported(directory, config, "an architecture that transformers has")
    loaded = _load(directory, model_class, config, device, dtype, needless=None)
    if (directory / "generation_config.json").is_file():
        loaded.module.generation_config = transformers.GenerationConfig.from_pretrained(
            directory, local_files_only=True
        )
    return loaded


def map_tensors(shards: dict[Path, Header]) -> dict[str, torch.Tensor]:
    """Map every tensor of the files. The pages are the page cache's own until somebody writes, which nobody does."""
    tensors: dict[str, torch.Tensor] = {}
    for path, header in shards.items():
        mapping = _map(path)
        for name, entry in header.tensors.items():
            tensors[name] = _view(path, name, entry, mapping)
    return tensors


def _map(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Private and writable, though nobody writes: torch has no read-only tensors, and a stray write then costs
        # a page of ours instead of a segmentation fault, and never reaches the file.
        return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as error:
        raise Permanent("unreadable", f"{path}: cannot be mapped: {error}", "check memory and the mount") from error
    finally:
        os.close(descriptor)


def _view(path: Path, name: str, entry: TensorEntry, mapping: mmap.mmap) -> torch.Tensor:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise Permanent(
            "unsupported_dtype", f"{path}: {name!r} is {entry.dtype}, which torch does not have", "convert the model"
        )
    size = entry.end - entry.begin
    if size == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.begin % dtype.itemsize == 0:
        flat = torch.frombuffer(mapping, dtype=dtype, count=size // dtype.itemsize, offset=entry.begin)
    else:  # legal, though no writer we know does it; kernels want aligned elements, so these few bytes are copied
        flat = torch.frombuffer(mapping, dtype=torch.uint8, count=size, offset=entry.begin).clone().view(dtype)
    return flat.view(entry.shape)


def _load(directory: Path, model_class: Any, config: Any, device: str, dtype: str, *, needless: str | None) -> Loaded:
    started = time.monotonic()
    shards = find_shards(directory)
    tensors = map_tensors(shards)
    size = sum(entry.end - entry.begin for header in shards.values() for entry in header.tensors.values())
    target = _dtype(dtype, tensors.values(), config)
    tokenizer = _tokenizer(directory)
    module = _assemble(directory, model_class, config, tensors, target, needless)
    del tensors
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
    dtype: torch.dtype,
    needless: str | None,
) -> Any:
    # With a state dict and no name transformers assigns the tensors it is given: same storage, no copy, as long as
    # the dtype is theirs.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    _transformers_logging.disable_progress_bar()
    try:
        module, report = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
    except HoldfastError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Permanent(
            "load_failed",
            f"{directory}: {model_class.__name__} cannot be built from these weights: {error}",
            "check that config.json and the weights belong together",
        ) from error
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
    if getattr(config, "quantization_config", None) is not None and isinstance(config.dtype, torch.dtype):
        return config.dtype  # most bytes are codes, not numbers
    weights: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.dtype in _COMPUTE_DTYPES:
            weights[tensor.dtype] = weights.get(tensor.dtype, 0) + tensor.nbytes
    return max(weights, key=lambda dtype: weights[dtype], default=torch.float32)


def _config(directory: Path) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Permanent(
            "invalid_config",
            f"{directory / 'config.json'}: {error}",
            "check that the model has a config.json for an architecture this transformers "
            f"({transformers.__version__}) knows; code that comes with a model is never run",
        ) from error


def _tokenizer(directory: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise Permanent(
            "no_tokenizer",
            f"{directory}: the tokenizer cannot be read: {error}",
            "publish the tokenizer's files (tokenizer.json, tokenizer_config.json) with the model",
        ) from error


def _unsupported(directory: Path, config: Any, expected: str) -> Permanent:
    found = ", ".join(config.architectures or ()) or config.model_type
    return Permanent("unsupported_model", f"{directory}: expected {expected}, found {found}", "serve it with --app")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
