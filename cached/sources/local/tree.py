"""The files of a local folder, as a version's content.

Law: reads names and attributes, never bytes, and never leaves the folder: a symlink is followed only to a plain file
inside. In a folder laid out as huggingface_hub's cache (`<repo>/snapshots/<commit>`, whose files are links into
`<repo>/blobs`), that `blobs` folder counts as inside.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.program import limits
from cached.core.listing import Unlisted, format_path, is_reserved
from cached.transport.target import local_validator

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file of the folder: `path` within it, the `real` path to open, `size` in bytes, and a `validator`."""

    path: str
    real: Path
    size: int
    validator: str


@dataclass(slots=True)
class FolderTree:
    """The entries of a folder, without `.holdfast/`, also with invalid names: the check follows the choice.

    `odd`: entries that are no content (a dangling or escaping link, a socket, an unreadable entry) by path, each with
    the reason. `folders`: the prefixes of all folders, empty or with a `/` at the end.
    """

    files: list[PlainFile] = field(default_factory=list)
    odd: dict[str, HoldfastError] = field(default_factory=dict)
    unlisted: list[Unlisted] = field(default_factory=list)
    folders: list[str] = field(default_factory=lambda: [""])


class _LinkedFolder(Permanent):
    """A symlink to a folder, where a plain file was expected."""


def walk(base: Path) -> FolderTree:
    """List the entries under `base`, files by path. Raises `HoldfastError` only if `base` itself cannot be listed."""
    root = Path(os.path.realpath(base))
    inside, tree = _inside(root), FolderTree()
    for prefix in tree.folders:  # grows by the folders found
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if not is_reserved(prefix + entry.name):
                        _add_entry(tree, entry, prefix + entry.name, inside)
        except OSError as error:
            if not prefix:
                raise file_error(error, root) from error
            tree.unlisted.append(Unlisted(prefix, file_error(error, root / prefix)))
    tree.files.sort(key=lambda file: file.path)
    tree.unlisted.sort(key=lambda folder: folder.path)
    return tree


def find_inside(base: Path, name: str) -> PlainFile:
    """Return the file `name` in the folder `base`, which a manifest lists.

    Raises `Permanent` with the path for an entry that is no content (an escaping or dangling link, a socket, a device)
    or unreadable, and `Transient` for a change or failure during it.
    """
    root = Path(os.path.realpath(base))
    return _follow(root / name, name, _inside(root))


def find_file(path: Path) -> PlainFile:
    """Return one file, following links to any place: its user named it. Raises as `find_inside` does."""
    real = Path(os.path.realpath(path))
    try:
        return _plain(real, path.name, os.stat(real), path)
    except OSError as error:
        raise file_error(error, path) from error


def file_error(error: OSError, path: Path) -> HoldfastError:
    """Return our error for an `OSError` at `path`."""
    short = limits.find_limit_error(error, f"looking at {format_path(str(path))}")
    if short is not None:
        return short
    problem = f"{format_path(str(path))}: {error.strerror or type(error).__name__}"
    if error.errno in _MISSING:
        return Permanent("not_found", problem, "check the path, and that the volume is mounted there")
    if error.errno in _FORBIDDEN:
        return Permanent("forbidden", problem, "let the user that runs this process read it, or leave it out")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return Permanent("bad_path", problem, "mend the path or the links on it")
    return Transient("read", problem, "check the volume, or the NFS server behind it")


def _add_entry(tree: FolderTree, entry: os.DirEntry[str], name: str, inside: tuple[Path, ...]) -> None:
    path = Path(entry.path)
    try:
        if entry.is_dir(follow_symlinks=False):
            tree.folders.append(f"{name}/")
        elif entry.is_symlink():
            tree.files.append(_follow(path, name, inside))
        else:
            tree.files.append(_plain(path, name, os.lstat(path), path))
    except _LinkedFolder as error:
        tree.unlisted.append(Unlisted(f"{name}/", error))
    except OSError as error:
        tree.odd[name] = file_error(error, path)
    except HoldfastError as error:
        tree.odd[name] = error


def _inside(root: Path) -> tuple[Path, ...]:
    if root.parent.name == "snapshots":
        return root, root.parent.parent / "blobs"
    return (root,)


def _follow(path: Path, name: str, inside: tuple[Path, ...]) -> PlainFile:
    try:
        real = Path(os.path.realpath(path, strict=True))
        found = os.stat(real)
    except OSError as error:
        if error.errno in _MISSING and path.is_symlink():
            raise Permanent(
                "bad_file",
                f"{format_path(str(path))} is a symlink to nothing ({format_path(os.readlink(path))})",
                "mend or remove the link, or leave it out",
            ) from error
        raise file_error(error, path) from error
    if not any(real.is_relative_to(folder) for folder in inside):
        link, top, target = (format_path(str(each)) for each in (path, inside[0], real))
        problem = f"{link} is a symlink that leaves {top}, to {target}"
        remedy = "put the file itself there (`cp -rL` copies a tree with its links read through), or leave it out"
        raise (_LinkedFolder if stat.S_ISDIR(found.st_mode) else Permanent)("bad_file", problem, remedy)
    return _plain(real, name, found, path)


def _plain(real: Path, name: str, found: os.stat_result, shown_as: Path) -> PlainFile:
    if stat.S_ISDIR(found.st_mode):
        problem = f"{format_path(str(shown_as))}: expected a plain file, found a folder behind a symlink"
        raise _LinkedFolder("bad_file", problem, "put the folder itself there, or leave it out")
    if not stat.S_ISREG(found.st_mode):
        problem = f"{format_path(str(shown_as))}: expected a plain file, found a socket, pipe or device"
        raise Permanent("bad_file", problem, "remove it from the folder, or leave it out")
    return PlainFile(name, real, found.st_size, local_validator(found))
