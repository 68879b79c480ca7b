from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from cached.contract.errors import Permanent
from server import load_pretrained
from server.weights import report
from server.weights.pretrained import _WithoutSympy
from tests.support.serving import REPOSITORY

IDS = torch.tensor([[5, 77, 200, 13, 90]])

AUTO: Any = {
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "minilm": AutoModel,
    "t5": AutoModelForSeq2SeqLM,
}


ON_META: dict[str, Any] = {
    "arange": lambda: torch.arange(7),
    "arange of floats": lambda: torch.arange(0, 5, 0.5, dtype=torch.bfloat16),
    "arange with a gradient": lambda: torch.arange(3.0, requires_grad=True),
    "arange elsewhere": lambda: torch.arange(3, device="cpu"),
    "normal": lambda: torch.nn.init.normal_(torch.nn.Parameter(torch.empty(2, 3))),
    "normal in place": lambda: torch.empty(2, 3, dtype=torch.float16).normal_(),
    "normal elsewhere": lambda: torch.nn.init.normal_(torch.empty(2, device="cpu"), std=0.0),
    "an embedding": lambda: torch.nn.Embedding(4, 3).weight,
    "empty like": lambda: torch.empty_like(torch.empty(2, 3, dtype=torch.float64)),
    "empty like, elsewhere": lambda: torch.empty_like(torch.empty(2, 3), device="cpu", dtype=torch.int32),
    "empty like transposed": lambda: torch.empty_like(torch.empty(2, 3).t()),
    "empty like expanded": lambda: torch.empty_like(torch.empty(3).expand(1, -1)),
    "divided": lambda: torch.empty(4, dtype=torch.float32) / 64,
    "divided integers": lambda: torch.arange(0, 8, 2) / 8,
    "divided by a tensor": lambda: torch.empty(4) / torch.empty(4, dtype=torch.float64),
    "divided with a gradient": lambda: torch.nn.Parameter(torch.empty(4)) / 2,
    "rotary": lambda: 1.0 / (10000.0 ** (torch.arange(0, 8, 2, dtype=torch.int64).to(dtype=torch.float) / 8)),
}


@pytest.mark.parametrize("name", ON_META)
def test_meta_tensors_are_those_of_torch(name: str) -> None:
    """What building a module computes without torch's own code for meta tensors is the tensor that this gives."""
    compute = ON_META[name]
    with torch.device("meta"):
        expected = compute()
    with _WithoutSympy(), torch.device("meta"):
        found = compute()
    for attribute in ("shape", "dtype", "device", "requires_grad"):
        assert getattr(found, attribute) == getattr(expected, attribute), attribute
    assert found.stride() == expected.stride()
    assert type(found) is type(expected)


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random T5, encoder and decoder, whose three embeddings are one."""
    directory = tmp_path_factory.mktemp("t5")
    torch.manual_seed(9)
    config: Any = transformers.T5Config(vocab_size=258, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    config.decoder_start_token_id = 0
    model: Any = transformers.T5ForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(directory)
    return directory


def forward(module: Any) -> torch.Tensor:
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if module.config.is_encoder_decoder else {})
    with torch.inference_mode():
        found: torch.Tensor = module(**inputs)[0]
        return found


def ties(module: Any) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("model", sorted(AUTO))
def test_a_model_is_what_from_pretrained_gives(model: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """Class, mode, parameters, buffers, ties, configuration and output equal transformers' own, to the bit."""
    directory = request.getfixturevalue(model)
    ours = load_pretrained(AUTO[model], directory, dtype=dtype)
    theirs = AUTO[model].from_pretrained(directory, dtype=dtype)
    assert type(ours) is type(theirs)
    assert not ours.training
    for kind in ("named_parameters", "named_buffers"):
        found, expected = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            assert tensor.requires_grad == expected[name].requires_grad
            assert torch.equal(tensor, expected[name]), name
    assert ties(ours) == ties(theirs)
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.name_or_path == theirs.name_or_path
    assert getattr(ours, "generation_config", None) == getattr(theirs, "generation_config", None)
    assert torch.equal(forward(ours), forward(theirs))


