#!/usr/bin/env bash
# diffusers 0.42.1: enable_group_offload(..., offload_to_disk_path=folder) takes the weights from a file of that folder wherever one with the
# group's name is there already, and the name is made of module names alone. (1) The two transformers of a Wan 2.2 pipeline, for much noise and
# for little, have the same modules: with the one folder that the pipeline's own method takes, the second one computes with the weights of the
# first. (2) The files stay when the program ends. The next program that offloads a fine-tuned model, a later version or a model of the same
# architecture there computes with the weights of the program before; what from_pretrained read is thrown away. Shapes and dtypes are right, and
# nothing is raised or logged. The documentation calls it "the path to the directory where parameters will be offloaded", says nothing of
# files that are there, and in its guide offloads two models of a pipeline to one path. Offloaded to memory, and with an empty folder for each
# transformer, the same pipelines are right.
#
# Why, in the source (hooks/group_offloading.py): the file is group_<hash of the group's id>.safetensors, the id is a module's name within its
# model ("blocks_0_0", "blocks.0.attn1.to_q"), and _offload_to_disk writes it only where no such file exists. The pipeline's
# enable_group_offload hands the same path to each component.
#
# Seen with pipelines of two tiny transformers with random weights, each run being a program of its own:
#     leaf_level, transformers 1 and 2, in memory: computes with 1 and 2
#     leaf_level, transformers 1 and 2, in a new folder: computes with 1 and 1
#     leaf_level, transformers 3 and 4, in the same folder: computes with 1 and 1
#     leaf_level, transformers 3 and 4, in a new folder for each: computes with 3 and 4
#     block_level, transformers 1 and 2, in memory: computes with 1 and 2
#     block_level, transformers 1 and 2, in a new folder: computes with 1 and 1
#     block_level, transformers 3 and 4, in the same folder: computes with 1 and 1
#     block_level, transformers 3 and 4, in a new folder for each: computes with 3 and 4
#     messages at level info or above that name a file, a folder or an offload: 0
#
# Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.13.0 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 huggingface_hub==2.4.0 numpy==2.4.6

cat > "$work/offload.py" <<'PYTHON'
"""Run a pipeline of two transformers, offloaded as the arguments say; print whose weights it computes with."""

import pathlib
import sys

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.utils import logging

CPU = torch.device("cpu")


def transformer(number):
    torch.manual_seed(number)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def pipeline(noisy, clean):
    """As Wan 2.2: one transformer for the steps with much noise, one for those with little."""
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": None,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return WanPipeline(transformer=transformer(noisy), transformer_2=transformer(clean), boundary_ratio=0.875, **parts)


def run(pipe):
    torch.manual_seed(0)
    text = torch.randn(1, 8, 32)
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 16, "num_frames": 1, "num_inference_steps": 4, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt_embeds=text, negative_prompt_embeds=-text, generator=generator, **options).frames


logging.set_verbosity_info()
kind, place, folder, *numbers = sys.argv[1:]
numbers = [int(number) for number in numbers]
pipe = pipeline(*numbers)
options = {"offload_type": kind, "num_blocks_per_group": 1}
if place == "in memory":
    pipe.enable_group_offload(CPU, **options)
elif place.endswith("for each"):
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).enable_group_offload(CPU, offload_to_disk_path=str(pathlib.Path(folder, name)), **options)
else:
    pipe.enable_group_offload(CPU, offload_to_disk_path=folder, **options)
found = run(pipe)
pairs = [(noisy, clean) for noisy in range(1, 5) for clean in range(1, 5)]
whose = [f"{a} and {b}" for a, b in pairs if torch.allclose(found, run(pipeline(a, b)), atol=1e-5)]
print(f"{kind}, transformers {numbers[0]} and {numbers[1]}, {place}: computes with {' or '.join(whose) or 'others'}")
PYTHON

run() { "$work/venv/bin/python" "$work/offload.py" "$@" 2>> "$work/log" || { cat "$work/log" >&2; exit 1; }; }
found=$(
  for kind in leaf_level block_level; do
    run "$kind" 'in memory' - 1 2
    run "$kind" 'in a new folder' "$work/$kind" 1 2
    run "$kind" 'in the same folder' "$work/$kind" 3 4
    run "$kind" 'in a new folder for each' "$work/$kind-each" 3 4
  done
  echo "messages at level info or above that name a file, a folder or an offload: $(grep -ciE 'file|folder|director|offload' "$work/log" || true)"
)
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -E '^(diffusers|torch) '
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'diffusers behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: a model that is offloaded to disk computes with the weights that lie there'
