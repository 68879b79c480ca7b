#!/usr/bin/env bash
# fastsafetensors 0.5.0: get_multi_cols(names, dim), which makes one tensor of several, as the fused projections of an engine need it,
# joins them in the order of the names within a file, but in the order of the files between files. Where a shard ends within an
# attention block, the fused tensor of that one layer has k before q. Every other layer is right; the shape is right where q, k and v have
# one, and nothing is raised or logged. A model in one file is right, and so are the parts that get_tensor or get_sharded gives, joined
# by the caller. The documentation of get_multi_cols says "concatenated column shards from tensor_names".
#
# Why, in the source: FilesBufferOnDevice.get_multi_cols groups the names by rank and file, and joins the groups sorted by these.
#
# Seen with two layers of one model, q all 1, k all 2 and v all 3, saved by huggingface_hub in shards that end after k of layer 1:
#     one file: layer 0 is q k v, layer 1 is q k v
#     2 shards: layer 0 is q k v, layer 1 is k q v
#     2 shards, names v k q: layer 0 is v k q, layer 1 is k v q
#     2 shards, parts joined by the caller: layer 0 is q k v, layer 1 is q k v
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check fastsafetensors==0.5.0 torch==2.13.0 \
  safetensors==0.8.0 huggingface_hub==2.4.0 numpy==2.4.6

cat > "$work/join.py" <<'PYTHON'
"""Save two layers in one file and in two shards; print in which order their parts are joined."""

import pathlib
import sys

import torch
from fastsafetensors import SafeTensorsFileLoader, SingleGroup
from huggingface_hub import save_torch_state_dict

PARTS = {"q": 1.0, "k": 2.0, "v": 3.0}
BYTES = 4 * 8 * 8


def tensor_name(layer, part):
    return f"model.layers.{layer}.self_attn.{part}_proj.weight"


def save(folder, tensors_a_shard):
    """Save the layers in the order of their names: k, q, v."""
    names = sorted((tensor_name(layer, part), part) for layer in range(2) for part in PARTS)
    tensors = {name: torch.full((8, 8), PARTS[part]) for name, part in names}
    folder.mkdir()
    save_torch_state_dict(tensors, folder, max_shard_size=tensors_a_shard * BYTES)
    return sorted(map(str, folder.glob("*.safetensors")))


def joined(files, layer, order, by_caller):
    loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
    loader.add_filenames({0: files})
    buffer = loader.copy_files_to_device()
    names = [tensor_name(layer, part) for part in order]
    if by_caller:
        rows = torch.cat([buffer.get_tensor(name) for name in names])
    else:
        rows = buffer.get_multi_cols(names, dim=0).get_raw()
    letters = {value: part for part, value in PARTS.items()}
    found = " ".join(letters[row[0].item()] for row in rows[::8])
    buffer.close()
    loader.close()
    return found


def show(label, files, order="qkv", by_caller=False):
    print(f"{label}: " + ", ".join(f"layer {layer} is {joined(files, layer, order, by_caller)}" for layer in range(2)))


folder = pathlib.Path(sys.argv[1])
show("one file", save(folder / "one", 6))
shards = save(folder / "two", 4)
show("2 shards", shards)
show("2 shards, names v k q", shards, "vkq")
show("2 shards, parts joined by the caller", shards, by_caller=True)
PYTHON

mkdir "$work/model"
found=$("$work/venv/bin/python" "$work/join.py" "$work/model" 2> "$work/errors") || cat "$work/errors" >&2
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(fastsafetensors|torch) '
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'fastsafetensors behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: parts from two files are joined by file'
