#!/usr/bin/env bash
# gguf 0.19.0 (gguf-py): a GGUFWriter with add_custom_alignment(64) and split_max_tensors writes every shard but the first as
# a file that its own GGUFReader, and any reader that goes by the format, reads right or 32 bytes too early, by the length of
# its header: with one more letter in a tensor's name, all weights of the shard stand eight float32 further, after zeros.
# Nothing is raised or logged, by the writer or by the reader, and every name, shape and type is right. One file without the
# split, and the first shard, read as they were written.
#
# Why, in the source: the writer pads all shards to its data_alignment, but add_key_value puts general.alignment, as all
# metadata, into the first shard alone. A file without that key has an alignment of 32, says the format; where the header
# ends in the first half of 64 bytes, a reader looks for the data in the padding. 128 and more are wrong more often.
#
# Seen with a tensor whose name has 1 to 64 letters, alone in its file or shard:
#     alignment 64, one file: the key is there, 64 of 64 tensors as written
#     alignment 64, shard 1 of 2: the key is there, 64 of 64 tensors as written
#     alignment 64, shard 2 of 2: no key, 32 of 64 tensors as written
#     alignment 4096, one file: the key is there, 64 of 64 tensors as written
#     alignment 4096, shard 1 of 2: the key is there, 64 of 64 tensors as written
#     alignment 4096, shard 2 of 2: no key, 0 of 64 tensors as written
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6

cat > "$work/split.py" <<'PYTHON'
"""Write tensors with a custom alignment, in one file and in two shards; print how many are read as they were written."""

import pathlib
import sys

import numpy
from gguf import GGUFReader, GGUFWriter

LENGTHS = range(1, 65)
folder = pathlib.Path(sys.argv[1])
rows = numpy.arange(1, 257, dtype=numpy.float32).reshape(4, 64)


def write(path, alignment, names, split):
    writer = GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_custom_alignment(alignment)
    for name in names:
        writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def show(what, paths):
    """Read the one tensor of each file, and count those that are as they were written."""
    readers = [GGUFReader(path) for path in paths]
    assert all(len(reader.tensors) == 1 and reader.tensors[0].data.shape == rows.shape for reader in readers)
    keys = {"the key is there" if "general.alignment" in reader.fields else "no key" for reader in readers}
    right = sum(numpy.array_equal(reader.tensors[0].data, rows) for reader in readers)
    print(f"{what}: {' or '.join(keys)}, {right} of {len(readers)} tensors as written")


for alignment in (64, 4096):
    for length in LENGTHS:
        write(folder / f"one-{length}.gguf", alignment, ["b" * length], 0)
        write(folder / f"two-{length}.gguf", alignment, ["a" * length, "b" * length], 1)
    show(f"alignment {alignment}, one file", [folder / f"one-{length}.gguf" for length in LENGTHS])
    for number in (1, 2):
        shards = [folder / f"two-{length}-{number:05}-of-00002.gguf" for length in LENGTHS]
        show(f"alignment {alignment}, shard {number} of 2", shards)
PYTHON

expected="alignment 64, one file: the key is there, 64 of 64 tensors as written
alignment 64, shard 1 of 2: the key is there, 64 of 64 tensors as written
alignment 64, shard 2 of 2: no key, 32 of 64 tensors as written
alignment 4096, one file: the key is there, 64 of 64 tensors as written
alignment 4096, shard 1 of 2: the key is there, 64 of 64 tensors as written
alignment 4096, shard 2 of 2: no key, 0 of 64 tensors as written"
mkdir "$work/model"
if ! found=$("$work/venv/bin/python" "$work/split.py" "$work/model" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(gguf|numpy) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
