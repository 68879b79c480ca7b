"""Load a checkpoint into a module that was built on the meta device: the tensors become its parameters.

Law: names are checked as safetensors does and shapes as torch does, with their messages, before a byte is read and
before the module changes. Tied weights stay tied. What no file holds stays as it is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from server.weights.cuda.accelerator import DeviceLike, find_accelerator
from server.weights.files import choose_tensors, load_open, read_backend
from server.weights.format.checkpoint import Checkpoint, Source, open_checkpoint
from server.weights.format.dtypes import resolve
from server.weights.load import LoadOptions

if TYPE_CHECKING:
    from torch.nn.modules.module import _IncompatibleKeys


def load_model(
    module: torch.nn.Module,
    source: Source,
    strict: bool = True,
    device: DeviceLike = "cpu",
    *,
    dtype: torch.dtype | None = None,
    backend: str = "mmap",
) -> _IncompatibleKeys:
    """Replace the module's parameters and persistent buffers by the tensors of a file, several files, or a folder.

    Returns `(missing_keys, unexpected_keys)`, lists. Raises RuntimeError where shapes differ, or, with `strict`, where
    a key is missing or unexpected; else `HoldfastError`. Tied weights need one name in the files, and are tied
    afterwards: with more than one, those after the first are unexpected, as only one tensor can be kept; without
    `strict` it is the last in the module's order, as in safetensors. The files' dtypes are kept whatever the module's
    are, except that `dtype` converts float64, float32, float16 and bfloat16 tensors. Non-persistent buffers are in no
    file: the caller fills them. `backend` is as in `load_file`.
    """
    began = time.perf_counter()
    chosen = read_backend(backend)
    accelerator = find_accelerator(device)
    with open_checkpoint(source) as checkpoint:
        ties = _ties(module)
        current = module.state_dict(keep_vars=True)
        found = _shared(checkpoint.tensors, ties)
        result: _IncompatibleKeys = module.load_state_dict(_placeholders(checkpoint, current, found), strict=False)
        told = _without_ties(result, checkpoint.tensors, ties)
        if strict and (told.missing_keys or told.unexpected_keys):
            raise RuntimeError(_describe(module, told))
        # All but the keys that torch rejects: a module's hooks may accept older names, and need those.
        left_out = set(result.unexpected_keys)
        found = {name: source for name, source in found.items() if name not in left_out}
        used = sorted(set(found.values()))
        options = LoadOptions(dtype, backend=chosen, headers_s=time.perf_counter() - began)
        tensors = dict(load_open(checkpoint, accelerator, choose_tensors(checkpoint, used, None), options))
    state = {name: tensors[source] for name, source in found.items()}
    for name, tensor in state.items():
        if name in current and not (tensor.is_floating_point() or tensor.is_complex()):
            current[name].requires_grad_(False)  # torch would copy the flag, and whole numbers have no gradient
    module.load_state_dict(state, strict=False, assign=True)
    _tie(module, ties)
    return told


def _ties(module: torch.nn.Module) -> list[list[str]]:
    """Return the names of each parameter or buffer that has several."""
    names: dict[int, list[str]] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _shared(in_files: Any, ties: list[list[str]]) -> dict[str, str]:
    """Map each name in the files, and each name tied to one of them, to the name whose tensor it gets."""
    found = {name: name for name in in_files}
    for group in ties:
        present = [name for name in group if name in in_files]
        if present:
            found.update(dict.fromkeys(group, present[-1]))
    return found


def _without_ties(result: _IncompatibleKeys, in_files: Any, ties: list[list[str]]) -> _IncompatibleKeys:
    """Return the missing and unexpected keys where each tied weight has one name, the first that is in the files."""
    missing, unexpected = list(result.missing_keys), list(result.unexpected_keys)
    for group in ties:
        present = sorted(name for name in group if name in in_files)
        unexpected += present[1:]
        others = set(group) - {(present or sorted(group))[0]}
        missing = [name for name in missing if name not in others]
    return type(result)(missing, unexpected)


def _describe(module: torch.nn.Module, keys: _IncompatibleKeys) -> str:
    text = f"Error(s) in loading state_dict for {type(module).__name__}:"
    for kind, names in (("Missing", keys.missing_keys), ("Unexpected", keys.unexpected_keys)):
        if names:
            quoted = ", ".join(f'"{name}"' for name in sorted(names))
            text += f"\n    {kind} key(s) in state_dict: {quoted}"
    return text


def _placeholders(
    checkpoint: Checkpoint, current: dict[str, torch.Tensor], found: dict[str, str]
) -> dict[str, torch.Tensor]:
    """Return tensors that torch checks as it would the files', and whose copying changes nothing."""
    state = {}
    for name, source in found.items():
        dtype, shape = resolve(source, checkpoint.tensors[source].entry)
        if name in current and current[name].shape == shape:
            state[name] = current[name]
        else:
            state[name] = torch.empty(shape, dtype=dtype, device="meta")
    return state


def _tie(module: torch.nn.Module, ties: list[list[str]]) -> None:
    for group in ties:
        tensor = getattr(*_owner(module, group[0]))
        for name in group[1:]:
            setattr(*_owner(module, name), tensor)


def _owner(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute
