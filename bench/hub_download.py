"""Download a repository with huggingface_hub: `hub_download.py REPOSITORY FOLDER [--durable]`.

Law: a separate program, so that its CPU time and memory are counted apart from the benchmark's. HF_ENDPOINT names the
Hub. With `--durable` each file is synced and its sha256 compared with the Hub's, as the library does neither.
"""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import snapshot_download


def main(repository: str, folder: str, *options: str) -> int:
    """Return the exit code: 1 where a file's sha256 differs."""
    snapshot = Path(snapshot_download(repository, cache_dir=folder))
    if "--durable" not in options:
        return 0
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(len(files)) as pool:
        return 0 if all(pool.map(_sync_and_compare, files)) else 1


def _sync_and_compare(path: Path) -> bool:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    expected = path.resolve().name  # its cache names a file by the Hub's ETag: a sha256, or the 40 digits of Git's sha1
    return len(expected) != len(sha256) or expected == sha256


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
