#!/usr/bin/env bash
# bitsandbytes 0.50.2, on an x86 processor with AVX-512: 4-bit weights (NF4 and FP4, with the default block size of 64) are read with the
# scales of other rows where the length of a row is a multiple of 16 and not of the block size. Nothing is raised or logged. The vision
# tower of Qwen3-VL has such rows, as any SigLIP so400m: fc2 of its MLP is 1152 x 4304. quantize_4bit writes the right bytes and
# scales, and dequantize_4bit reads the same ones right where the tensor is given as one row. Linear4bit that is trained (QLoRA) gives
# the wrong outputs, and so does a model after dequantize() of transformers. (Linear4bit in evaluation takes another way where the
# processor has AVX512-BF16 too, and ends there in a RuntimeError, which is the better end.) Where all weights are of one size the error
# is small, for the scales are nearly alike: a test with plain random weights can pass.
#
# Why, in the source (csrc/cpu_ops.cpp, dequantizeBlockwise4bitCpu): quantize_4bit has a scale for each 64 values of the flat tensor, across
# the ends of rows. The AVX-512 loop takes the scale at row * (columns / blocksize) + column / blocksize, which is that of the
# flat tensor only where rows end with a block; each row is a bit further off than the one before. The loop for ARM in the same
# function has this condition, with a comment that other shapes get wrong scales; shapes that no loop takes go to one that is right.
# The documentation of dequantize_4bit names blocks of `blocksize` values, and no condition for the shape.
#
# Seen with rows of which every second one is ten times as large, as the relative error of the weights, read by rows and as one row:
#     nf4, 1152 x 4304, blocks of 64: same bytes and scales, errors 0.9 and 0.1
#     nf4, 64 x 4096, blocks of 64: same bytes and scales, errors 0.1 and 0.1
#     nf4, 64 x 96, blocks of 64: same bytes and scales, errors 0.8 and 0.1
#     nf4, 64 x 72, blocks of 64: same bytes and scales, errors 0.1 and 0.1
#     fp4, 64 x 96, blocks of 64: same bytes and scales, errors 0.8 and 0.1
#     nf4, 64 x 320, blocks of 128: same bytes and scales, errors 0.8 and 0.1
#     Linear4bit of 4304 to 1152, in training: outputs off by 0.9
#     Linear4bit of 4096 to 1152, in training: outputs off by 0.1
#     rows of one size, 1152 x 4304: errors 0.2 and 0.1
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

grep -qw avx512f /proc/cpuinfo || {
  echo 'not checked: this processor has no AVX-512' >&2
  exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6

cat > "$work/check.py" <<'PYTHON'
"""Print the error of 4-bit weights that are read with their shape, and of the same weights read as one row."""

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

torch.manual_seed(0)
ALTERNATING = torch.tensor([1.0, 10.0])


def weights(rows, columns, sizes=ALTERNATING):
    return torch.randn(rows, columns) * sizes.repeat(rows // len(sizes))[:, None]


def error(found, exact):
    return f"{((found - exact).norm() / exact.norm()).item():.1f}"


def both(exact, kind, blocksize):
    """Whether the packed bytes and scales of both ways are the same, and the errors of what is read."""
    by_rows, rows_state = quantize_4bit(exact, blocksize=blocksize, quant_type=kind)
    flat, flat_state = quantize_4bit(exact.flatten(), blocksize=blocksize, quant_type=kind)
    same = torch.equal(by_rows, flat) and torch.equal(rows_state.absmax, flat_state.absmax)
    read = dequantize_4bit(flat, flat_state).reshape(exact.shape)
    return same, f"errors {error(dequantize_4bit(by_rows, rows_state), exact)} and {error(read, exact)}"


for kind, rows, columns, blocksize in (
    ("nf4", 1152, 4304, 64),
    ("nf4", 64, 4096, 64),
    ("nf4", 64, 96, 64),
    ("nf4", 64, 72, 64),
    ("fp4", 64, 96, 64),
    ("nf4", 64, 320, 128),
):
    same, errors = both(weights(rows, columns), kind, blocksize)
    print(f"{kind}, {rows} x {columns}, blocks of {blocksize}: {'same' if same else 'other'} bytes and scales, {errors}")

for columns in (4304, 4096):
    exact = torch.nn.Linear(columns, 1152, bias=False)
    exact.weight.data = weights(1152, columns)
    packed = bitsandbytes.nn.Linear4bit(columns, 1152, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    packed.load_state_dict(exact.state_dict())
    packed = packed.to("cpu").train()
    inputs = torch.randn(8, columns)
    with torch.no_grad():
        print(f"Linear4bit of {columns} to 1152, in training: outputs off by {error(packed(inputs), exact(inputs))}")

print(f"rows of one size, 1152 x 4304: {both(weights(1152, 4304, torch.ones(2)), 'nf4', 64)[1]}")
PYTHON

found=$("$work/venv/bin/python" "$work/check.py" 2> "$work/errors") || cat "$work/errors" >&2
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(bitsandbytes|torch) '
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'bitsandbytes behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: rows that end within a block have the scales of others'
