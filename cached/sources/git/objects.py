"""Commits, tags and trees, and the files that a tree has.

Law: pure. What no tree of Git has (a path trick, a name twice) is an error of that file, or of the answer; a tree that
repeats itself is bounded. Format: git-mktree(1), git-mktag(1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import MAX_SEGMENT_BYTES
from cached.core.listing import Unlisted, bad_name
from cached.sources.git.pack import BLOB, COMMIT, TAG, TREE, Objects

MAX_FILES = 50_000
_MAX_DEPTH = 64
_MAX_FOLDERS = 50_000
_MAX_NAME_BYTES = MAX_SEGMENT_BYTES + 1
_COMMIT = re.compile(rb"tree ([0-9a-f]{40})\n")
_TAG = re.compile(rb"object ([0-9a-f]{40})\ntype (commit|tree|blob|tag)\n")
_ENTRY = re.compile(rb"([0-7]{5,6}) ([^\0]*)\0(.{20})", re.DOTALL)
_KIND_BITS, _FOLDER, _FILE, _SYMLINK, _SUBMODULE = 0o170000, 0o040000, 0o100000, 0o120000, 0o160000
_LEFT_OUT = "put a regular file in its place, or leave it out with `exclude`"


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file of a tree: its path, the id of its blob, and why it cannot be fetched, else None."""

    path: str
    oid: str
    problem: HoldfastError | None = None


@dataclass(frozen=True, slots=True)
class CommitTree:
    """The files below a folder by path, and the submodules."""

    files: tuple[TreeFile, ...]
    unlisted: tuple[Unlisted, ...] = ()


@dataclass(frozen=True, slots=True)
class _TreeEntry:
    name: bytes
    kind: int
    oid: str


def peel(objects: Objects, oid: str, where: str) -> tuple[str, bytes]:
    """Return the id and the bytes of the commit that `oid` is, or that it tags. Raises `Permanent` (`not_found`) for a
    tag of something else, `Transient` (`bad_response`)."""
    for _ in range(_MAX_DEPTH):
        kind, data = objects.by_id.get(oid, ("", b""))
        if kind == COMMIT:
            return oid, data
        if not kind:
            raise bad_objects(where, f"no object {oid}")
        match = _TAG.match(data) if kind == TAG else None
        if match is None or match[2].decode() not in (COMMIT, TAG):
            found = kind if match is None else match[2].decode()
            raise Permanent("not_found", f"{where}: expected a commit, found a {found}", "name a branch or a commit")
        oid = match[1].decode()
    raise bad_objects(where, "tags of tags without end")


def tree_of(commit: bytes, where: str) -> str:
    """Return the id of a commit's tree."""
    match = _COMMIT.match(commit)
    if match is None:
        raise bad_objects(where, "a commit without a tree")
    return match[1].decode()


def find_path(objects: Objects, root: str, path: str, where: str) -> tuple[str, str] | None:
    """Return the type (`TREE` or `BLOB`) and the id of what is at `path` below the tree `root`; None for nothing, and
    for a link or a submodule."""
    kind, oid = TREE, root
    for name in path.split("/") if path else ():
        entries = {entry.name: entry for entry in _entries(objects, oid, where)} if kind == TREE else {}
        found = entries.get(name.encode())
        if found is None or found.kind not in (_FOLDER, _FILE):
            return None
        kind, oid = (TREE if found.kind == _FOLDER else BLOB), found.oid
    return kind, oid


def list_tree(objects: Objects, root: str, where: str) -> CommitTree:
    """Return all files below the tree `root`. Raises `Permanent` (`too_many_files`), `Transient` (`bad_response`)."""
    files: list[TreeFile] = []
    unlisted: list[Unlisted] = []
    waiting, folders = [("", root)], 0
    while waiting:
        prefix, oid = waiting.pop()
        folders += 1
        for entry in _entries(objects, oid, where):
            path, problem = _path_of(prefix, entry.name, where)
            if entry.kind == _FOLDER and problem is None:
                waiting.append((f"{path}/", entry.oid))
            elif entry.kind == _FOLDER:
                assert problem is not None
                unlisted.append(Unlisted(f"{path}/", problem))
            elif entry.kind == _SUBMODULE:
                reason = Permanent("submodule", f"{where}: {path!r} is another repository (a submodule)", _LEFT_OUT)
                unlisted.append(Unlisted(f"{path}/", reason))
            else:
                files.append(TreeFile(path, entry.oid, problem or _irregular(entry, path, where)))
        if (
            len(files) + len(unlisted) > MAX_FILES
            or folders + len(waiting) > _MAX_FOLDERS
            or prefix.count("/") > _MAX_DEPTH
        ):
            raise Permanent(
                "too_many_files",
                f"{where}: expected at most {MAX_FILES} files in {_MAX_FOLDERS} folders, {_MAX_DEPTH} deep, found more",
                "name the folder of the repository that holds the version, after `#`",
            )
    return CommitTree(tuple(files), tuple(unlisted))


def bad_objects(where: str, found: str) -> Transient:
    """Return the error of an answer with other objects than were asked for."""
    problem = f"{where}: expected the objects of a commit, found {found}"
    return Transient("bad_response", problem, "check the server: `git fsck` there tells what is broken")


def _path_of(prefix: str, name: bytes, where: str) -> tuple[str, HoldfastError | None]:
    """Return the path of an entry, and the error of a name that no checkout would write."""
    # A longer name is refused below; its tree may be part of fifty thousand folders, each with a path of its own.
    text = name[:_MAX_NAME_BYTES].decode("utf-8", "surrogateescape")
    path = prefix + text
    if not text or "/" in text or text.lower() in (".", "..", ".git"):
        shown = path if text else f"{prefix}(an empty name)"
        remedy = "rename it at the source, or leave it out with `exclude`"
        return shown, Permanent("bad_name", f"{where}: {path[:200]!r} is no path that a checkout may write", remedy)
    return path, bad_name(where, path)


def _irregular(entry: _TreeEntry, path: str, where: str) -> HoldfastError | None:
    if entry.kind == _FILE:
        return None
    what = "a symbolic link" if entry.kind == _SYMLINK else f"an entry of the mode {entry.kind:o}"
    return Permanent("not_a_file", f"{where}: expected a regular file, found {what}: {path[:200]!r}", _LEFT_OUT)


def _entries(objects: Objects, oid: str, where: str) -> Iterator[_TreeEntry]:
    data = objects.find(oid, TREE)
    if data is None:
        raise bad_objects(where, f"no tree {oid}")
    at, names = 0, set[bytes]()
    while at < len(data):
        match = _ENTRY.match(data, at)
        if match is None or match[2] in names:
            raise bad_objects(where, f"a tree ({oid}) that is malformed" if match is None else "a name twice in a tree")
        names.add(match[2])
        yield _TreeEntry(match[2], int(match[1], 8) & _KIND_BITS, match[3].hex())
        at = match.end()