def test_weights_are_the_loaders_own_tensors(llama: Path) -> None:
    """What transformers assigns are the views of the page cache, and it reads no file itself."""
    module: Any = load_pretrained(AutoModelForCausalLM, llama)
    assert report.list_recent()[-1].method == "mapped"
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(llama) in line
    ]
    assert all(any(low <= p.data_ptr() < high for low, high in ranges) for p in module.parameters())


def test_fields_of_the_configuration_can_be_overridden(llama: Path) -> None:
    """An override is in the configuration, and `attn_implementation` reaches the model."""
    module: Any = load_pretrained(AutoModelForCausalLM, llama, use_cache=False, attn_implementation="eager")
    assert module.config.use_cache is False
    assert module.config._attn_implementation == "eager"


def test_a_class_of_ones_own_choice_is_built(llama: Path) -> None:
    """A concrete class is taken as it is, and what it lacks and has over is told as transformers tells it."""
    ours = load_pretrained(transformers.LlamaForSequenceClassification, llama, output_loading_info=True)
    chosen: Any = transformers.LlamaForSequenceClassification
    theirs = chosen.from_pretrained(llama, output_loading_info=True)
    assert ours[1]["missing_keys"] == theirs[1]["missing_keys"] != set()
    assert ours[1]["unexpected_keys"] == theirs[1]["unexpected_keys"]
    assert not any(p.is_meta for p in ours[0].parameters())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"trust_remote_code": True}, "unknown_argument"),
        ({"device_map": "auto"}, "unknown_argument"),
        ({"dtype": "float3"}, "invalid_dtype"),
        ({"device": "tpu"}, "unsupported_device"),
    ],
)
def test_what_has_no_meaning_here_is_refused(llama: Path, arguments: dict[str, Any], code: str) -> None:
    """An argument that would do nothing, or something else, is an error that names it."""
    with pytest.raises(Permanent) as refused:
        load_pretrained(AutoModelForCausalLM, llama, **arguments)
    assert refused.value.code == code
    assert str(next(iter(arguments.values()))) in str(refused.value) or next(iter(arguments)) in str(refused.value)


