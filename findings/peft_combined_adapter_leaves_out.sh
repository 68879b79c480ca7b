#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter with "cat" or "svd", which its documentation calls precise, makes an adapter without part of what the given ones
# have, and raises and warns of nothing. (1) Of adapters for different layers, as `layers_to_transform` or `exclude_modules` chooses them,
# the new one has the layers of the first in the list alone: the same two in the other order make another model. (2) A module that one
# adapter has trained whole (`modules_to_save`: a classifier's head, an output layer) is the base's again; only where two adapters have
# one for the same module peft refuses. (3) Trained rows of the vocabulary (`trainable_token_indices`) are the base's again. Both adapters
# active at once (`base_model.set_adapter([…])`) give what the new one should: that is compared here. A file that save_pretrained writes of it
# has lost the same. What the adapters have in common as LoRA matrices is right, and so is an order in which the first has all layers.
#
# Why, in the source: the new adapter's config is the first one's, with the union of all `target_modules` and with no other field of the
# others; the layers are then made by that config, and lora_A and lora_B are the only tensors that are filled.
#
# Seen with adapters for a model of four layers, each combined with weights of 1:
#     both for all layers, cat: layers 0 1 2 3, outputs of both
#     both for all layers, svd: layers 0 1 2 3, outputs of both
#     layers 0 and 1, then layers 2 and 3, cat: layers 0 1, other outputs
#     layers 0 and 1, then layers 2 and 3, svd: layers 0 1, other outputs
#     layers 2 and 3, then layers 0 and 1, cat: layers 2 3, other outputs
#     all layers, then layers 2 and 3, cat: layers 0 1 2 3, outputs of both
#     layers 2 and 3, then all layers, cat: layers 2 3, other outputs
#     without layer 3, then all layers, cat: layers 0 1 2, other outputs
#     with a head, then without, cat: layers 0 1 2 3, other outputs; as with the base's head
#     without a head, then with one, cat: layers 0 1 2 3, other outputs; as with the base's head
#     with two tokens, then without, cat: layers 0 1 2 3, other outputs
#     without tokens, then with two, cat: layers 0 1 2 3, other outputs
#     layers 0 and 1, then layers 2 and 3, cat, saved: layers 0 1
#     warnings: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check peft==0.21.2 torch==2.13.0 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0

cat > "$work/combine.py" <<'PYTHON'
"""Combine two adapters; print which layers the new one has, and whether its outputs are those of both at once."""

import pathlib
import re
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import nn

TOKENS = torch.arange(10)
TRAINED = ("lora_", "modules_to_save", "trainable_tokens_delta")


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(8, 8)

    def forward(self, rows):
        return rows + self.projection(rows)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, tokens):
        rows = self.embeddings(tokens)
        for layer in self.layers:
            rows = layer(rows)
        return rows


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.body(tokens))


def combine(first, second, kind):
    """A model with the adapters first, second and both; and the outputs with first and second active at once."""
    torch.manual_seed(0)
    configs = [LoraConfig(r=2, target_modules=["projection"], **fields) for fields in (first, second)]
    model = get_peft_model(Model(), configs[0], adapter_name="first")
    model.add_adapter("second", configs[1])
    for name, parameter in model.named_parameters():
        if any(part in name for part in TRAINED):
            parameter.data = torch.randn_like(parameter) / 4
    model.eval()
    model.base_model.set_adapter(["first", "second"])
    with torch.no_grad():
        expected = model(TOKENS)
    model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "both", combination_type=kind, svd_rank=4)
    model.set_adapter("both")
    return model, expected


def numbers(names):
    return " ".join(sorted({name for text in names for name in re.findall(r"layers\.(\d+)\..*lora_A", text)}))


def show(label, first, second, kind="cat"):
    model, expected = combine(first, second, kind)
    with torch.no_grad():
        found = model(TOKENS)
        layers = numbers(name for name, _ in model.named_parameters() if ".both." in name)
        same = torch.allclose(found, expected, atol=1e-4)
        line = f"{label}, {kind}: layers {layers}, {'outputs of both' if same else 'other outputs'}"
        if "modules_to_save" in first or "modules_to_save" in second:
            base = model.base_model.model
            rows = base.body(TOKENS)
            plain = torch.allclose(found, base.head.original_module(rows), atol=1e-4)
            line += f"; {'as' if plain else 'not as'} with the base's head"
    print(line)
    return model


LOWER, UPPER = {"layers_to_transform": [0, 1]}, {"layers_to_transform": [2, 3]}
HEAD, ROWS = {"modules_to_save": ["head"]}, {"trainable_token_indices": {"embeddings": [1, 2]}}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    show("both for all layers", {}, {})
    show("both for all layers", {}, {}, "svd")
    model = show("layers 0 and 1, then layers 2 and 3", LOWER, UPPER)
    show("layers 0 and 1, then layers 2 and 3", LOWER, UPPER, "svd")
    show("layers 2 and 3, then layers 0 and 1", UPPER, LOWER)
    show("all layers, then layers 2 and 3", {}, UPPER)
    show("layers 2 and 3, then all layers", UPPER, {})
    show("without layer 3, then all layers", {"exclude_modules": r".*\.3\.projection"}, {})
    show("with a head, then without", HEAD, {})
    show("without a head, then with one", {}, HEAD)
    show("with two tokens, then without", ROWS, {})
    show("without tokens, then with two", {}, ROWS)
    folder = pathlib.Path(sys.argv[1])
    model.save_pretrained(folder, selected_adapters=["both"])
    with safe_open(folder / "both" / "adapter_model.safetensors", "pt") as file:
        print(f"layers 0 and 1, then layers 2 and 3, cat, saved: layers {numbers(file.keys())}")
print(f"warnings: {sum('LoRA' in str(one.message) or 'adapter' in str(one.message) for one in caught)}")
PYTHON

found=$("$work/venv/bin/python" "$work/combine.py" "$work/saved" 2> "$work/errors") || cat "$work/errors" >&2
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(peft|torch) '
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'peft behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: a combined adapter leaves out layers, heads and tokens'
