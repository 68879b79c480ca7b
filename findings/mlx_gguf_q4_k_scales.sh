#!/usr/bin/env bash
# mlx 0.32.4 (mlx-cpu on Linux): mlx.core.load("model.gguf") gives wrong weights for Q4_K, the type of most tensors in files called
# Q4_K_M and Q4_K_S. A block of Q4_K has eight parts of 32 weights, each with a scale and a minimum of its own; parts 2, 4, 6 and 8
# get those of the part before: scales 1 to 8 act as 1, 1, 3, 3, 5, 5, 7, 7. Names, shapes and types are right. A file with a tensor
# of a type that mlx does not know (MXFP4, which gpt-oss has; TQ1_0, TQ2_0) is read up to that tensor: it and all that follow are
# missing from the dict. BF16 becomes float16, in which 100000 is infinite and 1e-8 is 0. Nothing of this is raised or logged; the
# documentation of load says that tensors of unsupported quantizations are cast to float16. Q4_0, Q4_1, Q8_0, Q2_K and Q6_K of
# the same writer are right, and gguf 0.19.0 (gguf-py, llama.cpp's own) reads all of them back.
#
# Seen, with gguf-py's values as the right ones:
#     Q4_K with scales 1 to 8: 1 1 3 3 5 5 7 7 (right: 1 2 3 4 5 6 7 8)
#     Q4_K with minima 1 to 8: -1 -1 -3 -3 -5 -5 -7 -7 (right: -1 -2 -3 -4 -5 -6 -7 -8)
#     Q4_K with one scale for all: 1 1 1 1 1 1 1 1 (right: 1 1 1 1 1 1 1 1)
#     random blocks of Q4_K: 50 % of the weights are wrong
#     random blocks of Q2_K: 0 % of the weights are wrong
#     random blocks of Q6_K: 0 % of the weights are wrong
#     tensors first, MXFP4, third, fourth: first
#     tensors first, TQ1_0, third, fourth: first
#     tensors first, TQ2_0, third, fourth: first
#     tensors first, Q8_0, third, fourth: first, Q8_0, third, fourth
#     BF16 of 100000, 3, 1e-08: inf, 3, 0 as float16
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check mlx==0.32.4 mlx-cpu==0.32.4 gguf==0.19.0 numpy

cat > "$work/check.py" <<'PYTHON'
"""Write GGUF files with gguf-py, and print what mlx.core.load and gguf-py give for them."""

import os
import sys

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

ROWS = 64
PARTS = 8  # of a block of 256 weights
KINDS = (Type.Q4_K, Type.Q2_K, Type.Q6_K)
random = np.random.default_rng(0)


def load(tensors):
    """Return what mlx loads of a file with these tensors, each (data, type); type None is the data's own."""
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return mx.load(sys.argv[1])


def values(array):
    return np.array(array.astype(mx.float32))


def half(number, count=1):
    """Return the bytes of so many rows of one float16."""
    return np.full((count, 1), number, np.float16).view(np.uint8)


def block(scales, minima, scale, minimum):
    """Return a block of Q4_K (ggml's block_q4_K, with 6 bits for each scale and minimum) whose quants are all 1."""
    scales, minima = np.array(scales), np.array(minima)
    low, high = slice(0, 4), slice(4, 8)
    packed = [
        scales[low] | scales[high] >> 4 << 6,
        minima[low] | minima[high] >> 4 << 6,
        scales[high] & 15 | (minima[high] & 15) << 4,
    ]
    parts = [half(scale), half(minimum), np.concatenate(packed).astype(np.uint8)[None], np.full((1, 128), 0x11, np.uint8)]
    return np.concatenate(parts, axis=1)


def random_blocks(kind):
    """Return rows of one block each; any bytes are valid but for the two float16, which are small here."""

    def some(size):
        return random.integers(0, 256, (ROWS, size), dtype=np.uint8)

    scale, minimum = half(0.01, ROWS), half(0.02, ROWS)
    layout = {
        Type.Q4_K: (scale, minimum, some(12), some(128)),
        Type.Q2_K: (some(16), some(64), scale, minimum),
        Type.Q6_K: (some(128), some(64), some(16), scale),
    }
    return np.concatenate(layout[kind], axis=1)


def parts(array):
    return " ".join(f"{part[0]:g}" for part in array.reshape(PARTS, -1))


one_to_eight, ones, zeros = list(range(1, 9)), [1] * PARTS, [0] * PARTS
for text, raw in {
    "scales 1 to 8": block(one_to_eight, zeros, 1, 0),
    "minima 1 to 8": block(zeros, one_to_eight, 0, 1),
    "one scale for all": block(ones, zeros, 1, 0),
}.items():
    found = values(load({"w": (raw, Type.Q4_K)})["w"])
    print(f"Q4_K with {text}: {parts(found)} (right: {parts(quants.dequantize(raw, Type.Q4_K))})")
for kind in KINDS:
    raw = random_blocks(kind)
    right = quants.dequantize(raw, kind)
    found = values(load({"w": (raw, kind)})["w"])
    wrong = ~np.isclose(found, right, rtol=2e-3, atol=2e-3 * np.abs(right).max())
    print(f"random blocks of {kind.name}: {round(100 * wrong.mean(), -1):.0f} % of the weights are wrong")
plain = (np.ones((2, 256), np.float32), None)
for kind in (Type.MXFP4, Type.TQ1_0, Type.TQ2_0, Type.Q8_0):
    names = ["first", kind.name, "third", "fourth"]
    tensors = {name: plain for name in names} | {kind.name: (quants.quantize(plain[0], kind), kind)}
    found = load(tensors)
    print(f"tensors {', '.join(names)}: {', '.join(name for name in names if name in found)}")
numbers = np.array([[100000, 3, 1e-8]], np.float32)
found = load({"w": (quants.quantize(numbers, Type.BF16), Type.BF16)})["w"]
shown = [", ".join(f"{number:g}" for number in row) for row in (numbers[0], values(found)[0])]
print(f"BF16 of {shown[0]}: {shown[1]} as {str(found.dtype).rpartition('.')[2]}")
sys.stdout.flush()
os._exit(0)  # mlx-cpu 0.32.4 can abort while the interpreter ends
PYTHON

found=$("$work/venv/bin/python" "$work/check.py" "$work/model.gguf" 2> "$work/errors") || { cat "$work/errors" >&2; exit 1; }
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'mlx behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: the weights of the file, and those that mlx loads of it, are not the same'
