#!/usr/bin/env bash
# transformers 5.23.0 with accelerate 1.15.0: where two shards of a folder have a tensor of one name, from_pretrained takes
# it from the shard whose name sorts last, whatever `weight_map` of the index says; but where `device_map` puts its module
# on "disk", it takes it from the shard that `weight_map` names. One folder gives two models, which write other tokens. Both
# report no missing, unexpected or mismatched key, and no message tells of the second tensor.
#
# Why, in the source of 5.23.0: PreTrainedModel._load_pretrained_model goes through the sorted shards and lets every later
# one replace the tensors of those before it; accelerate_disk_offload builds its list for "disk" from weight_map.
# device_map="auto" puts modules on "disk" where memory is short: there the memory at hand chooses between the two models.
#
# Seen with a model that writes token 3 with the lm_head.weight of shard 1, and token 5 with that of shard 2:
#     the index names shard 1, device_map None: token 5, keys reported: 0
#     the index names shard 1, device_map cpu and cpu: token 5, keys reported: 0
#     the index names shard 1, device_map cpu and disk: token 3, keys reported: 0
#     the index names shard 1, device_map auto: token 5, keys reported: 0
#     the index names shard 1, device_map auto with 1000 bytes: token 3, keys reported: 0
#     the index names shard 2, device_map None: token 5, keys reported: 0
#     the index names shard 2, device_map cpu and cpu: token 5, keys reported: 0
#     the index names shard 2, device_map cpu and disk: token 5, keys reported: 0
#     the index names shard 2, device_map auto: token 5, keys reported: 0
#     the index names shard 2, device_map auto with 1000 bytes: token 5, keys reported: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0

cat > "$work/load.py" <<'PYTHON'
"""Write a model of two shards that both have lm_head.weight, and print what it says for each index and device_map."""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DEVICE_MAPS = {
    "None": None,
    "cpu and cpu": {"model": "cpu", "lm_head": "cpu"},
    "cpu and disk": {"model": "cpu", "lm_head": "disk"},
    "auto": "auto",
    "auto with 1000 bytes": "auto",
}


def head(token):
    """Return an lm_head.weight that gives this token the highest logit, as every hidden state is positive."""
    weight = torch.zeros(8, 8)
    weight[token] = 1
    return weight


torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
config = LlamaConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
config.save_pretrained(folder)
# Only the embeddings and the norms count: with projections of zeros the layers add nothing.
tensors = {
    name: torch.ones_like(tensor) if "norm" in name or "embed" in name else torch.zeros_like(tensor)
    for name, tensor in LlamaForCausalLM(config).state_dict().items()
}
save_file({"lm_head.weight": head(3)}, folder / SHARDS[0], {"format": "pt"})
save_file({**tensors, "lm_head.weight": head(5)}, folder / SHARDS[1], {"format": "pt"})

for number, named in enumerate(SHARDS, 1):
    weight_map = {**dict.fromkeys(tensors, SHARDS[1]), "lm_head.weight": named}
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for shown, device_map in DEVICE_MAPS.items():
        memory = {"cpu": 1000} if "bytes" in shown else None
        model, report = LlamaForCausalLM.from_pretrained(
            folder, device_map=device_map, max_memory=memory, output_loading_info=True
        )
        with torch.no_grad():
            token = int(model(torch.tensor([[1, 2]])).logits[0, -1].argmax())
        reported = sum(len(keys) for keys in report.values())
        print(f"the index names shard {number}, device_map {shown}: token {token}, keys reported: {reported}")
PYTHON

expected='the index names shard 1, device_map None: token 5, keys reported: 0
the index names shard 1, device_map cpu and cpu: token 5, keys reported: 0
the index names shard 1, device_map cpu and disk: token 3, keys reported: 0
the index names shard 1, device_map auto: token 5, keys reported: 0
the index names shard 1, device_map auto with 1000 bytes: token 3, keys reported: 0
the index names shard 2, device_map None: token 5, keys reported: 0
the index names shard 2, device_map cpu and cpu: token 5, keys reported: 0
the index names shard 2, device_map cpu and disk: token 5, keys reported: 0
the index names shard 2, device_map auto: token 5, keys reported: 0
the index names shard 2, device_map auto with 1000 bytes: token 5, keys reported: 0'
mkdir "$work/model"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' \
  "$work/venv/bin/python" "$work/load.py" "$work/model" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" |
  grep -E '^(transformers|torch|accelerate|safetensors) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
