"""Build transformers' models around weights that this loader read.

Law: opens files for reading only; runs no code of the model and never uses the network. transformers builds the module
on the meta device, renames old keys, fills buffers that no checkpoint holds, ties weights and reports missing ones. No
tensor is copied unless its dtype changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch.overrides import TorchFunctionMode
from transformers.generation.configuration_utils import GenerationConfig
from transformers.models.auto.configuration_auto import AutoConfig

from cached.contract.errors import Permanent
from server.weights.cuda.accelerator import find_accelerator
from server.weights.files import load_file
from server.weights.format.dtypes import CONVERTED
from server.weights.format.listing import list_for_config

# The arguments of `from_pretrained`, beyond the configuration's fields, that have an effect here.
_PASSED_ON = frozenset({"attn_implementation", "experts_implementation", "ignore_mismatched_sizes", "key_mapping"})
# The arguments of `from_pretrained` that would be ignored or contradicted here: those for a Hub, and a quantization,
# which would replace that of the checkpoint where transformers adds to it.
_REFUSED = frozenset(
    {"cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
    | {"quantization_config", "return_unused_kwargs", "trust_remote_code"}
)
# What transformers raises for fields of a wrong type or size, which it does not check as such.
_CONFIG_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
_BUILD_ERRORS = (ImportError, RuntimeError, *_CONFIG_ERRORS)


def load_pretrained(
    model_class: Any,
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    output_loading_info: bool = False,
    **overrides: Any,
) -> Any:
    """Build `model_class` from a model's folder; the drop-in for `model_class.from_pretrained(folder, …)`.

    `model_class` is one of transformers' classes, also an `AutoModelFor…`. `dtype` is `auto` (config.json's, else the
    prevailing dtype of the weights), a name, or torch's. `overrides` change fields of the configuration, or are
    `attn_implementation`, `experts_implementation`, `ignore_mismatched_sizes` or `key_mapping`. Returns the model in
    evaluation mode on `device`, weights tied; with `output_loading_info` `(model, info)`, where `info` is transformers'
    own. Raises `HoldfastError`.
    """
    path = Path(folder)
    if not path.is_dir():
        raise Permanent(
            "no_model",
            f"expected a model's folder, found none at {path}",
            "give the path where the model is mounted (HOLDFAST_MODEL_PATH); nothing is downloaded",
        )
    if (path / "adapter_config.json").is_file():
        raise Permanent(
            "unsupported_model",
            f"{path / 'adapter_config.json'}: expected a model's own weights, found an adapter in its folder, which "
            "transformers would add to them",
            "merge the adapter into its base (merge_and_unload), or move it into a folder of its own",
        )
    config, passed_on = _read_overridden_config(path, overrides)
    model_class, config = _class(path, model_class, config)
    find_accelerator(device)  # raises for a missing device before a byte is read
    tensors = load_file(list_for_config(path, getattr(config, "transformers_weights", None)), device)
    wanted = _dtype(dtype, config, tensors.values())
    module, info = assemble(path, model_class, config, tensors, {"dtype": wanted, **passed_on})
    del tensors
    # The weights are on the device: this moves the buffers that no file holds, such as rotary frequencies.
    module = module.to(device)
    module.name_or_path = module.config.name_or_path = str(path)
    read_generation_config(path, module)
    return (module, info) if output_loading_info else module


def assemble(
    path: Path, model_class: Any, config: Any, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Have transformers build `model_class` around `tensors`; return it with its report of missing and unexpected keys.
    `options` are `from_pretrained`'s. What no file holds is on the CPU. Raises `Permanent` (`load_failed`)."""
    # With a state dict and no name, transformers assigns the given tensors without a copy if their dtype is the same.
    try:
        with _WithoutSympy():
            module, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict={name: _Placed(tensor) for name, tensor in tensors.items()},
                output_loading_info=True,
                local_files_only=True,
                # Else transformers speaks of a report in its own log, which is silent here.
                **{**options, "ignore_mismatched_sizes": True},
            )
    except _BUILD_ERRORS as error:
        raise Permanent(
            "load_failed",
            f"{path}: {model_class.__name__} cannot be built from these weights: {error}",
            "check that config.json and the weights belong together, and that what the model's quantization needs is "
            "installed",
        ) from error
    others = sorted(info["mismatched_keys"], key=str)
    if others and not options.get("ignore_mismatched_sizes"):
        name, found, expected = others[0]
        more = f", and {len(others) - 1} more tensors of another shape" if len(others) > 1 else ""
        raise Permanent(
            "load_failed",
            f"{path}: {model_class.__name__}: expected {name} of shape {tuple(expected)} by config.json, found "
            f"{tuple(found)}{more}",
            "check that config.json and the weights belong together",
        )
    return module, info


def _refuse_torchao(path: Path, config: Any) -> None:
    """Refuse tensors that are put together by the metadata of their files, which transformers reads from a folder."""
    found = getattr(config, "quantization_config", None)
    if isinstance(found, Mapping) and found.get("quant_method") == "torchao":
        raise Permanent(
            "unsupported_quantization",
            f"{path}: torchao's tensors are put together from several by transformers' own reader",
            "load this model with transformers' from_pretrained, or publish it in another format (compressed-tensors)",
        )


