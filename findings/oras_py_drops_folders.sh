#!/usr/bin/env bash
# oras 0.2.43 (oras-py): OrasClient.push names each layer by the last part of its file's path. Files of a model in several
# folders, as diffusers lays them out, are pushed under one title, and pull writes all of them to one path, one after the
# other: the last one stays, the others are gone, and so are the folders. Neither call raises or warns; pull returns the one
# path several times. A set of shards in numbered folders ends as one shard.
#
# Why, in the source of 0.2.43: provider.py takes `os.path.basename` of each path as `org.opencontainers.image.title`, and
# pull joins the title to the folder it writes to, with `overwrite=True` as its default. The digests are right, each of its
# own layer, so nothing that compares digests finds this.
#
# Seen with three files that differ, each pushed by its path below the working folder:
#     pushed: text_encoder/config.json, unet/config.json, vae/config.json
#     titles: config.json, config.json, config.json
#     pulled: config.json of vae
#     returned: config.json, config.json, config.json
#
# Installs the package into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check oras==0.2.43 requests==2.34.2

cat > "$work/registry.py" <<'PYTHON'
"""Push files of three folders to a registry in memory (OCI distribution specification 1.1), pull them, and print both."""

import hashlib
import json
import os
import pathlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from oras.client import OrasClient

blobs, manifests = {}, {}


class Registry(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.body()
        self.answer(202, b"", {"Location": f"{self.path.partition('?')[0]}one"})

    def do_PUT(self):
        data = self.body()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if "/manifests/" in self.path:
            manifests[self.path.rpartition("/")[2]] = manifests[digest] = data
        else:
            blobs[digest] = data
        self.answer(201, b"", {"Location": self.path.partition("?")[0], "Docker-Content-Digest": digest})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        found = (manifests if "/manifests/" in self.path else blobs).get(self.path.rpartition("/")[2])
        if found is None:
            return self.answer(404, b"", {})
        kind = "application/vnd.oci.image.manifest.v1+json" if "/manifests/" in self.path else "application/octet-stream"
        self.answer(200, found, {"Content-Type": kind})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
threading.Thread(target=server.serve_forever, daemon=True).start()
model, target = pathlib.Path(sys.argv[1]) / "model", f"127.0.0.1:{server.server_port}/acme/pipeline:v1"
files = []
for part in ("text_encoder", "unet", "vae"):
    (model / part).mkdir(parents=True)
    (model / part / "config.json").write_text(json.dumps({"part": part}))
    files.append(f"{part}/config.json")
os.chdir(model)
client = OrasClient(hostname=f"127.0.0.1:{server.server_port}", insecure=True)
client.push(target=target, files=files)
returned = client.pull(target=target, outdir=str(model.parent / "pulled"))
pulled = [path for path in (model.parent / "pulled").rglob("*") if path.is_file()]
layers = json.loads(manifests["v1"])["layers"]
print("pushed:", ", ".join(files))
print("titles:", ", ".join(layer["annotations"]["org.opencontainers.image.title"] for layer in layers))
print("pulled:", ", ".join(f"{path.relative_to(model.parent / 'pulled')} of {json.loads(path.read_text())['part']}" for path in pulled))
print("returned:", ", ".join(os.path.relpath(path, model.parent / "pulled") for path in returned))
PYTHON

expected="pushed: text_encoder/config.json, unet/config.json, vae/config.json
titles: config.json, config.json, config.json
pulled: config.json of vae
returned: config.json, config.json, config.json"
if ! found=$(TMPDIR="$work" HOME="$work" NO_PROXY=127.0.0.1 "$work/venv/bin/python" "$work/registry.py" "$work" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(oras|requests) '
echo "$found"
if [ "$found" != "$expected" ]; then
  cat "$work/errors" >&2
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
