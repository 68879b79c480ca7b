#!/usr/bin/env bash
# transformers 5.23.0 and diffusers 0.42.1: from_pretrained of a local folder ends in KeyError 'metadata' where the index of
# its shards has `weight_map` and no `metadata`. huggingface_hub 2.4.0 (load_torch_model) and accelerate 1.15.0
# (load_checkpoint_in_model) read the same folder and load every tensor of it. An empty `metadata` is enough for all.
# The error names neither the file nor what to add: `"metadata": {}`.
#
# Why, in the source: get_checkpoint_shard_files of transformers (and _get_checkpoint_shard_files of diffusers) takes
# index["metadata"] and adds entries to it, without asking whether it is there. For a local folder transformers uses nothing
# that a writer put there but `dtype`, and that only if present; the other two readers use `weight_map` alone.
#
# Seen with two shards (diffusers has a model and file names of its own):
#     metadata {}: transformers: loaded
#     metadata {}: huggingface_hub: loaded
#     metadata {}: accelerate: loaded
#     metadata {}: diffusers: loaded
#     no metadata: transformers: KeyError 'metadata'
#     no metadata: huggingface_hub: loaded
#     no metadata: accelerate: loaded
#     no metadata: diffusers: KeyError 'metadata'
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 \
  accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0 diffusers==0.42.1

cat > "$work/load.py" <<'PYTHON'
"""Save a model of each kind as two shards; print who loads it with an empty `metadata` in the index, and with none."""

import json
import pathlib
import sys

import torch
from accelerate import load_checkpoint_in_model
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from huggingface_hub import load_torch_model, save_torch_model
from transformers import LlamaConfig, LlamaForCausalLM


class Pair(ModelMixin, ConfigMixin):
    """Two layers as a model of diffusers."""

    @register_to_config
    def __init__(self, size=8):
        super().__init__()
        self.first = torch.nn.Linear(size, size)
        self.second = torch.nn.Linear(size, size)


def with_function(load):
    """Load into a new model with a function that takes the model and the folder."""
    model = LlamaForCausalLM(config)
    load(model, llama)
    return model


torch.set_num_threads(1)
llama, pair = pathlib.Path(sys.argv[1], "llama"), pathlib.Path(sys.argv[1], "pair")
config = LlamaConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
config.save_pretrained(llama)
saved_llama, saved_pair = LlamaForCausalLM(config), Pair()
save_torch_model(saved_llama, llama, max_shard_size=2000)
saved_pair.save_pretrained(pair, max_shard_size=300)
readers = {
    "transformers": (saved_llama, lambda: LlamaForCausalLM.from_pretrained(llama)),
    "huggingface_hub": (saved_llama, lambda: with_function(load_torch_model)),
    "accelerate": (saved_llama, lambda: with_function(load_checkpoint_in_model)),
    "diffusers": (saved_pair, lambda: Pair.from_pretrained(pair)),
}

for shown, metadata in (("metadata {}", {"metadata": {}}), ("no metadata", {})):
    for folder in (llama, pair):
        (path,) = folder.glob("*.index.json")
        weight_map = json.loads(path.read_text())["weight_map"]
        assert len(set(weight_map.values())) == 2, weight_map
        path.write_text(json.dumps({**metadata, "weight_map": weight_map}))
    for reader, (saved, load) in readers.items():
        try:
            loaded = load().state_dict()
            same = all(torch.equal(loaded[name], tensor) for name, tensor in saved.state_dict().items())
            answer = "loaded" if same else "other tensors"
        except Exception as error:
            answer = f"{type(error).__name__} {error}"
        print(f"{shown}: {reader}: {answer}")
PYTHON

expected="metadata {}: transformers: loaded
metadata {}: huggingface_hub: loaded
metadata {}: accelerate: loaded
metadata {}: diffusers: loaded
no metadata: transformers: KeyError 'metadata'
no metadata: huggingface_hub: loaded
no metadata: accelerate: loaded
no metadata: diffusers: KeyError 'metadata'"
mkdir "$work/models"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' \
  "$work/venv/bin/python" "$work/load.py" "$work/models" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" |
  grep -E '^(transformers|torch|accelerate|safetensors|huggingface_hub|diffusers) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
