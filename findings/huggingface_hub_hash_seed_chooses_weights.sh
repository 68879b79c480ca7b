#!/usr/bin/env bash
# huggingface_hub 2.4.0: where two shards of a folder have a tensor of one name, load_torch_model takes it from the one in
# some runs of a program and from the other in others, whatever `weight_map` of the index says: Python's hash seed, which is
# random at each start unless PYTHONHASHSEED sets it, chooses between two models. strict=True raises nothing, no missing or
# unexpected key is reported, and no message tells of the second tensor. accelerate 1.15.0 (load_checkpoint_in_model) takes
# the tensor of the shard whose name sorts last, in every run.
#
# Why, in the source: _load_sharded_checkpoint of huggingface_hub loads list(set(weight_map.values())), each shard over those
# before it, and the order of a set of strings hangs on their hashes; load_checkpoint_in_model of accelerate sorts the set.
#
# Seen in eight runs with PYTHONHASHSEED 0 to 7, each line once (which seed gives which shard is up to Python's version):
#     the index names shard 1: accelerate takes shard 2, keys reported: 0
#     the index names shard 1: huggingface_hub takes shard 1, keys reported: 0
#     the index names shard 1: huggingface_hub takes shard 2, keys reported: 0
#     the index names shard 2: accelerate takes shard 2, keys reported: 0
#     the index names shard 2: huggingface_hub takes shard 1, keys reported: 0
#     the index names shard 2: huggingface_hub takes shard 2, keys reported: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0 torch==2.13.0 \
  accelerate==1.15.0 safetensors==0.8.0

cat > "$work/load.py" <<'PYTHON'
"""Write two shards that both have `weight`; print which of them each library takes it from, for each index."""

import json
import pathlib
import sys

import torch
from accelerate import load_checkpoint_in_model
from huggingface_hub import load_torch_model
from safetensors.torch import save_file

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def with_accelerate(model, folder):
    load_checkpoint_in_model(model, folder, strict=True)
    return 0


def with_huggingface_hub(model, folder):
    report = load_torch_model(model, folder, strict=True)
    return len(report.missing_keys) + len(report.unexpected_keys)


torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
# The value of 0.weight is the number of its shard; each shard has a tensor of its own too.
save_file({"0.weight": torch.tensor([[1.0]]), "0.bias": torch.zeros(1)}, folder / SHARDS[0], {"format": "pt"})
save_file({"0.weight": torch.tensor([[2.0]]), "1.weight": torch.zeros(1, 1)}, folder / SHARDS[1], {"format": "pt"})

for number, named in enumerate(SHARDS, 1):
    weight_map = {"0.weight": named, "0.bias": SHARDS[0], "1.weight": SHARDS[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for library, load in (("accelerate", with_accelerate), ("huggingface_hub", with_huggingface_hub)):
        model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, bias=False))
        reported = load(model, folder)
        shard = f"{model[0].weight.item():.0f}"
        print(f"the index names shard {number}: {library} takes shard {shard}, keys reported: {reported}")
PYTHON

expected='the index names shard 1: accelerate takes shard 2, keys reported: 0
the index names shard 1: huggingface_hub takes shard 1, keys reported: 0
the index names shard 1: huggingface_hub takes shard 2, keys reported: 0
the index names shard 2: accelerate takes shard 2, keys reported: 0
the index names shard 2: huggingface_hub takes shard 1, keys reported: 0
the index names shard 2: huggingface_hub takes shard 2, keys reported: 0'
mkdir "$work/model"
if ! runs=$(for seed in 0 1 2 3 4 5 6 7; do
  TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' PYTHONHASHSEED=$seed \
    "$work/venv/bin/python" "$work/load.py" "$work/model" 2>> "$work/errors" || exit
done); then
  cat "$work/errors" >&2
fi
found=$(sort -u <<< "$runs")
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" |
  grep -E '^(huggingface_hub|torch|accelerate|safetensors) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
