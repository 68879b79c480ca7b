#!/usr/bin/env bash
# safetensors 0.8.0 (and 0.7.0) with torch 2.13.0: safetensors.torch.save_file, save and save_model write a tensor that is
# conjugated lazily (`Tensor.is_conj()`) without the conjugation. The loaded tensor has the other sign in each imaginary
# part, and nothing is raised or warned of. torch.save keeps the conjugation; `numpy()` of such a tensor raises. A program
# need not have called `conj`: torch.fft.ihfft, the usual way to a filter's spectrum from real samples, returns such a
# tensor, contiguous and of its own memory. `clone()`, `to()` or a computation settles it, `nn.Parameter` and
# `register_buffer` keep it as it is.
#
# Why, in the source of 0.8.0: torch.py checks that a tensor is dense and contiguous, and takes the bytes at its address;
# torch conjugates only when they are read as values (`resolve_conj`). The memory has the values before the conjugation.
#
# Seen with a module of three buffers, saved by save_model and loaded into another of the same class, and by torch.save:
#     spectrum of torch.fft.ihfft: save_model: conjugated, torch.save: right
#     rotations.conj(): save_model: conjugated, torch.save: right
#     rotations.conj().clone(): save_model: right, torch.save: right
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy torch==2.13.0

cat > "$work/save.py" <<'PYTHON'
"""Save a module with complex buffers in two ways, and print what each is after loading."""

import pathlib
import sys

import torch
from safetensors.torch import load_model, save_model

work = pathlib.Path(sys.argv[1])


class Filter(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rotations = torch.polar(torch.ones(8), torch.rand(8, generator=generator) + 0.5)
        self.register_buffer("spectrum", torch.fft.ihfft(torch.randn(16, generator=generator)))
        self.register_buffer("lazy", rotations.conj())
        self.register_buffer("settled", rotations.conj().clone())


def found(loaded, saved):
    loaded, saved = loaded.resolve_conj(), saved.resolve_conj()
    if torch.equal(loaded, saved):
        return "right"
    return "conjugated" if torch.equal(loaded, saved.conj().resolve_conj()) else "other values"


saved, loaded, other = Filter(1), Filter(2), Filter(3)
save_model(saved, str(work / "model.safetensors"))
load_model(loaded, str(work / "model.safetensors"))
torch.save(saved.state_dict(), work / "model.pt")
other.load_state_dict(torch.load(work / "model.pt", weights_only=True))
names = {
    "spectrum": "spectrum of torch.fft.ihfft",
    "lazy": "rotations.conj()",
    "settled": "rotations.conj().clone()",
}
for name, what in names.items():
    tensor = saved.get_buffer(name)
    assert tensor.is_contiguous()
    print(
        f"{what}: save_model: {found(loaded.get_buffer(name), tensor)}, torch.save: {found(other.get_buffer(name), tensor)}"
    )
PYTHON

expected="spectrum of torch.fft.ihfft: save_model: conjugated, torch.save: right
rotations.conj(): save_model: conjugated, torch.save: right
rotations.conj().clone(): save_model: right, torch.save: right"
mkdir "$work/files"
if ! found=$("$work/venv/bin/python" "$work/save.py" "$work/files" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(safetensors|torch) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
