#!/usr/bin/env bash
# safetensors 0.8.0: what `safe_open(...).get_slice(name)[index]` gives depends on the framework it was opened for. With "pt" an index
# means what it means to a tensor; with "np" the same index of the same file is an error for every part that is empty because it starts
# behind its end or at the tensor's, that ends behind the tensor's end, or that is counted from the end. The errors are of four kinds, one of them an
# internal one of CPython's (SystemError); where such a part has a step, numpy is asked for an array of 2^63 - 1 rows. So code that cuts
# shards with bounds that may pass the end (the last rank's, `[rank * size : (rank + 1) * size]`), written and tested with torch, fails
# with numpy.
#
# Seen, of a tensor of 6 x 2:
#     [2:100]: pt (4, 2), np SafetensorError
#     [-2:]: pt (2, 2), np OverflowError
#     [1:0]: pt (0, 2), np SystemError
#     [1:0:2]: pt (0, 2), np ValueError
#     [0:6:4]: pt (2, 2), np (2, 2)
#     [0:0]: pt (0, 2), np (0, 2)
#     [6:6]: pt (0, 2), np SafetensorError
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy torch==2.13.0

cat > "$work/check.py" <<'PYTHON'
"""Print what parts of one tensor are with both frameworks."""

import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

PARTS = {
    "2:100": slice(2, 100),
    "-2:": slice(-2, None),
    "1:0": slice(1, 0),
    "1:0:2": slice(1, 0, 2),
    "0:6:4": slice(0, 6, 4),
    "0:0": slice(0, 0),
    "6:6": slice(6, 6),
}


def look(path: str, framework: str, part: slice) -> str:
    with safe_open(path, framework) as file:
        try:
            return str(tuple(file.get_slice("a")[part].shape))
        except Exception as error:
            return type(error).__name__


path = sys.argv[1]
save_file({"a": np.arange(12, dtype=np.float32).reshape(6, 2)}, path)
for text, part in PARTS.items():
    print(f"[{text}]: pt {look(path, 'pt', part)}, np {look(path, 'np', part)}")
PYTHON

found=$("$work/venv/bin/python" "$work/check.py" "$work/a.safetensors")
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'safetensors behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: an index is one thing to torch and another to numpy'
