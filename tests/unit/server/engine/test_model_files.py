from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cached.contract.errors import Permanent
from server import load_file as load_folder
from server.engine.model_files import load_causal_lm, load_encoder
from tests.support.folders import LFS
from tests.support.serving import REPOSITORY

IDS = torch.tensor([[5, 77, 200, 13, 90]])


def logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(input_ids=IDS).logits
        return found


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_logits_equal_plain_transformers(model: str, request: pytest.FixtureRequest) -> None:
    """A sharded, tied Llama and a bfloat16 GPT-2 compute exactly what `from_pretrained` gives."""
    directory = request.getfixturevalue(model)
    loaded = load_causal_lm(directory, "cpu", "auto")
    plain = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    assert loaded.dtype == plain.dtype
    assert torch.equal(logits(loaded.module), logits(plain))


@pytest.mark.parametrize("named", ["bfloat16", "float16", "float32", None])
def test_the_dtype_of_config_json_is_what_the_model_computes_in(gpt2: Path, tmp_path: Path, named: str | None) -> None:
    """Without a dtype of its own the server takes the folder's, as transformers does, and else that of the weights."""
    folder = Path(shutil.copytree(gpt2, tmp_path / "model"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "dtype": named}))
    loaded = load_causal_lm(folder, "cpu", "auto")
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == plain.dtype
    assert torch.equal(logits(loaded.module), logits(plain))


@pytest.mark.parametrize("named", ["int8", "unheard_of", ["bfloat16"]])
def test_a_dtype_that_is_none_is_refused(gpt2: Path, tmp_path: Path, named: Any) -> None:
    """A dtype in which no model computes ends the load with the file's name, and with no traceback."""
    folder = Path(shutil.copytree(gpt2, tmp_path / "model"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "dtype": named}))
    with pytest.raises(Permanent) as caught:
        load_causal_lm(folder, "cpu", "auto")
    assert caught.value.code in ("invalid_config", "load_failed")


