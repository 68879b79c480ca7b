from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cached.contract.errors import Permanent
from cached.contract.layout import SnapshotLayout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.lease import is_held
from server import load_file as load_folder
from server.weights.settings import Io, LoaderSettings
from tests.support import folders
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.support.serving import REPOSITORY
from tests.support.snapshots import link_model, make_public, make_snapshot
from tests.unit.server.vllm.conftest import REAL, STUBS

RANGE = 1 << 18  # of the fake device's allocations
NAME = "model.safetensors"

pytestmark = pytest.mark.usefixtures("vllm")


class Toy(torch.nn.Module):
    """A model as vLLM's are: it takes the weights one by one and copies what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.up = torch.nn.Linear(4, 600, bias=False)
        self.down = torch.nn.Linear(600, 4, bias=False)
        self.seen: list[str] = []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            self.seen.append(name)
            if name in parameters:
                parameters[name].data.copy_(tensor)
        return set(self.seen)


def random_state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(tensor) for name, tensor in Toy().state_dict().items()}


def sharded(folder: Path, files: dict[str, dict[str, torch.Tensor]]) -> Path:
    """A folder with these files and their index."""
    folder.mkdir(exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A toy in two shards, and a file beside them that the index does not name."""
    state = random_state(1)
    made = sharded(
        tmp_path / "model",
        {
            "model-00001-of-00002.safetensors": {"embed.weight": state["embed.weight"]},
            "model-00002-of-00002.safetensors": {n: t for n, t in state.items() if n != "embed.weight"},
        },
    )
    save_file(random_state(2), made / "consolidated.safetensors")
    return made


def expected(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("model-*")) for name, tensor in load_file(path).items()}


def loader_for(**load_config: Any) -> Any:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    return get_model_loader(LoadConfig(load_format="holdfast", **load_config))


def model_config(path: object, **fields: Any) -> Any:
    plain = {"revision": None, "quantization": None, "multimodal_config": None, "is_moe": False}
    return SimpleNamespace(model=str(path), **(plain | {"dtype": torch.float32} | fields))


def load(loader: Any, config: Any) -> Toy:
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config

    model = Toy()
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
        loader.load_weights(model, config)
    return model


def equal(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name].cpu(), state[name]) for name in state)


PLUGGED = """
import logging, sys
from vllm.plugins import load_general_plugins
load_general_plugins()
from server.vllm.plugin import register
register()
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
print(type(get_model_loader(LoadConfig(load_format="holdfast"))).__name__)
"""


def test_vllm_finds_the_load_format_by_itself() -> None:
    """The installed package's entry point is what vLLM calls at start, and a second call changes nothing."""
    (entry,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "holdfast"]
    assert entry.value == "server.vllm.plugin:register"
    paths = str(REPOSITORY) if REAL else f"{REPOSITORY}:{STUBS}"
    done = subprocess.run(
        [sys.executable, "-c", PLUGGED],
        env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "VLLM_PLUGINS": "holdfast"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[-1:] == ["HoldfastModelLoader"], done.stderr
    assert "already registered" not in done.stdout + done.stderr


def test_a_vllm_that_is_too_old_still_starts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where vLLM has no load formats of others' the plugin says so and raises nothing."""
    from server.vllm.plugin import register

    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader", None)
    logging.getLogger("vllm").propagate = True
    register()
    assert "--load-format holdfast is not available" in caplog.text


def test_weights_are_those_of_the_files(folder: Path) -> None:
    """A sharded checkpoint arrives whole, once, and without the file that its index does not name."""
    loader = loader_for()
    loader.download_model(model_config(folder))
    model = load(loader, model_config(folder))
    assert equal(model, expected(folder))
    assert sorted(model.seen) == sorted(expected(folder))


@pytest.mark.skipif(REAL, reason="the real one builds real architectures only")
def test_a_model_is_built_and_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """vLLM's own way in gives a model in evaluation mode, and a line says what it took."""
    from vllm.config import VllmConfig
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model

    config = VllmConfig(load_config=LoadConfig(load_format="holdfast", model_loader_extra_config={"threads": 2}))
    with caplog.at_level(logging.INFO, logger="vllm"):
        model = get_model(vllm_config=config, model_config=model_config(folder, build=lambda prefix: Toy()))
    assert equal(model, expected(folder))
    assert not model.training
    assert "Loading weights with holdfast: 18.9 KiB onto cpu in" in caplog.text
    assert "GB/s" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "consolidated.safetensors"])
