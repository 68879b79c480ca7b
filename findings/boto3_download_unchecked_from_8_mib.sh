#!/usr/bin/env bash
# boto3 1.44.5 with s3transfer 0.19.3: download_file checks an object against its CRC32 below 8 MiB, and above that not at all:
# a bit that changes on the way is then written to disk without an error. get_object of the same object, at any size, raises
# FlexibleChecksumError. Nothing is logged but at the level debug, and response_checksum_validation, which is to check "when
# supported", is at its default. The object need not have been uploaded in parts: where the checks end is up to the client's
# multipart_threshold alone. Weights are nearly always larger.
#
# Why: from multipart_threshold on, s3transfer asks for ranges, and S3 sends the checksum of a whole object with whole
# objects only. The comment in its source that HEAD is needed for that checksum is ahead of the code: it does not ask HEAD for
# it, and compares it with nothing (there is a proposal to do so, for CRCs of whole objects).
#
# Seen with a server that states the CRC32 of each object as S3 does, and sends one bit of it wrong:
#     8388607 bytes: get_object FlexibleChecksumError, download_file FlexibleChecksumError
#     8388609 bytes: get_object FlexibleChecksumError, download_file wrote the wrong bytes
#     8388609 bytes, multipart_threshold=8388610: get_object FlexibleChecksumError, download_file FlexibleChecksumError
#     20000000 bytes: get_object FlexibleChecksumError, download_file wrote the wrong bytes
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check boto3==1.44.5 botocore==1.44.8 s3transfer==0.19.3

cat > "$work/download.py" <<'PYTHON'
"""Serve objects with a checksum and one wrong bit, and print what boto3 says of each."""

import base64
import pathlib
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config


class S3(BaseHTTPRequestHandler):
    """Answers /bucket/<size> with that many zeros, of which one bit is wrong."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        size = int(self.path.rpartition("/")[2])
        data = bytes(size)
        crc32 = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        headers = {"ETag": '"any"', "Accept-Ranges": "bytes"}
        wanted, sent = self.headers["Range"], b"\x01" + data[1:]
        if wanted is None:
            status = 200
            if self.headers["x-amz-checksum-mode"] == "ENABLED":
                headers |= {"x-amz-checksum-crc32": crc32, "x-amz-checksum-type": "FULL_OBJECT"}
        else:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), int(last) + 1 if last else size
            status, sent = 206, sent[start:end]
            headers["Content-Range"] = f"bytes {start}-{start + len(sent) - 1}/{size}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(sent))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), S3)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{server.server_port}",
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(s3={"addressing_style": "path"}),
)
assert client.meta.config.response_checksum_validation == "when_supported"


def said(call, size):
    try:
        data = call(str(size))
    except Exception as error:
        return type(error).__name__
    assert len(data) == size
    return "wrote the wrong bytes" if any(data) else "wrote the right bytes"


def whole(key):
    return client.get_object(Bucket="bucket", Key=key)["Body"].read()


def show(size, **settings):
    def file(key):
        client.download_file("bucket", key, path, Config=TransferConfig(**settings))
        return pathlib.Path(path).read_bytes()

    path = f"{sys.argv[1]}/{size}"
    what = ", ".join([f"{size} bytes", *(f"{name}={value}" for name, value in settings.items())])
    print(f"{what}: get_object {said(whole, size)}, download_file {said(file, size)}")


show((8 << 20) - 1)
show((8 << 20) + 1)
show((8 << 20) + 1, multipart_threshold=(8 << 20) + 2)
show(20_000_000)
PYTHON

expected="8388607 bytes: get_object FlexibleChecksumError, download_file FlexibleChecksumError
8388609 bytes: get_object FlexibleChecksumError, download_file wrote the wrong bytes
8388609 bytes, multipart_threshold=8388610: get_object FlexibleChecksumError, download_file FlexibleChecksumError
20000000 bytes: get_object FlexibleChecksumError, download_file wrote the wrong bytes"
mkdir "$work/files"
if ! found=$(TMPDIR="$work" AWS_CONFIG_FILE=/dev/null NO_PROXY=127.0.0.1 \
  "$work/venv/bin/python" "$work/download.py" "$work/files" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(boto3|botocore|s3transfer) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
