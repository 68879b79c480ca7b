#!/usr/bin/env bash
# s3fs 2026.9.0 with fsspec 2026.9.0: cat_file and cat_ranges of an empty range give the whole object. fsspec documents start and end
# as "like usual python slices", and its local and memory file systems give b"" for [3:3], [0:0] and [:0], as do seek and read of a
# file that s3fs itself has opened. A reader that takes the tensors of a safetensors file by their data_offsets in one cat_ranges gets
# all bytes of the file for a tensor of shape [0, 4]. [-20:4] of ten bytes, the first four to a slice, is the whole object too.
# Nothing is raised or logged. An empty range at the very end of the object is an OSError instead.
#
# Why, in the source: AsyncFileSystem._process_limits (fsspec/asyn.py) makes "bytes=3-2" of start 3 and end 3, and "bytes=-10-3" of the
# other. RFC 9110 (14.1.1, 14.2) calls such a header invalid, and a server may ignore it; S3 does, and answers 200 with the object
# (boto/boto3#775). For files that s3fs opens this was mended in 2019 (fsspec/s3fs#229): _fetch_range asks for start == end first.
#
# Seen with moto 5.2.5 as S3 and an object of ten bytes, 0 to 9, as bytes of local and memory (both alike) and of s3fs:
#     [2:5]: 3 and 3
#     [-3:]: 3 and 3
#     [8:20]: 2 and 2
#     [3:3]: 0 and 10
#     [0:0]: 0 and 10
#     [:0]: 0 and 10
#     [-20:4]: 4 and 10
#     [10:10]: 0 and OSError
#     [3:3] by cat_ranges: 0 and 10
#     [3:3] by open, seek and read: 0 and 0
#     tensors a, empty, b of a safetensors file of 192 bytes: 8, 0, 8 and 8, 192, 8
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check s3fs==2026.9.0 fsspec==2026.9.0 aiobotocore==3.10.0 \
  boto3==1.43.117 botocore==1.43.117 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5

cat > "$work/check.py" <<'PYTHON'
"""Print how many bytes each file system gives for ranges of one file."""

import json
import socket
import struct
import sys

import boto3
import fsspec
from moto.server import ThreadedMotoServer

RANGES = [(2, 5), (-3, None), (8, 20), (3, 3), (0, 0), (None, 0), (-20, 4), (10, 10)]
TENSORS = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [8, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
}


def weights():
    """Return a file of these tensors, of 192 bytes."""
    header = json.dumps(TENSORS, separators=(",", ":")).encode()
    header += b" " * (192 - 8 - 16 - len(header))
    return struct.pack("<Q", len(header)) + header + bytes(16)


def sizes(filesystem, path, starts, ends):
    """Return the sizes of the ranges."""
    return [len(found) for found in filesystem.cat_ranges([path] * len(starts), starts, ends, on_error="raise")]


def opened(filesystem, path):
    with filesystem.open(path) as file:
        file.seek(3)
        return len(file.read(0))


def tensors(filesystem, path):
    """Return the sizes of all tensors of a safetensors file, each read by its data_offsets."""
    (length,) = struct.unpack("<Q", filesystem.cat_file(path, start=0, end=8))
    header = json.loads(filesystem.cat_file(path, start=8, end=8 + length))
    offsets = [tensor["data_offsets"] for tensor in header.values()]
    starts, ends = ([8 + length + offset[side] for offset in offsets] for side in (0, 1))
    return ", ".join(map(str, sizes(filesystem, path, starts, ends)))


def show(text, look, name):
    """Print what `look` finds with the local and memory file systems, which must agree, and with s3fs."""
    found = []
    for filesystem, folder in PLACES:
        try:
            found.append(str(look(filesystem, f"{folder}/{name}")))
        except Exception as error:
            found.append(type(error).__name__)
    local, memory, s3 = found
    print(f"{text}: {local} and {s3}" if local == memory else f"{text}: {local}, {memory} and {s3}")


with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
address = f"http://127.0.0.1:{port}"
boto3.client("s3", endpoint_url=address).create_bucket(Bucket="models")
PLACES = [
    (fsspec.filesystem("file"), sys.argv[1]),
    (fsspec.filesystem("memory"), "/models"),
    (fsspec.filesystem("s3", endpoint_url=address), "models"),
]
for filesystem, folder in PLACES:
    filesystem.pipe_file(f"{folder}/ten", bytes(range(10)))
    filesystem.pipe_file(f"{folder}/model.safetensors", weights())
for start, end in RANGES:
    text = "".join(["[", "" if start is None else str(start), ":", "" if end is None else str(end), "]"])
    show(text, lambda filesystem, path, start=start, end=end: len(filesystem.cat_file(path, start=start, end=end)), "ten")
show("[3:3] by cat_ranges", lambda filesystem, path: sizes(filesystem, path, [3], [3])[0], "ten")
show("[3:3] by open, seek and read", opened, "ten")
show("tensors a, empty, b of a safetensors file of 192 bytes", tensors, "model.safetensors")
PYTHON

mkdir "$work/models"
found=$(AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_DEFAULT_REGION=us-east-1 AWS_CONFIG_FILE=/dev/null NO_PROXY=127.0.0.1 \
  "$work/venv/bin/python" "$work/check.py" "$work/models" 2> "$work/errors") || { cat "$work/errors" >&2; exit 1; }
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 's3fs behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: an empty range of an object is all of it'