def test_one_file_needs_no_index(name: str, tmp_path: Path) -> None:
    """A single file is found under its own name, whatever that is."""
    save_file(random_state(3), tmp_path / name)
    assert equal(load(loader_for(), model_config(tmp_path)), load_file(tmp_path / name))


def test_secondary_weights_have_their_prefix(folder: Path, tmp_path: Path) -> None:
    """What a model names besides its own weights comes after them, from its folder, under its prefix."""
    other = tmp_path / "other"
    (other / "deep").mkdir(parents=True)
    save_file({"weight": torch.ones(3)}, other / "deep" / "model.safetensors")
    loader = loader_for()
    model: Any = Toy()
    model.secondary_weights = [loader.Source(str(other), None, subfolder="deep", prefix="tower.")]
    found = dict(loader.get_all_weights(model_config(folder), model))
    assert list(found) == [*expected(folder), "tower.weight"]
    assert torch.equal(found["tower.weight"], torch.ones(3))


def test_a_models_own_patterns_choose_the_files(folder: Path) -> None:
    """With patterns of its own a model gets exactly the files that fit, listed in the index or not."""
    loader = loader_for()
    model: Any = Toy()
    model.allow_patterns_overrides = ["nothing*.safetensors", "consolidated*.safetensors"]
    found = dict(loader.get_all_weights(model_config(folder), model))
    plain = load_file(folder / "consolidated.safetensors")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_what_the_model_does_not_use_is_not_read(folder: Path) -> None:
    """Weights that a model disowns never reach it."""
    loader = loader_for()
    model: Any = Toy()
    model.is_unused_checkpoint_weight = lambda name: name.startswith("up.")
    assert sorted(name for name, _ in loader.get_all_weights(model_config(folder), model)) == [
        "down.weight",
        "embed.weight",
    ]


def test_experts_of_other_ranks_are_not_read(tmp_path: Path) -> None:
    """With expert parallelism a rank gets its own experts, and all that is no expert's weight."""
    names = [f"layers.0.experts.{number}.up.{kind}" for number in range(4) for kind in ("weight", "scale")]
    save_file({name: torch.ones(2) for name in [*names, "norm.weight"]}, tmp_path / NAME)
    loader = loader_for()
    loader.local_expert_ids = {1, 2}
    found = {name for name, _ in loader.get_all_weights(model_config(tmp_path), Toy())}
    assert found == {name for name in names if "scale" in name or ".1." in name or ".2." in name} | {"norm.weight"}


def test_files_of_the_language_model_are_left_out_for_an_encoder(tmp_path: Path) -> None:
    """With --mm-encoder-only a file that holds nothing else than the language model is not read."""
    folder = sharded(
        tmp_path / "mm",
        {
            "model-1.safetensors": {"language_model.a": torch.ones(2)},
            "model-2.safetensors": {"language_model.b": torch.ones(2), "vision.a": torch.ones(2)},
        },
    )
    loader = loader_for()
    loader._encoder_only_lm_prefixes = ("language_model.",)
    assert {name for name, _ in loader.get_all_weights(model_config(folder), Toy())} == {"language_model.b", "vision.a"}


