#!/usr/bin/env bash
# huggingface_hub 2.4.0: a file that HfFileSystem has opened gives bytes of two commits where the branch moves while it is
# read. Nothing is raised, and nothing tells: the sizes are equal, as they are for each next step of a training run. Readers
# that take a safetensors file apart (the header, then tensor after tensor) get some tensors of one commit and some of the
# other, in a file object that was opened once. With block_size=0, one response for all, it happens after a broken
# connection. A full commit hash in the path gives one commit.
#
# Why, in the source of 2.4.0: open() lists the branch's files once, for the size; each block is a request of its own for
# `resolve/main/...`, without If-Match, and neither the ETag nor X-Repo-Commit of an answer is compared with those of the
# last one. The stream goes on after a broken connection in the same way. (hf_hub_download and snapshot_download look up the
# commit first, and ask for that one.)
#
# Seen with a repository whose branch moves to a second commit after the first tensor was read:
#     hf://acme/tiny/model.safetensors: header of commit 1, first tensor of commit 1, last tensor of commit 2
#     the same with block_size=0 and a connection that breaks: header of commit 1, first tensor of commit 1, last tensor of commit 2
#     hf://acme/tiny@<commit 1>/model.safetensors: header of commit 1, first tensor of commit 1, last tensor of commit 1
#
# Installs the package into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0 httpx2==2.16.2 fsspec==2026.9.0

cat > "$work/hub.py" <<'PYTHON'
"""Serve a repository whose branch moves as a Hub does, and print of which commit each part of an open file is."""

import json
import os
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TENSOR_BYTES = 16 << 20  # more than a block of 5 MiB
HEADER = json.dumps(
    {
        name: {"dtype": "U8", "shape": [TENSOR_BYTES], "data_offsets": [n * TENSOR_BYTES, (n + 1) * TENSOR_BYTES]}
        for n, name in enumerate(("first", "last"))
    }
    | {"__metadata__": {"commit": "?"}}
)
COMMITS = {digit * 40: digit for digit in "12"}
NAME = "model.safetensors"
hub = {"main": "1", "breaks": False}


def content(digit):
    header = HEADER.replace("?", digit).encode()
    return struct.pack("<Q", len(header)) + header + digit.encode() * (2 * TENSOR_BYTES)


FILES = {digit: content(digit) for digit in "12"}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0].split("/")
        digit = next((COMMITS[part] for part in path if part in COMMITS), hub["main"])
        data = FILES[digit]
        if "resolve" not in path:
            files = [{"type": "file", "path": NAME, "size": len(data), "oid": digit * 40}]
            about = {"id": "acme/tiny", "sha": digit * 40, "siblings": [{"rfilename": NAME}]}
            return self.answer(200, json.dumps(files if "tree" in path else about).encode(), {"Content-Type": "application/json"})
        headers = {"ETag": f'"{digit}"', "X-Repo-Commit": digit * 40}
        asked = self.headers.get("Range")
        if asked is None:
            return self.answer(200, data, headers)
        first, last = asked.removeprefix("bytes=").split("-")
        last = min(int(last or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.answer(206, data[int(first) : last + 1], headers)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        if hub["breaks"] and len(body) > TENSOR_BYTES:
            hub["breaks"] = False
            body = body[: TENSOR_BYTES + TENSOR_BYTES // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from huggingface_hub import HfFileSystem  # noqa: E402 - reads HF_ENDPOINT


def read(file, size):
    parts = []
    while size and (part := file.read(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def commit_of(data):
    return "commit " + " and ".join(sorted({chr(byte) for byte in set(data)}))


def show(what, path, **options):
    hub["main"] = "1"
    with HfFileSystem(skip_instance_cache=True).open(path, "rb", **options) as file:
        header = json.loads(read(file, struct.unpack("<Q", read(file, 8))[0]))
        first = read(file, TENSOR_BYTES)
        hub["main"] = "2"  # a push
        last = read(file, TENSOR_BYTES)[-(1 << 20) :]
    print(
        f"{what}: header of commit {header['__metadata__']['commit']}, first tensor of {commit_of(first)}, "
        f"last tensor of {commit_of(last)}"
    )


show(f"hf://acme/tiny/{NAME}", f"acme/tiny/{NAME}")
hub["breaks"] = True
show("the same with block_size=0 and a connection that breaks", f"acme/tiny/{NAME}", block_size=0)
show(f"hf://acme/tiny@<commit 1>/{NAME}", f"acme/tiny@{'1' * 40}/{NAME}")
PYTHON

expected="hf://acme/tiny/model.safetensors: header of commit 1, first tensor of commit 1, last tensor of commit 2
the same with block_size=0 and a connection that breaks: header of commit 1, first tensor of commit 1, last tensor of commit 2
hf://acme/tiny@<commit 1>/model.safetensors: header of commit 1, first tensor of commit 1, last tensor of commit 1"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=0 HF_HUB_DISABLE_PROGRESS_BARS=1 NO_PROXY=127.0.0.1 \
  "$work/venv/bin/python" "$work/hub.py" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(huggingface_hub|httpx2|fsspec) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
