#!/usr/bin/env bash
# peft 0.21.2: an adapter whose `alpha_pattern` has two patterns for one module can have another scale after save_pretrained and
# from_pretrained than it was trained with: the weights are the same, the outputs are not, and nothing is raised or logged. Of the
# patterns that match a module the first in the dict counts, and save_pretrained sorts the keys in adapter_config.json.
# {"vision.q_proj": 64, "q_proj": 8} trains the vision tower with alpha 64, and any later load has 8; with "audio.q_proj" in that
# place 64 stays, for "a" sorts before "q". The other way round, a general pattern that wins while the model is trained can lose
# after the load. LoHa and LoKr have the same field and the same loss. `rank_pattern` in such an order ends in a RuntimeError (size
# mismatch), for the adapter that peft itself has saved. merge_and_unload before the save keeps the trained scale, and so do
# patterns of which one alone matches each module.
#
# Why, in the source: get_pattern_key takes the first key of the dict that matches; PeftConfigMixin.save_pretrained writes the config with
# json.dumps(..., sort_keys=True). The documentation of the field names a mapping from layer names or regular expressions, and no order.
#
# Seen, as alpha of audio.q_proj and vision.q_proj before the save and after the load:
#     LoRA, alpha_pattern vision.q_proj, q_proj: 8 64 -> 8 8, outputs differ
#     LoRA, alpha_pattern audio.q_proj, q_proj: 64 8 -> 64 8, outputs equal
#     LoRA, alpha_pattern q_proj, vision.q_proj: 8 8 -> 8 8, outputs equal
#     LoRA, alpha_pattern q_proj, audio.q_proj: 8 8 -> 64 8, outputs differ
#     LoRA, alpha_pattern vision.q_proj, audio.q_proj: 64 64 -> 64 64, outputs equal
#     LoHa, alpha_pattern vision.q_proj, q_proj: 8 64 -> 8 8, outputs differ
#     LoKr, alpha_pattern vision.q_proj, q_proj: 8 64 -> 8 8, outputs differ
#     LoRA, rank_pattern vision.q_proj, q_proj: RuntimeError
#     LoRA, rank_pattern audio.q_proj, q_proj: outputs equal
#     LoRA, merged before the save: outputs equal
#     warnings: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  peft==0.21.2 transformers==5.24.0 torch==2.13.0 accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0

cat > "$work/check.py" <<'PYTHON'
"""Print an adapter's scales and outputs as they are before a save, and after a load, for several orders of two patterns."""

import copy
import logging
import sys
import warnings
from pathlib import Path

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model

GENERAL, AUDIO, VISION = "q_proj", "audio.q_proj", "vision.q_proj"
KINDS = {"LoRA": LoraConfig, "LoHa": LoHaConfig, "LoKr": LoKrConfig}
ALPHAS = [
    ("LoRA", VISION, GENERAL),
    ("LoRA", AUDIO, GENERAL),
    ("LoRA", GENERAL, VISION),
    ("LoRA", GENERAL, AUDIO),
    ("LoRA", VISION, AUDIO),
    ("LoHa", VISION, GENERAL),
    ("LoKr", VISION, GENERAL),
]


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.audio = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(16, 16)})
        self.vision = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(16, 16)})

    def forward(self, x):
        return self.vision["q_proj"](self.audio["q_proj"](x))


class Count(logging.Handler):
    records = 0

    def emit(self, record):
        Count.records += 1


def adapter(kind, **patterns):
    """Return an adapter of the base with weights as if it were trained."""
    config = KINDS[kind](r=4, alpha=4, **patterns) if kind != "LoRA" else LoraConfig(r=4, lora_alpha=4, **patterns)
    config.target_modules = {"q_proj"}
    model = get_peft_model(copy.deepcopy(base), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "base_layer" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def reloaded(model, name):
    model.save_pretrained(folder / name)
    return PeftModel.from_pretrained(copy.deepcopy(base), folder / name).eval()


def compare(one, other):
    return f"outputs {'equal' if torch.allclose(one(x), other(x), rtol=1e-3, atol=1e-3) else 'differ'}"


def alphas(model):
    found = [getattr(model.base_model.model, tower)["q_proj"] for tower in ("audio", "vision")]
    return " ".join(f"{layer.scaling['default'] * layer.r['default']:g}" for layer in found)


logging.getLogger().addHandler(Count(logging.WARNING))
folder = Path(sys.argv[1])
torch.manual_seed(0)
base, x = Towers(), torch.randn(1, 16)
with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
    for number, (kind, *order) in enumerate(ALPHAS):
        model = adapter(kind, alpha_pattern={name: 8 if name == GENERAL else 64 for name in order})
        loaded = reloaded(model, f"alpha{number}")
        print(f"{kind}, alpha_pattern {', '.join(order)}: {alphas(model)} -> {alphas(loaded)}, {compare(model, loaded)}")
    for special in (VISION, AUDIO):
        model = adapter("LoRA", rank_pattern={special: 2, GENERAL: 8})
        try:
            seen = compare(model, reloaded(model, f"rank{special}"))
        except Exception as error:
            seen = type(error).__name__
        print(f"LoRA, rank_pattern {special}, {GENERAL}: {seen}")
    model = adapter("LoRA", alpha_pattern={VISION: 64, GENERAL: 8})
    print(f"LoRA, merged before the save: {compare(model, copy.deepcopy(model).merge_and_unload())}")
print(f"warnings: {len(caught) + Count.records}")
PYTHON

found=$(HF_HUB_OFFLINE=1 HF_HOME="$work/home" CUDA_VISIBLE_DEVICES='' \
  "$work/venv/bin/python" "$work/check.py" "$work/adapters" 2> "$work/errors") || { cat "$work/errors" >&2; exit 1; }
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'peft behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: the order of the patterns is lost in the file, and with it the scale'