def test_a_weight_that_no_file_has_is_vllms_own_error(folder: Path) -> None:
    """A parameter that stays as it was made is never served: vLLM's own check still runs."""
    state = {name: tensor for name, tensor in random_state(1).items() if name != "up.weight"}
    alone = folder.parent / "alone"
    alone.mkdir()
    save_file(state, alone / "model.safetensors")
    with pytest.raises(ValueError, match=r"up\.weight"):
        load(loader_for(), model_config(alone))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_loader_extra_config": {"thread": 3}}, "thread"),
        ({"model_loader_extra_config": {"num_threads": 3}}, "num_threads"),
        ({"model_loader_extra_config": {"threads": 0}}, "HOLDFAST_LOADER_THREADS='0'"),
        ({"model_loader_extra_config": {"slot_size": "much"}}, "HOLDFAST_LOADER_SLOT_SIZE='much'"),
        ({"safetensors_load_strategy": "eager"}, "eager"),
    ],
)
def test_an_option_that_means_nothing_is_refused(fields: dict[str, Any], told: str) -> None:
    """What is set and would not be heeded, or cannot be, ends the start with its name."""
    with pytest.raises(Permanent) as refused:
        loader_for(**fields)
    assert refused.value.code == "invalid_setting"
    assert told in str(refused.value)


def test_a_name_of_a_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not mounted is never downloaded, and the error says what to give instead."""
    monkeypatch.setenv("HOLDFAST_MODEL_PATH", "/holdfast/models/acme--llama/v3")
    with pytest.raises(Permanent) as refused:
        loader_for().download_model(model_config("meta-llama/Llama-3.1-8B"))
    assert refused.value.code == "no_model"
    assert "/holdfast/models/acme--llama/v3" in refused.value.remedy


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    """A folder without safetensors is told with what it was searched for, and why what is there is not read."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(Permanent) as refused:
        loader_for().download_model(model_config(tmp_path))
    assert refused.value.code == "no_weights"
    assert "model.safetensors.index.json" in str(refused.value)
    assert "pytorch_model.bin (a pickle" in str(refused.value)


@pytest.mark.parametrize("case", folders.EQUAL)
def test_the_files_are_those_of_the_other_loaders(case: str, tmp_path: Path) -> None:
    """vLLM gets the tensors that `load_file` gives, of a folder whose weights lie in odd files too."""
    made = tmp_path / "model"
    folders.make(folders.EQUAL[case], made)
    found = dict(loader_for().get_all_weights(model_config(made), Toy()))
    plain = load_folder(made)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("case", sorted(folders.REFUSED.keys() - {"a_variant_alone", "an_unusual_name_alone"}))
def test_what_the_other_loaders_refuse_is_refused(case: str, tmp_path: Path) -> None:
    """What is no model for `load_file` is none for vLLM, but for files of other names, which vLLM itself reads."""
    made = tmp_path / "model"
    folders.make(folders.REFUSED[case], made)
    loader = loader_for()
    with pytest.raises(Permanent) as refused:
        dict(loader.get_all_weights(model_config(made), Toy()))
    assert refused.value.remedy


def test_a_copy_with_a_dot_first_does_not_count(tmp_path: Path) -> None:
    """Where vLLM reads files of any name, what macOS leaves beside them is none of them."""
    save_file(random_state(3), tmp_path / "weights.safetensors")
    (tmp_path / "._weights.safetensors").write_bytes(b"Mac OS X")
    assert equal(load(loader_for(), model_config(tmp_path)), load_file(tmp_path / "weights.safetensors"))


def test_what_torchao_packed_is_refused(folder: Path) -> None:
    """A checkpoint whose tensors vLLM's own reader puts together is not handed over in pieces."""
    loader = loader_for()
    loader.load_config.safetensors_load_strategy = "torchao"
    with pytest.raises(Permanent) as refused:
        list(loader.get_all_weights(model_config(folder), Toy()))
    assert refused.value.code == "unsupported_quantization"
    assert "--load-format safetensors" in refused.value.remedy


