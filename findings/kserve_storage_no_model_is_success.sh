#!/usr/bin/env bash
# kserve-storage 0.21.0 (KServe's storage initializer) with huggingface_hub 2.4.0: Storage.download("hf://…", folder) returns
# as after a download where the repository does not exist, is private or gated, or the Hub fails, as soon as the folder is
# not empty: the lost+found of a new ext4 volume is enough. No file comes, "Successfully copied" is logged, and a model that
# was there before stays in place of the one that was asked for. In an empty folder the same calls raise. That the
# initializer handles these errors by name, and that the library's documentation names them, does not help.
#
# Why, in the sources: _download_hf of the initializer takes what snapshot_download(local_dir=…) returns for success; that
# returns any local_dir with something in it, whatever the Hub answered, and logs a warning at most.
#
# Seen with a stand-in for the Hub that gives each answer to every request:
#     404, no such repository: empty folder: RuntimeError; with lost+found: success, 0 files; with another model: success, 1 files
#     401, private repository: empty folder: RuntimeError; with lost+found: success, 0 files; with another model: success, 1 files
#     403, gated repository: empty folder: RuntimeError; with lost+found: success, 0 files; with another model: success, 1 files
#     500, the Hub fails: empty folder: LocalEntryNotFoundError; with lost+found: success, 0 files; with another model: success, 1 files
#
# Installs the packages into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check kserve-storage==0.21.0 huggingface_hub==2.4.0

cat > "$work/download.py" <<'PYTHON'
"""Download from a Hub that refuses, into an empty folder and into two that are not; print what the initializer says."""

import os
import pathlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    "404, no such repository": (404, "RepoNotFound"),
    "401, private repository": (401, "RepoNotFound"),
    "403, gated repository": (403, "GatedRepo"),
    "500, the Hub fails": (500, None),
}
now = []


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        status, code = now[0]
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from kserve_storage import Storage  # noqa: E402 - reads HF_ENDPOINT


def said(folder):
    try:
        Storage.download("hf://acme/tiny", str(folder))
    except Exception as error:
        return type(error).__name__
    return f"success, {sum(path.is_file() for path in folder.rglob('*'))} files"


for number, (shown, answer) in enumerate(ANSWERS.items()):
    now[:] = [answer]
    work = pathlib.Path(sys.argv[1], str(number))
    (work / "empty").mkdir(parents=True)
    (work / "volume" / "lost+found").mkdir(parents=True)
    (work / "used").mkdir()
    (work / "used" / "model.safetensors").write_bytes(b"of another model")
    print(
        f"{shown}: empty folder: {said(work / 'empty')}; with lost+found: {said(work / 'volume')}; "
        f"with another model: {said(work / 'used')}"
    )
PYTHON

expected="404, no such repository: empty folder: RuntimeError; with lost+found: success, 0 files; with another model: success, 1 files
401, private repository: empty folder: RuntimeError; with lost+found: success, 0 files; with another model: success, 1 files
403, gated repository: empty folder: RuntimeError; with lost+found: success, 0 files; with another model: success, 1 files
500, the Hub fails: empty folder: LocalEntryNotFoundError; with lost+found: success, 0 files; with another model: success, 1 files"
mkdir "$work/models"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=0 HF_TOKEN='' NO_PROXY=127.0.0.1 \
  "$work/venv/bin/python" "$work/download.py" "$work/models" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(kserve-storage|huggingface_hub) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
