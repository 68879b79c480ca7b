#!/usr/bin/env bash
# nvidia-modelopt 0.47.0: compress turns a quantized model that is right into one whose outputs are NaN, where a weight has a row of zeros
# and scales of FP8 by row (FP8_PER_CHANNEL_PER_TOKEN_CFG), or is zero as a whole and has one scale (FP8_DEFAULT_CFG). A pruned
# channel is such a row; a block that was added to a model without changing its outputs has such a weight. mtq.quantize of the same
# model, by which its accuracy is measured, gives finite outputs near the exact ones (here on a CPU); compress then raises nothing, and
# warns of the same as with other weights (that it is experimental, and that no faster product was found). INT8_DEFAULT_CFG and
# INT4_BLOCKWISE_WEIGHT_ONLY_CFG keep the zeros.
# NVFP4QTensor of a zero tensor is NaN too, though its blocks of zeros are right beside others. The guide to mtq.compress names FP8 and
# NVFP4 as its formats, and no condition for the weights.
#
# Why, in the source: the scale is amax / 448, and FP8QTensor.quantize divides the weight by it: 0 / 0. The simulated quantizer
# (_fp8_eager) has a guard for an amax of zero; NVFP4QTensor has one for the scales of blocks, and none for the scale of the tensor.
#
# Seen with two linear layers of 64 x 64, as the outputs of 256 that are NaN after quantize and after compress:
#     FP8_DEFAULT_CFG, random weights: 0 and 0
#     FP8_DEFAULT_CFG, one row of zeros: 0 and 0
#     FP8_DEFAULT_CFG, all zeros: 0 and 256
#     FP8_PER_CHANNEL_PER_TOKEN_CFG, random weights: 0 and 0
#     FP8_PER_CHANNEL_PER_TOKEN_CFG, one row of zeros: 0 and 4
#     FP8_PER_CHANNEL_PER_TOKEN_CFG, all zeros: 0 and 256
#     INT8_DEFAULT_CFG, random weights: 0 and 0
#     INT8_DEFAULT_CFG, one row of zeros: 0 and 0
#     INT8_DEFAULT_CFG, all zeros: 0 and 0
#     INT4_BLOCKWISE_WEIGHT_ONLY_CFG, random weights: 0 and 0
#     INT4_BLOCKWISE_WEIGHT_ONLY_CFG, one row of zeros: 0 and 0
#     INT4_BLOCKWISE_WEIGHT_ONLY_CFG, all zeros: 0 and 0
#     NVFP4QTensor, one row of zeros: 0 of 4096 weights are NaN
#     NVFP4QTensor, all zeros: 4096 of 4096 weights are NaN
#     warnings that only zeros bring: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check nvidia-modelopt==0.47.0 torch==2.13.0 numpy==2.4.6 \
  safetensors==0.8.0 huggingface_hub==2.4.0 requests

cat > "$work/compress.py" <<'PYTHON'
"""Quantize and compress small models; print how many outputs are NaN after each."""

import copy
import warnings

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization.qtensor import NVFP4QTensor

CONFIGS = ("FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG", "INT8_DEFAULT_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG")
ZEROS = {"random weights": slice(0, 0), "one row of zeros": slice(5, 6), "all zeros": slice(None)}
torch.manual_seed(0)
inputs = torch.randn(4, 64)
weight = torch.randn(64, 64)
warned = {True: set(), False: set()}


def nan(values):
    return int(values.isnan().sum())


def with_zeros(rows):
    changed = weight.clone()
    changed[rows] = 0
    return changed


for config in CONFIGS:
    for what, rows in ZEROS.items():
        model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False)).eval()
        with torch.no_grad():
            model[1].weight.copy_(with_zeros(rows))
            exact = model(inputs)
            model = mtq.quantize(model, copy.deepcopy(getattr(mtq, config)), lambda quantized: quantized(inputs))
            simulated = model(inputs)
            assert (simulated - exact).norm() <= 0.2 * exact.norm()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                mtq.compress(model)
                compressed = model(inputs)
            warned[what != "random weights"].update(str(warning.message).partition("(")[0] for warning in caught)
        print(f"{config}, {what}: {nan(simulated)} and {nan(compressed)}")
for what in ("one row of zeros", "all zeros"):
    values = with_zeros(ZEROS[what])
    packed, scale, double_scale = NVFP4QTensor.quantize(values, 16)
    back = packed.dequantize(dtype=torch.float32, scale=scale, double_scale=double_scale, block_sizes={-1: 16})
    print(f"NVFP4QTensor, {what}: {nan(back)} of {values.numel()} weights are NaN")
print(f"warnings that only zeros bring: {len(warned[True] - warned[False])}")
PYTHON

expected="FP8_DEFAULT_CFG, random weights: 0 and 0
FP8_DEFAULT_CFG, one row of zeros: 0 and 0
FP8_DEFAULT_CFG, all zeros: 0 and 256
FP8_PER_CHANNEL_PER_TOKEN_CFG, random weights: 0 and 0
FP8_PER_CHANNEL_PER_TOKEN_CFG, one row of zeros: 0 and 4
FP8_PER_CHANNEL_PER_TOKEN_CFG, all zeros: 0 and 256
INT8_DEFAULT_CFG, random weights: 0 and 0
INT8_DEFAULT_CFG, one row of zeros: 0 and 0
INT8_DEFAULT_CFG, all zeros: 0 and 0
INT4_BLOCKWISE_WEIGHT_ONLY_CFG, random weights: 0 and 0
INT4_BLOCKWISE_WEIGHT_ONLY_CFG, one row of zeros: 0 and 0
INT4_BLOCKWISE_WEIGHT_ONLY_CFG, all zeros: 0 and 0
NVFP4QTensor, one row of zeros: 0 of 4096 weights are NaN
NVFP4QTensor, all zeros: 4096 of 4096 weights are NaN
warnings that only zeros bring: 0"
if ! found=$("$work/venv/bin/python" "$work/compress.py" 2> "$work/errors" | grep -E '^[A-Z0-9_a-z]+_CFG, |^NVFP4QTensor|^warnings'); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(nvidia-modelopt|torch|numpy) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
