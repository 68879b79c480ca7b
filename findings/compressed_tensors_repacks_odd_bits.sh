#!/usr/bin/env bash
# compressed-tensors 0.17.1 (June 2026) and 0.20.1 (any since 0.18.0, by its source): a checkpoint of 3, 5, 6 or 7 bits that the former wrote
# becomes other weights where the latter dequantizes it, off by about twice their size. The format is "pack-quantized" in both, and both
# document 1 to 8 bits; 2, 4 and 8 bits are read as they were written. Nothing is raised or logged by from_pretrained(folder,
# quantization_config=CompressedTensorsConfig(dequantize=True)) of transformers 5.23.0, nor by the compressor's own decompress, and no key is
# reported. config.json has the version that wrote it (0.17.1), which is not asked. from_pretrained without the argument ends in a
# RuntimeError (size mismatch) for such a checkpoint; 0.17.1 itself reads all of its own.
#
# Why, in the source: 0.17 puts 32 // bits integers into each int32 and leaves the bits that remain (10 of 3 bits, and two bits of zero); since
# 0.18 (vllm-project/compressed-tensors#732) the integers follow one another without a gap, across the ends of the int32. unpack_from_int32 takes
# the first `columns` integers of a row, and does not mind that the row of the older layout is longer.
#
# Seen with a model that 0.17.1 wrote, as how far its weights are off, relative to their size:
#     2 bits: 0.17.1 default 0.0, 0.20.1 default 0.0, dequantize 0.0, decompress 0.0
#     3 bits: 0.17.1 default 0.0, 0.20.1 default RuntimeError, dequantize 2.0, decompress 2.0
#     4 bits: 0.17.1 default 0.0, 0.20.1 default 0.0, dequantize 0.0, decompress 0.0
#     5 bits: 0.17.1 default 0.0, 0.20.1 default RuntimeError, dequantize 1.9, decompress 1.9
#     6 bits: 0.17.1 default 0.0, 0.20.1 default RuntimeError, dequantize 1.8, decompress 1.8
#     7 bits: 0.17.1 default 0.0, 0.20.1 default RuntimeError, dequantize 2.0, decompress 2.0
#     8 bits: 0.17.1 default 0.0, 0.20.1 default 0.0, dequantize 0.0, decompress 0.0
#     keys reported, of the loads without an error: 0
#     config.json: pack-quantized, version 0.17.1
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check compressed-tensors==0.20.1 torch==2.13.0 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0 numpy==2.4.6
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/older" compressed-tensors==0.17.1

cat > "$work/write.py" <<'PYTHON'
"""Write a model of each number of bits, and beside it the weights that its integers and scales stand for."""

import pathlib
import sys

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}

for bits in range(2, 9):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **SIZES)).eval()
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
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
    folder = pathlib.Path(sys.argv[1], str(bits))
    model.save_pretrained(folder)
    compressor.update_config(folder)
    torch.save(exact, folder / "exact.pt")
PYTHON

cat > "$work/read.py" <<'PYTHON'
"""Print how far the weights of each model are off, for each way to read them, or the error."""

import json
import pathlib
import sys

import compressed_tensors
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

keys_reported = 0


def off(exact, weights):
    return f"{max(((weights[name] - weight).norm() / weight.norm()).item() for name, weight in exact.items()):.1f}"


def load(folder, exact, **options):
    global keys_reported
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    except RuntimeError as error:
        return type(error).__name__
    keys_reported += sum(map(len, report.values()))
    model(torch.ones(1, 2, dtype=torch.long))  # by default the weights are unpacked at the first pass
    return off(exact, {name: model.get_submodule(name).weight for name in exact})


def decompress(folder, exact):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name in exact:
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        weights[name] = compressor.decompress(own, scheme)["weight"]
    return off(exact, weights)


work, older = pathlib.Path(sys.argv[1]), "older" in sys.argv[2:]
version = compressed_tensors.__version__
for bits in range(2, 9):
    folder = work / str(bits)
    exact = torch.load(folder / "exact.pt")
    line = f"{version} default {load(folder, exact)}"
    if older:
        print(f"{bits} bits: {line}")
        continue
    dequantized = load(folder, exact, quantization_config=CompressedTensorsConfig(dequantize=True))
    print(f"{line}, dequantize {dequantized}, decompress {decompress(folder, exact)}")
if not older:
    print(f"keys reported, of the loads without an error: {keys_reported}")
    config = json.loads((work / "3" / "config.json").read_text())["quantization_config"]
    print(f"config.json: {config['format']}, version {config['version']}")
PYTHON

python=("$work/venv/bin/python" -W ignore)
export PYTHONPATH="$work/older"
"${python[@]}" "$work/write.py" "$work/models" 2> "$work/errors" || { cat "$work/errors" >&2; exit 1; }
"${python[@]}" "$work/read.py" "$work/models" older > "$work/older.txt" 2> "$work/errors" || { cat "$work/errors" >&2; exit 1; }
unset PYTHONPATH
"${python[@]}" "$work/read.py" "$work/models" > "$work/newer.txt" 2> "$work/errors" || { cat "$work/errors" >&2; exit 1; }
found=$(paste -d '|' "$work/older.txt" "$work/newer.txt" | sed 's/^|//; s/|/, /')
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -E '^(compressed-tensors|transformers|torch) '
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'compressed-tensors behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: odd bits of an older release are read as other weights'