def test_tied_weights_stay_tied_and_nothing_is_left_on_meta(llama: Path) -> None:
    """The output layer is the embedding's own tensor, and buffers no file holds are real."""
    module = load_causal_lm(llama, "cpu", "auto").module
    assert module.get_input_embeddings().weight is module.get_output_embeddings().weight
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(llama)
    buffers = dict(plain.named_buffers())
    assert buffers
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_the_index_decides_what_is_served(llama: Path, tmp_path: Path) -> None:
    """A shard that is left over from another version, listed for one tensor only, changes no logit."""
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    stale = {name: torch.ones_like(tensor) for name, tensor in load_folder(llama).items()} | {"over": torch.ones(2)}
    save_file(stale, folder / "z.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["over"] = "z.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = logits(load_causal_lm(llama, "cpu", "auto").module)
    assert torch.equal(logits(load_causal_lm(folder, "cpu", "auto").module), expected)


def test_a_pointer_in_place_of_weights_is_told(llama: Path, tmp_path: Path) -> None:
    """A model whose shard is a Git LFS pointer is refused with the shard's name and the remedy."""
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(LFS)
    with pytest.raises(Permanent, match=f"{shard.name}: .*Git LFS pointer.*git lfs pull"):
        load_causal_lm(folder, "cpu", "auto")


def test_a_wanted_dtype_is_what_the_model_gets(gpt2: Path) -> None:
    """`--dtype float32` converts a bfloat16 checkpoint."""
    loaded = load_causal_lm(gpt2, "cpu", "float32")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


MEASURE = """
import sys
from pathlib import Path
import torch
from transformers import BertModel
from server.engine.encoder import Encoder

def anonymous():
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous:")) * 1024

directory = Path(sys.argv[1])
Encoder.load(directory / "tiny", "cpu", "auto")  # what the first load imports and allocates is not the weights'
before = anonymous()
encoder = Encoder.load(directory / "model", "cpu", "auto")
encoder.warm_up()
mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "model/model.safet" in line]
ranges = [tuple(int(end, 16) for end in text.split("-")) for text in mapped]
inside = all(any(low <= p.data_ptr() < high for low, high in ranges) for p in encoder._module.parameters())
print(anonymous() - before, inside)
"""


def test_weights_have_no_second_copy_on_the_host(minilm: Path, tmp_path: Path) -> None:
    """Loading 90 MB of weights and using them adds next to no memory of the process's own: tensors lie in the map."""
    (tmp_path / "model").symlink_to(minilm)
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    config = {**json.loads((minilm / "config.json").read_text()), "num_hidden_layers": 1, "vocab_size": 30522}
    shutil.copy(minilm / "tokenizer.json", tiny)
    shutil.copy(minilm / "tokenizer_config.json", tiny)
    (tiny / "config.json").write_text(json.dumps(config))
    tensors = load_file(minilm / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "encoder.layer" not in n or ".layer.0." in n}, tiny / "model.safetensors"
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    growth, inside = done.stdout.split()
    assert inside == "True"
    assert int(growth) < 30e6, f"{int(growth) / 1e6:.1f} MB for weights of 90.9 MB"


def altered(source: Path, target: Path, *, drop: str | None = None, add: str | None = None) -> Path:
    """A copy of a one-file model without the tensor `drop` and with one more named `add`."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    if drop is not None:
        del tensors[drop]
    if add is not None:
        tensors[add] = torch.zeros(3)
    save_file(tensors, target / "model.safetensors")
    return target


def test_a_missing_tensor_is_an_error_that_names_it(gpt2: Path, tmp_path: Path) -> None:
    """A checkpoint that lacks a tensor is refused: nothing is ever served with random weights."""
    folder = altered(gpt2, tmp_path / "m", drop="transformer.h.1.mlp.c_fc.weight")
    with pytest.raises(Permanent, match=r"transformer\.h\.1\.mlp\.c_fc\.weight") as caught:
        load_causal_lm(folder, "cpu", "auto")
    assert caught.value.code == "missing_weights"


def test_a_missing_tied_pair_is_an_error(llama: Path, tmp_path: Path) -> None:
    """A tied weight of which neither name is in the files counts as missing."""
    folder = tmp_path / "m"
    shutil.copytree(llama, folder)
    tensors = {name: t for path in llama.glob("*.safetensors") for name, t in load_file(path).items()}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file({n: t for n, t in tensors.items() if n != "model.embed_tokens.weight"}, folder / "model.safetensors")
    with pytest.raises(Permanent, match=r"embed_tokens\.weight"):
        load_causal_lm(folder, "cpu", "auto")


def test_an_unexpected_tensor_is_a_warning_that_names_it(
    gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tensor the model has no place for is reported by name, and the model is served."""
    folder = altered(gpt2, tmp_path / "m", add="left.over")
    with caplog.at_level(logging.WARNING, logger="server.engine.model_files"):
        load_causal_lm(folder, "cpu", "auto")
    assert "left.over" in caplog.text


def test_a_tensor_of_another_shape_is_refused(gpt2: Path, tmp_path: Path) -> None:
    """Weights of another size than config.json's are an error that names a tensor and both shapes, not a guess."""
    folder = tmp_path / "m"
    shutil.copytree(gpt2, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_inner": 40}))
    with pytest.raises(Permanent) as caught:
        load_causal_lm(folder, "cpu", "auto")
    assert caught.value.code == "load_failed"
    assert re.search(r"expected transformer\.h\.0\.mlp\.c_fc\.bias of shape \(40,\) .* more", caught.value.message)


@pytest.mark.parametrize("model", ["minilm", "gpt2"])
def test_a_tokenizer_without_words_is_refused(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Without the tokenizer's files transformers makes a tokenizer to which all words are one: that is no model."""
    folder = Path(shutil.copytree(request.getfixturevalue(model), tmp_path / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(Permanent, match=r"expected a tokenizer, found no vocabulary: \w+ has \d tokens") as caught:
        (load_encoder if model == "minilm" else load_causal_lm)(folder, "cpu", "auto")
    assert (caught.value.code, "tokenizer.json" in caught.value.remedy) == ("no_tokenizer", True)


def test_a_base_encoder_loads_from_a_checkpoint_with_another_head(minilm: Path, tmp_path: Path) -> None:
    """Names with the base model's prefix are found, a head's are left, and a pooler nothing reads is not missed."""
    plain: Any = transformers.AutoModel.from_pretrained(minilm)
    shutil.copytree(minilm, tmp_path / "m")
    kept = {f"bert.{n}": t for n, t in load_file(minilm / "model.safetensors").items() if "pooler" not in n}
    save_file({**kept, "cls.predictions.bias": torch.zeros(3)}, tmp_path / "m" / "model.safetensors")
    module = load_encoder(tmp_path / "m", "cpu", "auto").module
    with torch.inference_mode():
        assert torch.equal(module(input_ids=IDS).last_hidden_state, plain(input_ids=IDS).last_hidden_state)


def test_code_that_comes_with_a_model_is_never_run(gpt2: Path, tmp_path: Path) -> None:
    """A model that needs its own code is refused, and the code does not run."""
    folder = tmp_path / "m"
    shutil.copytree(gpt2, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "evil", "architectures": ["EvilForCausalLM"], "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Permanent) as caught:
        load_causal_lm(folder, "cpu", "auto")
    assert caught.value.code == "invalid_config"
    assert not (tmp_path / "ran").exists()
