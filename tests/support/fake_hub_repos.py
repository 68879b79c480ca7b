"""The repositories of the fake Hub: folders on disk, seen as commits with Git and Git LFS ids.

Law: reads the folders it is given, computes the ids that Git would, serves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf", ".pt"})
LFS_THRESHOLD = 1024 * 1024  # bytes; the real Hub takes 10 MB


class Access(Enum):
    """Who may read a repository. As on the Hub, a gated one can be listed by anyone and read by the granted."""

    PUBLIC = "public"
    GATED = "gated"
    PRIVATE = "private"
    DISABLED = "disabled"


@dataclass(frozen=True)
class HubFile:
    """One file of a commit. `oid` is the Git blob id of what Git holds: the content, or the LFS pointer."""

    path: str
    disk: Path
    size: int
    oid: str
    sha256: str | None
    pointer_size: int

    def tree_entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": self.path}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry

    def sibling(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": self.path, "size": self.size, "blobId": self.oid}
        if self.sha256:
            entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry


@dataclass
class Repository:
    """A repository: its commits, what its branches and tags point to, and whom it is open to.

    `extra_entries`, as of a tree, are sent after both listings' own, as a hostile or broken Hub would.
    """

    name: str
    access: Access = Access.PUBLIC
    granted: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    extra_entries: list[Any] = field(default_factory=list)

    def commit(self, folder: Path, branch: str = "main", lfs_threshold: int = LFS_THRESHOLD) -> str:
        """Make a commit of `folder` as it is now, and point `branch` to it. The files must stay as they are."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {file.path: file for file in (_hub_file(folder, path, lfs_threshold) for path in paths)}
        named = "".join(f"{file.oid} {file.path}\n" for file in files.values())
        parent = self.refs.get(branch, "")
        commit = hashlib.sha1(f"{self.name}\n{parent}\n{named}".encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag, a commit or a prefix of one."""
        if revision in self.refs:
            return self.refs[revision]
        if len(revision) < 7:
            return None
        return next((commit for commit in self.commits if commit.startswith(revision)), None)

    def tree(self, commit: str, folder: str) -> list[Any] | None:
        """The recursive listing of `folder` (empty: the whole), or None where there is none."""
        prefix = f"{folder}/" if folder else ""
        files = {path: file for path, file in self.commits[commit].items() if path.startswith(prefix)}
        if not files and folder:
            return None
        return [*_folders(files, prefix), *(file.tree_entry() for file in files.values()), *self.extra_entries]

    def siblings(self, commit: str, *, with_blobs: bool) -> list[Any]:
        """The files in the metadata of a revision, with ids and sizes only `with_blobs`."""
        files = [*(file.sibling() for file in self.commits[commit].values()), *map(_as_sibling, self.extra_entries)]
        if with_blobs:
            return files
        return [{"rfilename": file.get("rfilename")} for file in files if isinstance(file, dict)]


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _folders(files: Mapping[str, HubFile], prefix: str) -> list[dict[str, Any]]:
    parents = {str(parent) for path in files for parent in Path(path).parents if str(parent).startswith(prefix)}
    return [
        {"type": "directory", "oid": git_blob_id(parent.encode()), "size": 0, "path": parent}
        for parent in sorted(parents - {"."})
    ]


def _as_sibling(entry: Any) -> Any:
    """An extra entry of the tree, in the words of a revision's metadata."""
    if not isinstance(entry, dict):
        return entry
    names = {"path": "rfilename", "oid": "blobId"}
    sibling = {names.get(name, name): value for name, value in entry.items() if name != "type"}
    if isinstance(sibling.get("lfs"), dict):
        sibling["lfs"] = {"sha256" if name == "oid" else name: value for name, value in sibling["lfs"].items()}
    return sibling


def _hub_file(folder: Path, disk: Path, lfs_threshold: int) -> HubFile:
    path, size = disk.relative_to(folder).as_posix(), disk.stat().st_size
    if size < lfs_threshold and disk.suffix not in LFS_SUFFIXES:
        return HubFile(path, disk, size, git_blob_id(disk.read_bytes()), None, 0)
    with disk.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return HubFile(path, disk, size, git_blob_id(pointer), sha256, len(pointer))