def test_the_lease_is_held_once_the_weights_are_there(tmp_path: Path) -> None:
    """A snapshot that was loaded through its symlink is held until the process ends: vLLM may read it again."""
    public = make_public(tmp_path / "public")
    file = tmp_path / NAME
    save_file(random_state(4), file)
    digest = make_snapshot(public, {"model.safetensors": file.read_bytes()})
    link_model(public, ModelRef("acme/toy", "v1"), digest)
    link = public.model_link(ModelRef("acme/toy", "v1"))
    lease = SnapshotLayout(link.resolve()).lease
    assert not is_held(lease)
    assert equal(load(loader_for(), model_config(link)), load_file(file))
    assert is_held(lease)
    load(loader_for(), model_config(link))
    assert is_held(lease)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[FakeRuntime, LoaderSettings]]]:
    """A rank of vLLM's whose GPU is the fake one; what was asked of it, oldest first."""
    import server.vllm.loader as module

    made: list[tuple[FakeRuntime, LoaderSettings]] = []

    def find(device: torch.device, settings: LoaderSettings) -> object:
        assert device == torch.device("cuda", 3)
        made.append((FakeRuntime(), settings))
        return fake_accelerator(made[-1][0], replace(settings, range_bytes=RANGE))

    monkeypatch.setattr(module, "find_accelerator", find)
    monkeypatch.setattr(module, "current_platform", SimpleNamespace(device_type="cuda", is_cuda=lambda: True))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    yield made
    assert all(runtime.violations == [] for runtime, _ in made)


def test_a_rank_loads_onto_its_own_gpu(
    folder: Path, on_a_gpu: list[tuple[FakeRuntime, LoaderSettings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors come on the rank's current device, with the options given, read as one of the node's ranks."""
    monkeypatch.setenv("HOLDFAST_LOADER_SLOTS", "9")
    extra = {"threads": 3, "slot_size": "64KiB", "io": "buffered"}
    loader = loader_for(model_loader_extra_config=extra)
    parallel = SimpleNamespace(local_world_size=4, data_parallel_size_local=2)
    loader._vllm_config = SimpleNamespace(device_config=SimpleNamespace(device="cuda"), parallel_config=parallel)
    assert equal(load(loader, model_config(folder)), expected(folder))
    ((_, settings),) = on_a_gpu
    assert (settings.threads, settings.slots, settings.slot_bytes) == (3, 9, 65536)
    assert (settings.io, settings.local_readers) == (Io.BUFFERED, 8)


def test_device_memory_comes_back_while_weights_are_copied(
    tmp_path: Path, on_a_gpu: list[tuple[FakeRuntime, LoaderSettings]]
) -> None:
    """A consumer that keeps nothing never makes more than three ranges exist at once."""
    size = RANGE // 4
    save_file({f"t{number:02}": torch.zeros(size, dtype=torch.uint8) for number in range(40)}, tmp_path / NAME)
    loader = loader_for()
    parallel = SimpleNamespace(local_world_size=1, data_parallel_size_local=1)
    loader._vllm_config = SimpleNamespace(device_config=SimpleNamespace(device="cuda"), parallel_config=parallel)
    total = sum(tensor.nbytes for _, tensor in loader.get_all_weights(model_config(tmp_path), Toy()))
    ((runtime, _),) = on_a_gpu
    assert total == 40 * size
    assert runtime.peak <= 3 * (RANGE + size) < total


@pytest.mark.gpu
def test_on_a_real_gpu_a_model_is_what_the_files_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights arrive in parameters on the GPU, to the bit."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    import server.vllm.loader as module

    monkeypatch.setattr(module, "current_platform", SimpleNamespace(device_type="cuda", is_cuda=lambda: True))
    loader = loader_for(model_loader_extra_config={"slot_size": "64KiB"})
    parallel = SimpleNamespace(local_world_size=1, data_parallel_size_local=1)
    loader._vllm_config = SimpleNamespace(device_config=SimpleNamespace(device="cuda"), parallel_config=parallel)
    model = Toy().cuda()
    weights = list(loader.get_all_weights(model_config(folder), model))
    assert {tensor.device for _, tensor in weights} == {torch.device("cuda", torch.cuda.current_device())}
    model.load_weights(weights)
    assert equal(model, expected(folder))
