#!/usr/bin/env bash
# huggingface_hub 2.4.0: snapshot_download(revision=<full commit hash>, local_dir=folder) returns the folder with the files
# of another commit, or of another repository, where the Hub cannot be reached or answers 404, as it does once a repository is
# deleted or made private; hf_hub_download does so for one file. A commit that the folder never held is no exception.
# Nothing is raised, though the documentation names RepositoryNotFoundError, and IncompleteSnapshotError for what is
# missing. The folder's own metadata says for each file which commit it is of, and is not asked. A warning in the log tells
# that the remote repository could not be accessed, not that the files are of another commit. With the Hub there, and
# without local_dir, the same calls give the commit that was asked for, or raise.
#
# Why, in the source of 2.4.0: snapshot_download returns any local_dir that is not empty, unless the list of files of that
# commit, kept from an earlier download, names one that is absent; it compares names alone. _hf_hub_download_to_local_dir
# returns a file that is there wherever the Hub did not answer as it should.
#
# Seen with a repository of two commits, of which the folder got first the one and then the other:
#     the Hub answers: commit 1: snapshot_download gives commit 1, hf_hub_download gives commit 1
#     the Hub answers: commit 2: snapshot_download gives commit 2, hf_hub_download gives commit 2
#     the Hub says 404: commit 1: snapshot_download gives commit 2, hf_hub_download gives commit 2
#     the Hub says 404: commit 3: snapshot_download gives commit 2, hf_hub_download gives commit 2
#     the Hub says 404: another repository: snapshot_download gives commit 2, hf_hub_download gives commit 2
#     the Hub says 404, no local_dir: commit 3: snapshot_download RepositoryNotFoundError, hf_hub_download RepositoryNotFoundError
#     local_files_only: commit 1: snapshot_download gives commit 2, hf_hub_download gives commit 2
#     the Hub is away: commit 1: snapshot_download gives commit 2, hf_hub_download gives commit 2
#     the Hub is away: commit 3: snapshot_download gives commit 2, hf_hub_download gives commit 2
#     the Hub is away: another repository: snapshot_download gives commit 2, hf_hub_download gives commit 2
#
# Installs the package into a temporary folder, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0 httpx2==2.16.2

cat > "$work/hub.py" <<'PYTHON'
"""Serve a repository of two commits as a Hub does, and print which commit each call gives."""

import hashlib
import json
import os
import pathlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

work = pathlib.Path(sys.argv[1])
COMMITS = {"1" * 40: b"commit 1", "2" * 40: b"commit 2"}  # each with a file of its own, and one name
NAME = "model.safetensors"
hub = {"says 404": False}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].split("/")
        data = next((COMMITS[part] for part in path if part in COMMITS), None)
        if hub["says 404"] or data is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if "tree" in path:
            files = [{"type": "file", "path": NAME, "size": len(data), "oid": blob}]
            return self.answer(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        commit = path[path.index("resolve") + 1]
        return self.answer(200, data, {"ETag": f'"{blob}"', "X-Repo-Commit": commit})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from huggingface_hub import hf_hub_download, snapshot_download  # noqa: E402 - reads HF_ENDPOINT


def given(call, **options):
    try:
        path = pathlib.Path(call(**options))
    except Exception as error:
        return type(error).__name__
    return "gives " + (path / NAME if path.is_dir() else path).read_text()


def show(when, what, digit, repository="acme/tiny", **options):
    options = {"repo_id": repository, "revision": digit * 40, **options}
    one, all_of_them = given(hf_hub_download, filename=NAME, **options), given(snapshot_download, **options)
    print(f"{when}: {what}: snapshot_download {all_of_them}, hf_hub_download {one}")


def show_what_is_pinned(when):
    show(when, "commit 1", "1", local_dir=work / "folder")
    show(when, "commit 3", "3", local_dir=work / "folder")
    show(when, "another repository", "1", "acme/other", local_dir=work / "folder")


show("the Hub answers", "commit 1", "1", local_dir=work / "folder")
show("the Hub answers", "commit 2", "2", local_dir=work / "folder")
hub["says 404"] = True
show_what_is_pinned("the Hub says 404")
show("the Hub says 404, no local_dir", "commit 3", "3")
show("local_files_only", "commit 1", "1", local_dir=work / "folder", local_files_only=True)
server.shutdown()
server.server_close()
show_what_is_pinned("the Hub is away")
PYTHON

expected="the Hub answers: commit 1: snapshot_download gives commit 1, hf_hub_download gives commit 1
the Hub answers: commit 2: snapshot_download gives commit 2, hf_hub_download gives commit 2
the Hub says 404: commit 1: snapshot_download gives commit 2, hf_hub_download gives commit 2
the Hub says 404: commit 3: snapshot_download gives commit 2, hf_hub_download gives commit 2
the Hub says 404: another repository: snapshot_download gives commit 2, hf_hub_download gives commit 2
the Hub says 404, no local_dir: commit 3: snapshot_download RepositoryNotFoundError, hf_hub_download RepositoryNotFoundError
local_files_only: commit 1: snapshot_download gives commit 2, hf_hub_download gives commit 2
the Hub is away: commit 1: snapshot_download gives commit 2, hf_hub_download gives commit 2
the Hub is away: commit 3: snapshot_download gives commit 2, hf_hub_download gives commit 2
the Hub is away: another repository: snapshot_download gives commit 2, hf_hub_download gives commit 2"
mkdir "$work/hub"
if ! found=$(TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=0 HF_HUB_DISABLE_PROGRESS_BARS=1 NO_PROXY=127.0.0.1 \
  "$work/venv/bin/python" "$work/hub.py" "$work/hub" 2> "$work/errors"); then
  cat "$work/errors" >&2
fi
"$work/venv/bin/python" -m pip list --disable-pip-version-check 2> "$work/errors" | grep -E '^(huggingface_hub|httpx2) '
echo "$found"
if [ "$found" != "$expected" ]; then
  echo "this is not what was seen with these versions" >&2
  exit 1
fi
