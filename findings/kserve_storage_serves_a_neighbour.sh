#!/usr/bin/env bash
# kserve-storage 0.21.0 (KServe's storage initializer): Storage.download("s3://models/llama", folder) writes llama2/model.onnx
# of the bucket over llama/2/model.onnx, so that version 2 of one model is another model's weights. Nothing is raised, and
# both objects are logged as downloaded. With a slash at the end of the address the same call gives version 2.
#
# Why, in the source of 0.21.0: _download_s3 lists the objects whose keys begin with "llama", takes that off each key, and then
# the slashes that are left at its beginning: "/2/model.onnx" and "2/model.onnx" become one file. It is known that such an
# address brings a neighbour's files along; not that they replace the model's own. For gs:// it puts a slash there itself.
# With S3_MAX_FILE_CONCURRENCY=1 the object that is listed last stays: "/" comes before any digit, so it is the neighbour's.
# With 4, its default, it is the one whose download ends last.
#
# Seen with moto 5.2.5 as S3, where each object says what it is:
#     s3://models/llama: 1/model.onnx is llama, version 1
#     s3://models/llama: 2/model.onnx is llama2
#     s3://models/llama/: 1/model.onnx is llama, version 1
#     s3://models/llama/: 2/model.onnx is llama, version 2
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check kserve-storage==0.21.0 boto3==1.43.117 \
  'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5

cat > "$work/download.py" <<'PYTHON'
"""Put two models into a bucket, and print what the storage initializer downloads of the one."""

import os
import pathlib
import socket
import sys

import boto3
from kserve_storage import Storage
from moto.server import ThreadedMotoServer

OBJECTS = {
    "llama/1/model.onnx": b"llama, version 1",
    "llama/2/model.onnx": b"llama, version 2",
    "llama2/model.onnx": b"llama2",
}

if __name__ == "__main__":  # the initializer's workers may import this file
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="models")
    for key, content in OBJECTS.items():
        s3.put_object(Bucket="models", Key=key, Body=content)
    for number, address in enumerate(("s3://models/llama", "s3://models/llama/")):
        folder = pathlib.Path(sys.argv[1], str(number))
        Storage.download(address, str(folder))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"{address}: {path.relative_to(folder)} is {path.read_text()}")
PYTHON

expected="s3://models/llama: 1/model.onnx is llama, version 1
s3://models/llama: 2/model.onnx is llama2
s3://models/llama/: 1/model.onnx is llama, version 1
s3://models/llama/: 2/model.onnx is llama, version 2"
mkdir "$work/models"
if ! found=$(TMPDIR="$work" AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_DEFAULT_REGION=us-east-1 \
  AWS_CONFIG_FILE=/dev/null S3_MAX_FILE_CONCURRENCY=1 NO_PROXY=127.0.0.1 \
  "$work/venv/bin/python" "$work/download.py" "$work/models" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(kserve-storage|boto3|moto) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
