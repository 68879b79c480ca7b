"""The modules after the transformer, computed as sentence-transformers computes them.

Law: runs in the model's thread only. Padding is on the right and masked. Sums are taken in float32 where the model's
dtype is shorter; a result has the model's dtype, as in the library. Source of formulas: sentence-transformers 6.2.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cached.contract.errors import Permanent
from server.engine.embedding.documents import unsupported
from server.engine.embedding.module_settings import (
    SENTENCE,
    TOKENS,
    DenseSettings,
    LayerNormSettings,
    LayerPoolingSettings,
    NormalizeSettings,
    PoolingSettings,
    StepSettings,
)
from server.weights.files import load_file

_SMALLEST_SUM = 1e-9
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(slots=True)
class Features:
    """A batch on its way: `values` by the library's names; the mask (sequences, tokens), the number of prompt tokens of
    each sequence, and the hidden states of all layers where the configuration asks for them."""

    values: dict[str, Tensor]
    mask: Tensor
    prompt_tokens: Tensor
    layers: tuple[Tensor, ...] | None = None


Step = Callable[[Features], None]


def build_step(settings: StepSettings, device: str, dtype: torch.dtype) -> Step:
    """Return the module of these settings with its weights on the device; raises `HoldfastError`."""
    match settings:
        case PoolingSettings():
            return Pooling(settings)
        case NormalizeSettings():
            return Normalize(settings)
        case DenseSettings():
            return Dense(settings, device, dtype)
        case LayerNormSettings():
            return LayerNorm(settings, device, dtype)
        case LayerPoolingSettings():
            return LayerPooling(settings, device, dtype)


def output_dimension(settings: tuple[StepSettings, ...], hidden: int) -> int:
    """Return the length of a vector, of hidden states of `hidden` numbers; raises `Permanent` for a wrong order."""
    sizes = {TOKENS: hidden}
    for step in settings:
        size = sizes.get(step.source)
        if size is None:
            continue
        if isinstance(step, PoolingSettings):
            size *= len(step.modes)
        elif isinstance(step, DenseSettings):
            _expect_size(step.folder, "in_features", step.inputs, size)
            size = step.outputs
        elif isinstance(step, LayerNormSettings):
            _expect_size(step.folder, "dimension", step.dimension, size)
        sizes[step.target] = size
    return sizes[SENTENCE]


class Pooling:
    """Tokens to one vector for each mode, concatenated."""

    def __init__(self, settings: PoolingSettings) -> None:
        self._modes = settings.modes
        self._include_prompt = settings.include_prompt

    def __call__(self, features: Features) -> None:
        tokens, mask = features.values[TOKENS], features.mask
        if not self._include_prompt:
            positions = torch.arange(mask.shape[1], device=mask.device)
            mask = mask.masked_fill(positions < features.prompt_tokens.unsqueeze(1), 0)
        features.values[SENTENCE] = torch.cat([_POOLS[mode](tokens, mask) for mode in self._modes], dim=-1)


def pool(states: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Reduce hidden states (sequences, tokens, dimension) to one vector per sequence, without what is masked."""
    return _POOLS[mode](states, mask)


def _pool_first(states: Tensor, mask: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), mask.int().argmax(1)]


def _pool_last(states: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(states), device=states.device)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    # A sequence without a token that counts becomes zeros.
    return states[rows, last] * (mask.sum(1, keepdim=True) > 0)


def _pool_maximum(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _pool_mean(states: Tensor, mask: Tensor) -> Tensor:
    total, tokens = _total(states, mask)
    return (total / tokens).to(states.dtype)


def _pool_root_mean(states: Tensor, mask: Tensor) -> Tensor:
    total, tokens = _total(states, mask)
    return (total / tokens.sqrt()).to(states.dtype)


def _pool_weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    dtype = _sum_dtype(states)
    positions = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=dtype)
    weights = (mask.to(dtype) * positions).unsqueeze(-1)  # a prompt that is left out keeps the positions after it
    return ((states * weights).sum(1) / weights.sum(1).clamp(min=_SMALLEST_SUM)).to(states.dtype)


def _total(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over the tokens and their number, both in the dtype of sums."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    dtype = _sum_dtype(states)
    return (states * weights).sum(1, dtype=dtype), weights.sum(1, dtype=dtype).clamp(min=_SMALLEST_SUM)


def _sum_dtype(states: Tensor) -> torch.dtype:
    return torch.float32 if states.dtype in _HALVES else states.dtype


_POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _pool_first,
    "max": _pool_maximum,
    "mean": _pool_mean,
    "mean_sqrt_len_tokens": _pool_root_mean,
    "weightedmean": _pool_weighted_mean,
    "lasttoken": _pool_last,
}


