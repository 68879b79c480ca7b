from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_model as reference_load_model
from safetensors.torch import save_file

from cached.contract.errors import Permanent
from server import load_model
from server.weights.cuda.accelerator import Accelerator
from tests.support.checkpoints import same


class Tied(torch.nn.Module):
    """Two names for one weight, a buffer of each kind, and weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.head = torch.nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)


def on_meta(kind: Any = Tied) -> Any:
    with torch.device("meta"):
        return kind()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file with one of the two tied names."""
    torch.manual_seed(5)
    state = {name: tensor.clone() for name, tensor in Tied().state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors", state


def test_a_meta_module_gets_its_weights_and_stays_tied(
    saved: tuple[Path, dict[str, torch.Tensor]], accelerator: Accelerator
) -> None:
    """Parameters and persistent buffers are the file's, one name of a tied pair is enough, and both are one tensor."""
    path, state = saved
    for device in ("cpu", accelerator):
        module = on_meta()
        result = load_model(module, path, device=device)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert module.head.weight is module.embed.weight
        assert all(same(module.state_dict()[name], tensor) for name, tensor in state.items())
        assert module.embed.weight.requires_grad
        assert module.table.is_meta  # in no file: its builder fills it


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("change", ["missing", "unexpected", "both", "shape"])
def test_keys_that_do_not_fit_are_reported_as_safetensors_does(
    strict: bool, change: str, saved: tuple[Path, dict[str, torch.Tensor]], accelerator: Accelerator
) -> None:
    """Result, error class and text are those of safetensors' `load_model`, and a refused module is untouched."""
    path, state = saved
    if change in ("missing", "both"):
        del state["norm.weight"]
    if change in ("unexpected", "both"):
        state["left.over"] = torch.zeros(3)
    if change == "shape":
        state["norm.bias"] = torch.zeros(17)
    save_file(state, path)
    module, plain = on_meta(), Tied()
    before = dict(module.named_parameters(remove_duplicate=False))
    try:
        expected = reference_load_model(plain, path, strict)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as caught:
            load_model(module, path, strict, accelerator)
        assert str(caught.value) == str(error)
        assert dict(module.named_parameters(remove_duplicate=False)) == before
        assert all(parameter.is_meta for parameter in module.parameters())
    else:
        found = load_model(module, path, strict, accelerator)
        assert (sorted(found.missing_keys), sorted(found.unexpected_keys)) == tuple(map(sorted, expected))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("names", [(), ("embed.weight",), ("head.weight",), ("embed.weight", "head.weight")])
def test_a_tied_weight_has_one_name(
    strict: bool, names: tuple[str, ...], saved: tuple[Path, dict[str, torch.Tensor]], accelerator: Accelerator
) -> None:
    """Without a name in the file one is missing; two tensors for one weight are told, whichever of them is kept."""
    path, state = saved
    del state["embed.weight"]
    for number, name in enumerate(names):
        state[name] = torch.full((50, 16), float(number))
    save_file(state, path)
    module, plain = on_meta(), Tied()
    try:
        expected = reference_load_model(plain, path, strict)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as caught:
            load_model(module, path, strict, accelerator)
        assert str(caught.value) == str(error)
        assert strict and len(names) != 1
    else:
        found = load_model(module, path, strict, accelerator)
        assert (set(found.missing_keys), found.unexpected_keys) == (set(expected[0]), list(expected[1]))
        assert module.head.weight is module.embed.weight
        assert not names or same(module.embed.weight, plain.embed.weight)


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_a_backend_changes_no_weight(
    backend: str, saved: tuple[Path, dict[str, torch.Tensor]], accelerator: Accelerator
) -> None:
    """Either backend gives the module the file's tensors; another name of one is refused."""
    path, state = saved
    for device in ("cpu", accelerator):
        module = on_meta()
        load_model(module, path, device=device, backend=backend)
        assert all(same(module.state_dict()[name], tensor) for name, tensor in state.items())
    with pytest.raises(Permanent, match="tape"):
        load_model(on_meta(), path, backend="tape")


def test_the_files_dtype_wins_unless_one_is_wanted(tmp_path: Path, accelerator: Accelerator) -> None:
    """A module built in float32 gets the file's bfloat16 and int8, or what `dtype` makes of plain numbers."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(4, 4))
            self.codes = torch.nn.Parameter(torch.empty(8))

    save_file(
        {"weight": torch.randn(4, 4).bfloat16(), "codes": torch.arange(8, dtype=torch.int8)}, tmp_path / "m.safetensors"
    )
    for device in ("cpu", accelerator):
        module = on_meta(Mixed)
        load_model(module, tmp_path / "m.safetensors", device=device)
        assert (module.weight.dtype, module.codes.dtype) == (torch.bfloat16, torch.int8)
        module = on_meta(Mixed)
        load_model(module, tmp_path / "m.safetensors", device=device, dtype=torch.float16)
        assert (module.weight.dtype, module.codes.dtype) == (torch.float16, torch.int8)


def test_names_that_the_module_itself_translates_are_loaded(tmp_path: Path, accelerator: Accelerator) -> None:
    """A module's own hooks see the files' names, as in torch: what they rename is loaded, and nothing stays empty."""

    def renamed(state: dict[str, Any], prefix: str, *_: object) -> None:
        state[prefix + "weight"] = state.pop(prefix + "kernel")

    class Translating(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 2)
            cast(Any, self.inner)._register_load_state_dict_pre_hook(renamed)

    torch.manual_seed(5)
    saved = {"inner.kernel": torch.randn(2, 3), "inner.bias": torch.randn(2)}
    save_file(saved, tmp_path / "m.safetensors")
    module = on_meta(Translating)
    assert load_model(module, tmp_path / "m.safetensors", device=accelerator) == ([], [])
    assert same(module.inner.weight, saved["inner.kernel"])
    assert same(module.inner.bias, saved["inner.bias"])


def test_only_what_the_module_has_is_read(tmp_path: Path) -> None:
    """Tensors the module has no place for are reported and cost nothing."""
    from server.weights import report

    torch.manual_seed(5)
    state = {name: tensor.clone() for name, tensor in Tied().state_dict().items() if name != "head.weight"}
    save_file({**state, "x": torch.zeros(9)}, tmp_path / "m.safetensors")
    result = load_model(on_meta(), tmp_path / "m.safetensors", strict=False)
    assert result.unexpected_keys == ["x"]
    assert report.list_recent()[-1].tensors == 6
