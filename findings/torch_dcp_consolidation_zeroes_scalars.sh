#!/usr/bin/env bash
# torch 2.14.1 (2.13.0 too): `HuggingFaceStorageWriter(..., save_distributed=True, enable_consolidation=True)` of the distributed checkpoint
# writes the ranks' shards, then joins them into the safetensors files that a Hub repository has. A tensor without dimensions (CLIP's
# `logit_scale`, a learned temperature, a quantizer's scale) is right in the shards and 0.0 in the joined file: shape, type and size are
# right, nothing is raised or logged, and `HuggingFaceStorageReader` and safetensors both hand out the zero. The copy takes a
# shape of no dimensions for a tensor of no elements, and leaves the bytes as they were made. Two more kinds of tensor that the shards hold well:
# integers and booleans (`num_batches_tracked`, `position_ids`) stop the joining with a TypeError, for their size is asked of `torch.finfo`, and
# complex ones are given half their bytes, for the bits of `finfo` are those of one of the two parts: safetensors refuses that file.
#
# Seen, as value in the shards and in the joined file:
#     float32, no dimensions: 4.5 -> 0.0
#     bfloat16, no dimensions: 1.5 -> 0.0
#     float32, one dimension: [4.5] -> [4.5]
#     int64, one dimension: [7] -> TypeError
#     bool, one dimension: [True] -> TypeError
#     complex64, one dimension: [(1+2j)] -> SafetensorError
#     float32 beside one without dimensions: [4.5] -> [4.5]
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy torch=="${TORCH_VERSION:-2.14.1}"

cat > "$work/check.py" <<'PYTHON'
"""Print one tensor of each kind as the shard has it, and as the joined file has it."""

import contextlib
import io
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter

CASES = {
    "float32, no dimensions": torch.tensor(4.5),
    "bfloat16, no dimensions": torch.tensor(1.5, dtype=torch.bfloat16),
    "float32, one dimension": torch.tensor([4.5]),
    "int64, one dimension": torch.tensor([7]),
    "bool, one dimension": torch.tensor([True]),
    "complex64, one dimension": torch.tensor([1 + 2j]),
}


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> str | None:
    """Return the kind of the error that the joining ended with; None if with none."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            dcp.save(tensors, storage_writer=writer)
    except BaseException as error:  # CheckpointException is no Exception
        return next(line.split(":")[0] for line in reversed(str(error).splitlines()) if "Error:" in line)
    return None


def read(folder: Path) -> str:
    (file,) = folder.glob("*.safetensors")
    try:
        return str(load_file(file)["w"].tolist())
    except Exception as error:
        return type(error).__name__


work = Path(sys.argv[1])
for number, (kind, tensor) in enumerate(CASES.items()):
    folder = work / str(number)
    failed = save(folder, {"w": tensor})
    print(f"{kind}: {read(folder / 'sharded')} -> {failed or read(folder)}")
folder = work / "beside"
save(folder, {"a": torch.tensor(2.5), "w": torch.tensor([4.5])})
print(f"float32 beside one without dimensions: {read(folder / 'sharded')} -> {read(folder)}")
PYTHON

found=$("$work/venv/bin/python" -W ignore "$work/check.py" "$work" 2> "$work/errors") || { cat "$work/errors" >&2; exit 1; }
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'torch behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: what has no dimensions is zero in the joined file'
