"""The files of a local folder, as a version's content.

Law: reads names and attributes, never bytes, and never leaves the folder: a symlink is followed only to a plain file
inside. In a folder laid out as huggingface_hub's cache (`<repo>/snapshots/<commit>`, whose files are links into
`<repo>/blobs`), that `blobs` folder counts as inside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.program import limits
from cached.core.listing import Unlisted, check_names, format_path, is_reserved

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file of the folder: `path` within it, the `real` path to open, `size` in bytes, and a `validator`."""

    path: str
    real: Path
    size: int
    validator: str


@dataclass(frozen=True, slots=True)
class OddEntry:
    """An entry that is no content: a dangling or escaping link, a socket, an unreadable entry. `problem`: the
    reason."""

    path: str
    problem: HoldfastError


@dataclass(frozen=True, slots=True)
class Tree:
    """The entries of a folder, without `.holdfast/`, also with invalid names: the check follows the choice."""

    files: tuple[PlainFile, ...]
    odd: tuple[OddEntry, ...]
    unlisted: tuple[Unlisted, ...]


class _LinkedFolder(Permanent):
    """A symlink to a folder, where a plain file was expected."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__("bad_file", message, remedy)


def walk(base: Path) -> Tree:
    """List the entries under `base`, sorted by path. Raises `HoldfastError` only if `base` itself cannot be listed."""
    root = Path(os.path.realpath(base))
    found = _Walk(_inside(root))
    try:
        found.add(root, "")
    except OSError as error:
        raise file_error(error, root) from error
    while found.folders:
        prefix = found.folders.pop()
        try:
            found.add(root / prefix, prefix)
        except OSError as error:
            found.unlisted.append(Unlisted(prefix, file_error(error, root / prefix)))
    return Tree(
        tuple(sorted(found.files, key=lambda file: file.path)),
        tuple(sorted(found.odd, key=lambda entry: entry.path)),
        tuple(sorted(found.unlisted, key=lambda folder: folder.path)),
    )


def plain_files(base: Path, left_out: Callable[[str], bool]) -> tuple[PlainFile, ...]:
    """Return the files under `base` without those that are `left_out`: all of them belong to a version.

    Raises `Permanent` with the path for an entry that is no content (an escaping or dangling link, a socket, a device,
    a name invalid in a manifest) or unreadable, and `Transient` for a change or failure during the walk.
    """
    tree = walk(base)
    problems = [(entry.path, entry.problem) for entry in tree.odd]
    problems += [(f"{folder.path}x", folder.problem) for folder in tree.unlisted]
    for path, problem in problems:
        if not left_out(path):
            raise problem
    files = tuple(file for file in tree.files if not left_out(file.path))
    check_names(str(base), (file.path for file in files))
    return files


def find_inside(base: Path, name: str) -> PlainFile:
    """Return the file `name` in the folder `base`, which a manifest lists. Raises as `plain_files` does."""
    root = Path(os.path.realpath(base))
    return _follow(root / name, name, _inside(root))


def find_file(path: Path) -> PlainFile:
    """Return one file, following links to any place: its user named it. Raises as `plain_files` does."""
    real = Path(os.path.realpath(path))
    try:
        return _plain(real, path.name, os.stat(real), path)
    except OSError as error:
        raise file_error(error, path) from error


def validator(found: os.stat_result) -> str:
    """Return a validator, which changes whenever a file's bytes may have changed."""
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


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


class _Walk:
    """The state of a walk: the entries found, and the folders still to list."""

    def __init__(self, inside: tuple[Path, ...]) -> None:
        self._inside = inside
        self.folders: list[str] = []
        self.files: list[PlainFile] = []
        self.odd: list[OddEntry] = []
        self.unlisted: list[Unlisted] = []

    def add(self, folder: Path, prefix: str) -> None:
        """List one folder. Raises OSError if it cannot be listed, and keeps the entries before that."""
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if not is_reserved(name):
                    self._add_entry(entry, name)

    def _add_entry(self, entry: os.DirEntry[str], name: str) -> None:
        try:
            if entry.is_dir(follow_symlinks=False):
                self.folders.append(f"{name}/")
            else:
                self.files.append(_look(Path(entry.path), name, self._inside))
        except _LinkedFolder as error:
            self.unlisted.append(Unlisted(f"{name}/", error))
        except OSError as error:
            self.odd.append(OddEntry(name, file_error(error, Path(entry.path))))
        except HoldfastError as error:
            self.odd.append(OddEntry(name, error))


def _inside(root: Path) -> tuple[Path, ...]:
    if root.parent.name == "snapshots":
        return root, root.parent.parent / "blobs"
    return (root,)


def _look(path: Path, name: str, inside: tuple[Path, ...]) -> PlainFile:
    found = os.lstat(path)
    if not stat.S_ISLNK(found.st_mode):
        return _plain(path, name, found, path)
    return _follow(path, name, inside)


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
        raise _LinkedFolder(problem, remedy) if stat.S_ISDIR(found.st_mode) else Permanent("bad_file", problem, remedy)
    return _plain(real, name, found, path)


def _plain(real: Path, name: str, found: os.stat_result, shown_as: Path) -> PlainFile:
    if stat.S_ISDIR(found.st_mode):
        problem = f"{format_path(str(shown_as))}: expected a plain file, found a folder behind a symlink"
        raise _LinkedFolder(problem, "put the folder itself there, or leave it out")
    if not stat.S_ISREG(found.st_mode):
        problem = f"{format_path(str(shown_as))}: expected a plain file, found a socket, pipe or device"
        raise Permanent("bad_file", problem, "remove it from the folder, or leave it out")
    return PlainFile(name, real, found.st_size, validator(found))
