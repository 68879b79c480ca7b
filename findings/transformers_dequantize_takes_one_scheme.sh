#!/usr/bin/env bash
# transformers 5.23.0 (5.24.0 too) with compressed-tensors 0.20.1: from_pretrained(folder, quantization_config=CompressedTensorsConfig(
# dequantize=True)) reads every layer of a checkpoint by one scheme, the first of `config_groups` in its config.json. Where the layers
# have several (8 bits for down_proj or the MLP, 4 for the rest), those of the wider schemes become other weights, off by as much as they
# are large: of each integer of 8 bits two of 4 are made, and the second half is cut off. The shapes fit, no key is reported as missing,
# unexpected or mismatched, and no message tells of it. The documentation recommends the argument for "fine-tuning or saving the model in its
# original dtype". The same folder without it is right: there each module has its own scheme. The deprecated run_compressed=False is the same
# argument. Where the first scheme is the wider one, the load ends in a RuntimeError (size mismatch): the order of an object in config.json
# decides between an error and another model.
#
# Why, in the source: CompressedTensorsDequantize (integrations/compressed_tensors.py) takes get_dense_scheme(config), which
# is "the config group quantizing the dense layers", whichever layer it has; unpack_from_int32 of compressed-tensors keeps the first
# `columns` values of a row, however many there are.
#
# Seen, as how far the weights of attention and MLP are off, relative to their size, as they are read by default and with dequantize=True:
#     attention 4 bits, MLP 4 bits: default 0.0 and 0.0, dequantize 0.0 and 0.0
#     attention 4 bits, MLP 8 bits: default 0.0 and 0.0, dequantize 0.0 and 1.0
#     attention 2 bits, MLP 4 bits: default 0.0 and 0.0, dequantize 0.0 and 1.1
#     attention 8 bits, MLP 4 bits: default 0.0 and 0.0, dequantize RuntimeError
#     attention 4 bits, MLP 8 bits, groups in the other order: default 0.0 and 0.0, dequantize RuntimeError
#     attention 4 bits, MLP 8 bits, run_compressed=False: 0.0 and 1.0
#     attention 4 bits, MLP 8 bits, dequantized, saved and read again: 0.0 and 1.0
#     keys reported, of the loads without an error: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers=="${TRANSFORMERS_VERSION:-5.23.0}" \
  compressed-tensors==0.20.1 torch==2.13.0 accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0 numpy==2.4.6

cat > "$work/read.py" <<'PYTHON'
"""Quantize a model with a scheme for its attention and one for its MLP; print how far its weights are off once they are read."""

import json
import pathlib
import sys

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
PARTS = {"attention": "self_attn", "MLP": "mlp"}
keys_reported = 0


def weights_args(bits):
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}


def save(folder, attention, mlp):
    """Save as the library's own users do; return the weights that the integers and scales stand for."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **SIZES)).eval()
    groups = {
        "group_0": {"targets": [r"re:.*self_attn\..*_proj"], "weights": weights_args(attention)},
        "group_1": {"targets": [r"re:.*mlp\..*_proj"], "weights": weights_args(mlp)},
    }
    config = QuantizationConfig.model_validate(
        {"config_groups": groups, "ignore": ["lm_head"], "format": "pack-quantized"}
    )
    apply_quantization_config(model, config)
    exact = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        weight = module.weight.data
        largest = weight.abs().amax(1, keepdim=True)
        module.weight_scale.data = calculate_qparams(-largest, largest, scheme.weights)[0]
        integers = quantize(weight, module.weight_scale, None, scheme.weights, dtype=torch.int8)
        exact[name] = dequantize(integers, module.weight_scale, None, scheme.weights).detach()
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return exact


def read(folder, exact, config=None):
    """How far the attention's and the MLP's weights are off, or the error."""
    global keys_reported
    try:
        options = {} if config is None else {"quantization_config": config}
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    except RuntimeError as error:
        return type(error).__name__
    keys_reported += sum(map(len, report.values()))
    model(torch.ones(1, 2, dtype=torch.long))  # by default the weights are unpacked at the first pass
    off = {
        part: max(
            ((model.get_submodule(name).weight - weight).norm() / weight.norm()).item()
            for name, weight in exact.items()
            if key in name
        )
        for part, key in PARTS.items()
    }
    return f"{off['attention']:.1f} and {off['MLP']:.1f}"


def show(label, folder, exact):
    default, dequantized = (read(folder, exact, config) for config in (None, CompressedTensorsConfig(dequantize=True)))
    print(f"{label}: default {default}, dequantize {dequantized}")


work = pathlib.Path(sys.argv[1])
for attention, mlp in ((4, 4), (4, 8), (2, 4), (8, 4)):
    folder = work / f"{attention}-{mlp}"
    exact = save(folder, attention, mlp)
    show(f"attention {attention} bits, MLP {mlp} bits", folder, exact)

label = "attention 4 bits, MLP 8 bits"
folder = work / "4-8"
exact = save(folder, 4, 8)
written = (folder / "config.json").read_text()
config = json.loads(written)
groups = config["quantization_config"]["config_groups"]
config["quantization_config"]["config_groups"] = dict(reversed(groups.items()))
(folder / "config.json").write_text(json.dumps(config))
show(f"{label}, groups in the other order", folder, exact)
(folder / "config.json").write_text(written)
print(f"{label}, run_compressed=False: {read(folder, exact, CompressedTensorsConfig(run_compressed=False))}")
model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
model.save_pretrained(work / "saved")
print(f"{label}, dequantized, saved and read again: {read(work / 'saved', exact)}")
print(f"keys reported, of the loads without an error: {keys_reported}")
PYTHON

found=$("$work/venv/bin/python" -W ignore "$work/read.py" "$work/models" 2> "$work/errors") || cat "$work/errors" >&2
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -E '^(transformers|compressed-tensors|torch) '
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'transformers behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: every layer is dequantized by the first scheme'