def read_config(path: Path, **overrides: Any) -> Any:
    """Read config.json; with `return_unused_kwargs` also return the overrides for which it has no field."""
    try:
        found = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False, **overrides)
    except (*_CONFIG_ERRORS, StrictDataclassError) as error:
        raise Permanent(
            "invalid_config",
            f"{path / 'config.json'}: {error}",
            "check that the model has a config.json for an architecture this transformers "
            f"({transformers.__version__}) knows; code that comes with a model is never run",
        ) from error
    _refuse_torchao(path, found[0] if isinstance(found, tuple) else found)
    return found


def read_generation_config(path: Path, module: Any) -> None:
    """Set a generating model's defaults from generation_config.json, if there is one."""
    if module.can_generate() and (path / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)


def prevailing_dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Return the dtype of most bytes, among the dtypes that a model computes in."""
    weights: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.dtype in CONVERTED:
            weights[tensor.dtype] = weights.get(tensor.dtype, 0) + tensor.nbytes
    return max(weights, key=lambda dtype: weights[dtype], default=torch.float32)


def _dtype(wanted: str | torch.dtype, config: Any, tensors: Iterable[torch.Tensor]) -> torch.dtype:
    if isinstance(wanted, str) and wanted != "auto":
        wanted = getattr(torch, wanted, wanted)
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted != "auto":
        raise Permanent("invalid_dtype", f"expected auto or a dtype of torch's, found {wanted!r}", "name another")
    return config.dtype if isinstance(config.dtype, torch.dtype) else prevailing_dtype(tensors)


def _class(path: Path, wanted: Any, config: Any) -> tuple[Any, Any]:
    """Resolve an `AutoModelFor…` as it does itself: it would look for the folder, which is not passed."""
    if not hasattr(wanted, "_model_mapping"):
        return wanted, config
    mapping = wanted._model_mapping
    if type(config) not in mapping:
        raise Permanent(
            "unsupported_model",
            f"{path}: {wanted.__name__} has no class for {type(config).__name__}",
            "choose the AutoModelFor… of what the model does, or a class of its own",
        )
    found = mapping[type(config)]
    if isinstance(found, tuple):
        names = config.architectures or ()
        found = next((item for item in found if item.__name__ in names), found[0])
    text = config.sub_configs.get("text_config")
    if text is not None and getattr(found, "config_class", None) is text:
        quantization = getattr(config, "quantization_config", None)
        config = config.get_text_config()
        if quantization is not None:
            config.quantization_config = quantization
    return found, config


def _read_overridden_config(path: Path, overrides: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the configuration with the overridden fields, and the arguments for `from_pretrained`."""
    fields = {name: value for name, value in overrides.items() if name not in _PASSED_ON | _REFUSED}
    config, left = read_config(path, return_unused_kwargs=True, **fields)
    unknown = sorted({*left, *(overrides.keys() & _REFUSED)})
    if unknown:
        raise Permanent(
            "unknown_argument",
            f"{path}: load_pretrained has no argument {unknown[0]!r}, nor can it override such a field of "
            f"{type(config).__name__}",
            "leave it out, or use transformers' own from_pretrained for it",
        )
    return config, {name: value for name, value in overrides.items() if name in _PASSED_ON}


# Of a tensor and a number, as rotary frequencies are computed.
_WITH_A_NUMBER = (torch.Tensor.div, torch.Tensor.__rpow__, torch.Tensor.__rtruediv__)


class _WithoutSympy(TorchFunctionMode):
    """Does what building a module asks of meta tensors most often without sympy, whose import takes a quarter of a
    second: torch's own versions of these functions for them are written in Python. A meta tensor has no values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        found = _compute_on_meta(func, args, named)
        return func(*args, **named) if found is None else found


def _compute_on_meta(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> torch.Tensor | None:
    """Return what `func` returns for meta tensors; None where torch is to compute it."""
    if func is torch.arange:
        if not named.keys() <= {"device", "dtype"} or torch.device(named.get("device") or "cpu").type != "meta":
            return None
        same = torch.arange(*args, **{**named, "device": "cpu"})
        return torch.empty(same.shape, dtype=same.dtype, device="meta")
    tensor = args[0] if args else named.get("tensor")
    if not isinstance(tensor, torch.Tensor) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if not tensor.is_meta:
        return None
    if func in (torch.nn.init.normal_, torch.Tensor.normal_):
        return tensor
    if not tensor.is_contiguous():
        return None
    if func is torch.empty_like and named.keys() <= {"device", "dtype"}:
        device, dtype = named.get("device") or tensor.device, named.get("dtype") or tensor.dtype
        return torch.empty(tensor.shape, device=device, dtype=dtype)
    if func not in _WITH_A_NUMBER or named or type(args[1]) not in (int, float):
        return None
    if tensor.requires_grad or not tensor.is_floating_point():  # else the number decides about the dtype
        return None
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


class _Placed:
    """A tensor as transformers reads it from a file: indexed whole, then moved to a device, which is the CPU unless
    accelerate is set otherwise. This one stays on its device and changes its dtype only."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __getitem__(self, index: object) -> _Placed:
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> torch.Tensor:  # noqa: ARG002 - see above
        return self._tensor if dtype is None else self._tensor.to(dtype)

    def is_floating_point(self) -> bool:
        return self._tensor.is_floating_point()
