"""LoRA adapters beside a model's weights: each row of a batch runs with its own adapter, or with none.

Law: never changes the model's weights; an adapter's part is computed beside them, row by row, in the model's thread.
Format: PEFT's `adapter_config.json` and `adapter_model.safetensors`; what is not computed here is refused by name,
never ignored: https://huggingface.co/docs/peft/package_reference/lora.

PEFT itself is not used: it wraps one model's modules in place, needs the names of a batch's adapters before each
forward pass, and is a package of 500 kB that needs accelerate, for two small matrix products.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from cached.contract.errors import HoldfastError, Permanent
from server.weights.files import load_file

_LOG = logging.getLogger(__name__)
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_BASE_LAYER = ".base_layer."  # PEFT saves an embedding or output layer whole where it is among the targets
NOT_COMPUTED = (  # any non-empty value of these changes what an adapter computes
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
# Without effect on what a saved adapter computes: nothing is trained here.
WITHOUT_EFFECT = frozenset(
    {"auto_mapping", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode", "loftq_config", "lora_dropout"}
    | {"megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"}
)
HONOURED = frozenset(
    {"alpha_pattern", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "init_lora_weights"}
    | {"layers_pattern", "layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules"}
    | {"use_rslora"}
)
_ALL_LINEAR = "all-linear"
_LAYER = r".*?\.[^.]*\.(?P<index>\d+)\."  # the first number in a module's name
_CHANGING_THE_BASE = (
    "corda",
    "loftq",
    "lora_ga",
    "olora",
    "pissa",
)  # initializations that change the base's weights too
_SURVEY = (2, 3)  # sequences and tokens: a shape that no other dimensions of a model have by chance


@dataclass(frozen=True, slots=True)
class _Delta:
    """The addition to one linear module's output: `scale` · B · A · input."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def of(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.nn.functional.linear(inputs, self.a) * self.scale, self.b)


class Adapter:
    """One adapter's matrices, by module. A request that runs with it keeps it alive."""

    def __init__(self, deltas: dict[str, _Delta], weight_bytes: int) -> None:
        self.deltas = deltas
        self.weight_bytes = weight_bytes


@dataclass(frozen=True, slots=True)
class _Targets:
    """The modules that `adapter_config.json` names, as PEFT's `check_target_module_exists` reads them (0.21): a pattern
    for the whole name, or ends of names, None for those that the tensors have; of ends `layers`, if any, only."""

    chosen: str | tuple[str, ...] | None
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...]
    patterns: tuple[str, ...]

    @classmethod
    def read(cls, config: dict[str, Any]) -> _Targets:
        layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or ()
        return cls(
            _read_names(config.get("target_modules")),
            _read_names(config.get("exclude_modules")) or (),
            (layers,) if isinstance(layers, int) else tuple(int(layer) for layer in layers or ()),
            tuple(rf"(?:^|.*?\.){each}\.(?P<index>\d+)\." for each in _read_names(patterns, one=True) or ())
            or (_LAYER,),
        )

    def __contains__(self, module: object) -> bool:
        name = str(module)
        if self.excluded and _is_among(self.excluded, name):
            return False
        if self.chosen is None or self.chosen == _ALL_LINEAR:
            return True
        if not _is_among(self.chosen, name):
            return False
        if isinstance(self.chosen, str) or not self.layers:
            return True
        found = next((match for pattern in self.patterns if (match := re.match(pattern, name))), None)
        return found is not None and int(found["index"]) in self.layers


@dataclass(frozen=True, slots=True)
class _Config:
    """The targets, ranks and scales of `adapter_config.json`."""

    rank: int
    alpha: float
    ranks: dict[str, int]
    alphas: dict[str, float]
    by_root: bool
    ties: bool
    targets: _Targets

    def scale(self, module: str, rank: int) -> float:
        alpha = float(_by_pattern(self.alphas, module, self.alpha))
        return alpha / math.sqrt(rank) if self.by_root else alpha / rank

    def rank_of(self, module: str) -> int:
        return int(_by_pattern(self.ranks, module, self.rank))


