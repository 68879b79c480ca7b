#!/usr/bin/env bash
# tinygrad 0.14.0: torch_load gives other weights for a tensor that torch has saved as a part of a larger one, where the part has gaps
# between its rows: columns of a matrix (the shard of a rank that splits the input of a linear layer), every second row, one head of a
# fused projection. It reads the values that follow one another from the part's start, with the right name, shape and dtype; nothing
# is raised or logged. torch.load gives the part that was saved, from the same file, in the format of today and in the one before it.
# Rows of a matrix, a transposed matrix and a part that was made contiguous before the save are right. torch's notes on serialization
# say that saving preserves views, and recommend such a file where parts share one storage; torch_load is documented as
# "Loads a torch .pth file, returning the `state_dict`", without a condition.
#
# Why, in the source: _rebuild_tensor_v2 takes prod(size) values from the storage's offset, and compares the strides with those of
# a dense tensor only where their order shows that the dimensions are permuted ("nonpermutable strides").
#
# Seen, as what torch.load and torch_load give for parts of a matrix of 4 x 8 with the values 0 to 31:
#     all, zip: same
#     all, legacy: same
#     rows 2 and 3, zip: same
#     rows 2 and 3, legacy: same
#     columns 0 to 3, zip: row 1 is 8 9 10 11 and 4 5 6 7
#     columns 0 to 3, legacy: row 1 is 8 9 10 11 and 4 5 6 7
#     columns 4 to 7, zip: row 1 is 12 13 14 15 and 8 9 10 11
#     columns 4 to 7, legacy: row 1 is 12 13 14 15 and 8 9 10 11
#     columns 4 to 7, contiguous, zip: same
#     columns 4 to 7, contiguous, legacy: same
#     every second row, zip: row 1 is 16 17 18 19 20 21 22 23 and 8 9 10 11 12 13 14 15
#     every second row, legacy: row 1 is 16 17 18 19 20 21 22 23 and 8 9 10 11 12 13 14 15
#     transposed, zip: same
#     transposed, legacy: same
#
# Needs clang, or gcc in its place. Installs the packages (torch for a CPU is enough) into a temporary folder, and fails if a line
# is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check tinygrad==0.14.0 torch==2.13.0 numpy==2.4.6

# tinygrad compiles a few functions of its CPU device with clang at its start. gcc does as well without clang's --target, and with a
# file in place of standard output. All arithmetic below runs on the PYTHON device, which needs no compiler.
CC=clang
if ! command -v clang > /dev/null; then
  command -v gcc > /dev/null || {
    echo 'not checked: no clang and no gcc' >&2
    exit 2
  }
  CC=$work/cc
  cat > "$CC" <<'COMPILER'
#!/usr/bin/env bash
set -eu
arguments=()
for argument in "${@:1:$#-1}"; do
  [[ $argument == --target=* ]] || arguments+=("$argument")
done
object=$(mktemp)
trap 'rm -f "$object"' EXIT
gcc "${arguments[@]}" "$object"
cat "$object"
COMPILER
  chmod +x "$CC"
fi

cat > "$work/load.py" <<'PYTHON'
"""Save parts of a matrix with torch; print whether tinygrad loads what torch loads."""

import pathlib
import sys

import torch
from tinygrad.nn.state import torch_load

folder = pathlib.Path(sys.argv[1])
matrix = torch.arange(32.0).reshape(4, 8)
PARTS = {
    "all": matrix,
    "rows 2 and 3": matrix.chunk(2, dim=0)[1],
    "columns 0 to 3": matrix.chunk(2, dim=1)[0],
    "columns 4 to 7": matrix.chunk(2, dim=1)[1],
    "columns 4 to 7, contiguous": matrix.chunk(2, dim=1)[1].contiguous(),
    "every second row": matrix[::2],
    "transposed": matrix.t(),
}


def numbers(row):
    return " ".join(f"{value:g}" for value in row)


for number, (what, part) in enumerate(PARTS.items()):
    for form in ("zip", "legacy"):
        path = folder / f"{number}-{form}.pth"
        torch.save({"weight": part}, path, _use_new_zipfile_serialization=form == "zip")
        saved = torch.load(path)["weight"]
        assert torch.equal(saved, part)
        loaded = torch_load(path)["weight"]
        assert tuple(loaded.shape) == tuple(part.shape)
        rows = loaded.to("PYTHON").tolist()
        same = rows == saved.tolist()
        print(f"{what}, {form}: " + ("same" if same else f"row 1 is {numbers(saved[1].tolist())} and {numbers(rows[1])}"))
PYTHON

expected="all, zip: same
all, legacy: same
rows 2 and 3, zip: same
rows 2 and 3, legacy: same
columns 0 to 3, zip: row 1 is 8 9 10 11 and 4 5 6 7
columns 0 to 3, legacy: row 1 is 8 9 10 11 and 4 5 6 7
columns 4 to 7, zip: row 1 is 12 13 14 15 and 8 9 10 11
columns 4 to 7, legacy: row 1 is 12 13 14 15 and 8 9 10 11
columns 4 to 7, contiguous, zip: same
columns 4 to 7, contiguous, legacy: same
every second row, zip: row 1 is 16 17 18 19 20 21 22 23 and 8 9 10 11 12 13 14 15
every second row, legacy: row 1 is 16 17 18 19 20 21 22 23 and 8 9 10 11 12 13 14 15
transposed, zip: same
transposed, legacy: same"
mkdir "$work/files"
if ! found=$(DEV=PYTHON CC="$CC" CACHEDB="$work/cache.db" "$work/venv/bin/python" "$work/load.py" "$work/files" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(tinygrad|torch|numpy) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