def test_another_quantization_than_the_checkpoints_is_refused(llama: Path, tmp_path: Path) -> None:
    """`quantization_config` is an error that names it also where config.json has such a field to override."""
    quantized = copy_with(llama, tmp_path / "q", quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(Permanent, match="'quantization_config'") as refused:
        load_pretrained(AutoModelForCausalLM, quantized, quantization_config={"quant_method": "compressed-tensors"})
    assert refused.value.code == "unknown_argument"


def test_a_name_of_a_hub_is_refused(tmp_path: Path) -> None:
    """What is no folder is never looked for elsewhere."""
    with pytest.raises(Permanent) as refused:
        load_pretrained(AutoModelForCausalLM, "openai-community/gpt2")
    assert refused.value.code == "no_model"


def copy_with(source: Path, target: Path, **fields: Any) -> Path:
    """The model with other fields in its configuration."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).hardlink_to(path)
    config = json.loads((source / "config.json").read_text()) | fields
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_quantization_whose_package_is_missing_is_named(llama: Path, tmp_path: Path) -> None:
    """A checkpoint that transformers cannot unpack as installed is refused with the package it asks for."""
    if importlib.util.find_spec("compressed_tensors") is not None:
        pytest.skip("compressed-tensors is installed")
    quantized = copy_with(llama, tmp_path / "q", quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(Permanent, match=r"compressed.tensors") as refused:
        load_pretrained(AutoModelForCausalLM, quantized)
    assert refused.value.code == "load_failed"


def test_a_quantized_checkpoint_passes_through(llama: Path, tmp_path: Path) -> None:
    """What transformers can unpack, scales and float8 included, arrives as with its own loader."""
    pytest.importorskip("compressed_tensors")
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    quantized = copy_with(llama, tmp_path / "q", quantization_config=quantization)
    for path in quantized.glob("*.safetensors*"):
        path.unlink()
    tensors = {}
    for path in llama.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            tensors[name] = tensor
            if name.endswith("proj.weight"):
                scale = tensor.abs().amax(1, keepdim=True) / 448
                tensors |= {name: (tensor / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}
    save_file(tensors, quantized / "model.safetensors", {"format": "pt"})
    ours: Any = load_pretrained(AutoModelForCausalLM, quantized)
    theirs: Any = AutoModelForCausalLM.from_pretrained(quantized)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert torch.float8_e4m3fn in {tensor.dtype for tensor in found.values()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert torch.equal(forward(ours), forward(theirs))


def test_a_shape_that_does_not_fit_is_named(llama: Path, tmp_path: Path) -> None:
    """Weights of another size are refused, or, where that was asked for, made anew and told."""
    other = copy_with(llama, tmp_path / "other", intermediate_size=98)
    with pytest.raises(Permanent) as refused:
        load_pretrained(AutoModelForCausalLM, other)
    assert refused.value.code == "load_failed"
    _, info = load_pretrained(AutoModelForCausalLM, other, ignore_mismatched_sizes=True, output_loading_info=True)
    assert len(info["mismatched_keys"]) == 6


def test_a_file_that_is_missing_is_told_before_a_module_is_built(llama: Path, tmp_path: Path) -> None:
    """An index that names a file that is not there is an error of the folder's."""
    broken = copy_with(llama, tmp_path / "broken")
    sorted(broken.glob("*.safetensors"))[0].unlink()
    with pytest.raises(Permanent) as refused:
        load_pretrained(AutoModelForCausalLM, broken)
    assert refused.value.code == "unreadable"


WITHOUT_NETWORK = """
import socket, sys
def refuse(*arguments):
    raise SystemExit(f"the network was asked for: {arguments}")
socket.socket.connect = socket.getaddrinfo = refuse
from transformers import AutoModelForCausalLM
from server import load_pretrained
print(type(load_pretrained(AutoModelForCausalLM, sys.argv[1])).__name__)
"""


def test_the_network_is_never_asked(llama: Path) -> None:
    """A model loads without any connection, whatever the process says of being offline."""
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, str(llama)],
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["LlamaForCausalLM"], done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("model", sorted(AUTO))
def test_on_a_gpu_nothing_is_elsewhere(model: str, request: pytest.FixtureRequest) -> None:
    """Every parameter and buffer is on the device, and equal to transformers' own."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    directory = request.getfixturevalue(model)
    ours = load_pretrained(AUTO[model], directory, device="cuda")
    theirs = AUTO[model].from_pretrained(directory)
    expected = theirs.state_dict()
    assert {t.device.type for t in (*ours.parameters(), *ours.buffers())} == {"cuda"}
    assert all(torch.equal(tensor.cpu(), expected[name]) for name, tensor in ours.state_dict().items())
    assert ties(ours) == ties(theirs)


def test_a_dtype_that_only_the_weights_tell_is_found(llama: Path, tmp_path: Path) -> None:
    """Without a dtype in config.json `auto` is what most of the weights are."""
    silent = copy_with(llama, tmp_path / "silent", dtype=None)
    for path in silent.glob("*.safetensors"):
        tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(tensors, path, {"format": "pt"})
    module: Any = load_pretrained(AutoModelForCausalLM, silent)
    assert {p.dtype for p in module.parameters()} == {torch.float16}


def test_an_adapter_in_the_models_folder_is_named(llama: Path, tmp_path: Path) -> None:
    """A folder whose model transformers would load with the adapter beside it is refused: without it the numbers are
    others."""
    adapted = copy_with(llama, tmp_path / "adapted")
    (adapted / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})
    )
    with pytest.raises(Permanent, match=r"adapter_config\.json") as refused:
        load_pretrained(AutoModelForCausalLM, adapted)
    assert refused.value.code == "unsupported_model"


def test_a_quantization_that_needs_more_than_tensors_is_named(llama: Path, tmp_path: Path) -> None:
    """torchao's tensors are put together by what the files' headers say, which transformers reads from a folder only:
    such a checkpoint is refused by that name, whatever is installed."""
    quantized = copy_with(llama, tmp_path / "ao", quantization_config={"quant_method": "torchao", "quant_type": "int8"})
    with pytest.raises(Permanent, match="torchao") as refused:
        load_pretrained(AutoModelForCausalLM, quantized)
    assert refused.value.code == "unsupported_quantization"