class Adapters:
    """The adapters of one model, and the rows of the next forward pass that each applies to."""

    def __init__(self, module: Any, dtype: torch.dtype, device: str) -> None:
        self._module = module
        self._dtype = dtype
        self._device = device
        self._by_row: frozenset[str] = frozenset()
        self._adapted: set[str] = set()
        self._groups: list[tuple[Adapter, torch.Tensor | None]] = []

    @torch.inference_mode()
    def survey(self) -> None:
        """Find the linear modules whose input is separate by sequence; others, as a mixture's experts, are not."""
        seen: set[str] = set()

        def watch(name: str) -> Callable[..., None]:
            def record(_module: Any, inputs: tuple[Any, ...], _output: Any) -> None:
                if inputs and isinstance(inputs[0], torch.Tensor) and tuple(inputs[0].shape[:-1]) == _SURVEY:
                    seen.add(name)

            return record

        hooks = [
            module.register_forward_hook(watch(name))
            for name, module in self._module.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        ]
        try:
            self._module(input_ids=torch.zeros(_SURVEY, dtype=torch.long, device=self._device))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            _LOG.warning("%s takes no adapters: it cannot read two sequences at once: %r", _kind(self._module), error)
            return
        finally:
            for hook in hooks:
                hook.remove()
        self._by_row = frozenset(seen)

    def load(self, directory: Path) -> Adapter:
        """Load the adapter in `directory`, from any thread; raises `HoldfastError`."""
        config = _read_config(directory / CONFIG_FILE)
        path = directory / WEIGHTS_FILE
        if not path.is_file():
            raise Permanent(
                "no_weights", f"expected {path}, found none", "save the adapter with safe_serialization=True"
            )
        tensors = load_file(path, self._device, dtype=self._dtype)
        halves: dict[str, dict[str, torch.Tensor]] = {}
        for name in list(tensors):
            found = _TENSOR.fullmatch(name)
            if found is not None:
                halves.setdefault(found["module"], {})[found["half"]] = tensors[name]
            else:
                self._check_base_layer(path, name, tensors.pop(name))
        deltas = {module: self._delta(path, module, pair, config) for module, pair in halves.items()}
        if config.ties:
            self._refuse_tied(path, deltas)
        if not deltas:
            raise Permanent("no_weights", f"{path}: expected tensors, found none", "publish the adapter's weights")
        for module in sorted(deltas.keys() - self._adapted):
            self._adapt(module)
        return Adapter(deltas, sum(tensor.nbytes for tensor in tensors.values()))

    def set_rows(self, adapters: Sequence[Adapter | None]) -> None:
        """Set the adapter of each row for the next forward passes; from the model's thread."""
        rows: dict[Adapter, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(adapter, []).append(row)
        self._groups = [
            (adapter, None if len(numbers) == len(adapters) else torch.tensor(numbers, device=self._device))
            for adapter, numbers in rows.items()
        ]

    def _check_base_layer(self, path: Path, name: str, tensor: torch.Tensor) -> None:
        """Refuse a tensor that is neither half of a LoRA nor equal to the base's own of that name."""
        own = name.removeprefix(_PREFIX).replace(_BASE_LAYER, ".")
        base = self._module.state_dict().get(own)
        if base is None:
            raise _refused(path, name, f"a tensor `{_PREFIX}….lora_A.weight` or `….lora_B.weight`", "another kind")
        if base.shape != tensor.shape or not torch.equal(base, tensor.to(base.dtype)):
            found = f"other weights, shape {tuple(tensor.shape)}, where the base has {tuple(base.shape)}"
            raise _refused(path, name, f"the weights of the base's {own}, which PEFT saves with the adapter", found)

    def _refuse_tied(self, path: Path, deltas: dict[str, _Delta]) -> None:
        """Refuse `ensure_weight_tying` where it matters: PEFT then adapts the tied embedding too."""
        output = self._module.get_output_embeddings()
        names = {name for name, module in self._module.named_modules() if module is output}
        if names & deltas.keys():
            raise Permanent(
                "unsupported_adapter",
                f"{path.parent / CONFIG_FILE}: ensure_weight_tying=True adapts the embedding with {sorted(names)[0]}",
                "merge it into its base (PEFT's merge_and_unload) and publish the result as a model",
            )

    def _delta(self, path: Path, module: str, pair: dict[str, torch.Tensor], config: _Config) -> _Delta:
        name = f"{_PREFIX}{module}.lora_A.weight"
        if module not in config.targets:
            expected = f"a module that {CONFIG_FILE} names (target_modules, exclude_modules, layers_to_transform)"
            raise _refused(path, name, expected, f"{module!r}, which PEFT would leave out")
        try:
            target = self._module.get_submodule(module)
        except AttributeError as error:
            raise _refused(path, name, "a module of its base", f"no {module!r} in {_kind(self._module)}") from error
        if module not in self._by_row:
            raise _refused(path, name, "a linear module that sees each sequence by itself", _kind(target))
        if set(pair) != {"A", "B"}:
            raise _refused(path, name, "both lora_A and lora_B", f"lora_{next(iter(pair))} alone")
        taken, given = _sizes(target)
        rank = config.rank_of(module)
        for half, shape in (("A", (rank, taken)), ("B", (given, rank))):
            found = tuple(pair[half].shape)
            if found != shape:
                raise _refused(path, f"{_PREFIX}{module}.lora_{half}.weight", f"shape {shape}", f"shape {found}")
        return _Delta(pair["A"], pair["B"], config.scale(module, rank))

    def _adapt(self, name: str) -> None:
        """Make a module add its rows' adapters. One assignment, as the model's thread may be inside the module now."""
        module = self._module.get_submodule(name)
        plain = module.forward

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = plain(inputs)
            for adapter, rows in self._groups:
                delta = adapter.deltas.get(name)
                if delta is None:
                    continue
                if rows is None:
                    output += delta.of(inputs)
                else:
                    output.index_add_(0, rows, delta.of(inputs[rows]))
            return output

        module.forward = forward
        self._adapted.add(name)


def read_base(directory: Path) -> str:
    """Return the base model that the adapter in `directory` names, `""` for none; raises `Permanent`."""
    return str(_read(directory / CONFIG_FILE).get("base_model_name_or_path") or "")


def _read_config(path: Path) -> _Config:
    config = _read(path)
    unsupported = [f"{key}={config[key]!r}" for key in NOT_COMPUTED if config.get(key)]
    unsupported += [
        f"{key}={config[key]!r}, which PEFT 0.21 does not have"
        for key in sorted(config.keys() - HONOURED - WITHOUT_EFFECT - set(NOT_COMPUTED))
        if config[key]
    ]
    if config.get("peft_type") != "LORA":
        unsupported.append(f"peft_type={config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        unsupported.append(f"bias={config['bias']!r}")
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower().startswith(_CHANGING_THE_BASE):
        unsupported.append(f"init_lora_weights={initialization!r}")
    if unsupported:
        raise Permanent(
            "unsupported_adapter",
            f"{path}: expected plain LoRA, found {', '.join(unsupported)}",
            "merge it into its base (PEFT's merge_and_unload) and publish the result as a model",
        )
    try:
        ranks = {str(key): int(value) for key, value in (config.get("rank_pattern") or {}).items()}
        alphas = {str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
        for pattern in (*ranks, *alphas):
            re.compile(pattern)
        by_root, ties = bool(config.get("use_rslora")), bool(config.get("ensure_weight_tying"))
        targets = _Targets.read(config)
        return _Config(int(config["r"]), float(config["lora_alpha"]), ranks, alphas, by_root, ties, targets)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise _invalid(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _invalid(path, error) from error
    if not isinstance(config, dict):
        raise _invalid(path, TypeError("not a JSON object"))
    return config


def _read_names(found: Any, *, one: bool = False) -> str | tuple[str, ...] | None:
    """Return a pattern (with `one` a tuple of it), or names; None for none."""
    if isinstance(found, str):
        re.compile(found)
        return (found,) if one else found
    return None if found is None else tuple(map(str, found))


def _is_among(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """Choose as PEFT's `get_pattern_key` does: the first pattern that matches the end of the module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _sizes(target: Any) -> tuple[int, int]:
    """Return a linear module's input and output sizes."""
    if isinstance(target, Conv1D):
        return int(target.weight.shape[0]), int(target.weight.shape[1])
    return int(target.in_features), int(target.out_features)


def _kind(module: Any) -> str:
    return type(module).__name__


def _refused(path: Path, tensor: str, expected: str, found: str) -> HoldfastError:
    return Permanent(
        "adapter_mismatch",
        f"{path}: {tensor}: expected {expected}, found {found}",
        "check that the adapter was made for this base, and is a LoRA of its linear modules",
    )


def _invalid(path: Path, error: Exception) -> HoldfastError:
    return Permanent("invalid_adapter", f"{path}: {error!r}", "publish the adapter's folder as PEFT saves it")