class Normalize:
    """Vectors to unit length."""

    def __init__(self, settings: NormalizeSettings) -> None:
        self._settings = settings

    def __call__(self, features: Features) -> None:
        found = features.values.get(self._settings.source)
        if found is not None:
            features.values[self._settings.target] = nn.functional.normalize(found, p=2, dim=-1)


class Dense(nn.Module):
    """A linear layer with its activation; its parts have the names that they have in the file."""

    def __init__(self, settings: DenseSettings, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._settings = settings
        self.linear = nn.Linear(settings.inputs, settings.outputs, bias=settings.bias, device="meta")
        self.activation_function = _activation(settings)
        self.residual: nn.Linear | None = None
        if settings.residual and settings.inputs != settings.outputs:
            self.residual = nn.Linear(settings.inputs, settings.outputs, bias=False, device="meta")
        _fill(self, settings.folder, device, dtype)

    def forward(self, features: Features) -> None:
        found = features.values[self._settings.source]
        result: Tensor = self.activation_function(self.linear(found))
        if self._settings.residual:
            result = result + (found if self.residual is None else self.residual(found))
        features.values[self._settings.target] = result


class LayerNorm(nn.Module):
    """A layer normalization of the vector."""

    def __init__(self, settings: LayerNormSettings, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.dimension, device="meta")
        _fill(self, settings.folder, device, dtype)

    def forward(self, features: Features) -> None:
        features.values[SENTENCE] = self.norm(features.values[SENTENCE])


class LayerPooling(nn.Module):
    """The weighted mean of the layers' hidden states; does nothing, as in the library, where config.json does not say
    `output_hidden_states`."""

    def __init__(self, settings: LayerPoolingSettings, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._start = settings.start
        self.layer_weights = nn.Parameter(torch.empty(settings.layers + 1 - settings.start, device="meta"))
        _fill(self, settings.folder, device, dtype)

    def forward(self, features: Features) -> None:
        if features.layers is not None:
            layers = torch.stack(features.layers)[self._start :]
            weighted = self.layer_weights.view(-1, 1, 1, 1) * layers
            features.values[TOKENS] = weighted.sum(0) / self.layer_weights.sum()


def _activation(settings: DenseSettings) -> nn.Module:
    found = find_activation(settings.activation)
    if found is not None:
        return found
    raise unsupported(
        settings.folder / "config.json",
        "activation_function",
        settings.activation,
        "a class of torch.nn that needs no arguments, such as torch.nn.modules.activation.Tanh",
    )


def find_activation(name: str) -> nn.Module | None:
    """Return the activation of this name, a class that torch.nn exports, under one of its own names; None for any
    other, and for one that needs arguments, which a file cannot give."""
    found = getattr(nn, name.rpartition(".")[2], None)
    names = () if found is None else (f"torch.nn.{name.rpartition('.')[2]}", f"{found.__module__}.{found.__name__}")
    if name not in names or not (isinstance(found, type) and issubclass(found, nn.Module)):
        return None
    try:
        return found()
    except TypeError:
        return None


def _fill(module: nn.Module, folder: Path, device: str, dtype: torch.dtype) -> None:
    """Read the module's weights; raises `HoldfastError` where they are not there or not of its shape."""
    path = folder / "model.safetensors"
    if not path.is_file():
        other = folder / "pytorch_model.bin"
        found = f"{other.name}, a pickle, which is never opened" if other.is_file() else "none"
        raise Permanent(
            "missing_weights",
            f"{path}: expected the weights of this module, found {found}",
            "publish the module's model.safetensors (load the model with sentence-transformers and save it)",
        )
    try:
        module.load_state_dict(load_file(path, device), strict=True, assign=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise Permanent(
            "missing_weights",
            f"{path}: expected the weights of this module: {problem}",
            "check that config.json and the weights belong together",
        ) from error
    module.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _expect_size(folder: Path, field: str, found: int, expected: int) -> None:
    if found != expected:
        raise unsupported(
            folder / "config.json",
            field,
            found,
            f"{expected}, the size of what comes before it",
            "check that the modules belong together",
        )
