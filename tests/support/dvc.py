"""Repositories of DVC: written as DVC 3.67 writes them, and by DVC itself where it is installed (the program `dvc` on
PATH, or named by HOLDFAST_TEST_DVC).

Law: files only; nothing outside the folder is contacted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.hub_cases import write


def md5_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class DvcRepository:
    """A repository in a folder with a remote at `url`, whose files lie in `store`."""

    def __init__(self, folder: Path, store: Path, url: str) -> None:
        self.folder, self.store = folder, store
        store.mkdir(parents=True, exist_ok=True)
        config = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n"
        write(folder, {".dvc/config": config.encode()})

    def configure(self, text: str) -> None:
        """Replace the configuration."""
        write(self.folder, {".dvc/config": text.encode()})

    def add_folder(self, path: str, files: Mapping[str, bytes]) -> None:
        """Track a folder, as `dvc add` and `dvc push` do."""
        entries = [{"md5": self.push(data), "relpath": name} for name, data in sorted(files.items())]
        listing = json.dumps(entries).encode()
        name = self.push(listing, ".dir")
        size = sum(map(len, files.values()))
        self._track(path, f"- md5: {name}.dir\n  size: {size}\n  nfiles: {len(files)}\n  hash: md5\n")

    def add_file(self, path: str, data: bytes) -> None:
        """Track a file."""
        self._track(path, f"- md5: {self.push(data)}\n  size: {len(data)}\n  hash: md5\n")

    def add_old(self, path: str, data: bytes) -> None:
        """Track a file as DVC 2 did: the md5 may be of other ends of lines."""
        name = md5_of(data.replace(b"\r\n", b"\n"))
        write(self.store, {f"{name[:2]}/{name[2:]}": data})
        self._track(path, f"- md5: {name}\n  size: {len(data)}\n")

    def push(self, data: bytes, suffix: str = "") -> str:
        """Store bytes in the remote; return their md5."""
        name = md5_of(data)
        write(self.store, {f"files/md5/{name[:2]}/{name[2:]}{suffix}": data})
        return name

    def _track(self, path: str, out: str) -> None:
        name = path.rpartition("/")[2]
        write(self.folder, {f"{path}.dvc": f"outs:\n{out}  path: {name}\n".encode()})


def run_dvc(folder: Path, *arguments: str) -> None:
    """Run DVC in a repository; skips the test without it."""
    program = os.environ.get("HOLDFAST_TEST_DVC") or shutil.which("dvc")
    if not program:
        pytest.skip("dvc is not installed: put it on PATH, or name it in HOLDFAST_TEST_DVC")
    quiet = {"DVC_NO_ANALYTICS": "1", "HOME": str(folder.parent), "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    path = f"{Path(program).parent}:{os.environ['PATH']}"
    subprocess.run(
        [program, *arguments], cwd=folder, env={**os.environ, **quiet, "PATH": path}, check=True, capture_output=True
    )
