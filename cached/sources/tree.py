"""Walk a folder of plain files, as a version's content.

Law: reads names and attributes, never bytes, and never leaves the folder: a symlink is read through only where it ends
at a plain file inside. In a folder laid out as huggingface_hub's cache (`<repo>/snapshots/<commit>`, whose files are
links into `<repo>/blobs`), that `blobs` folder counts as inside.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.naming import check_names, is_reserved

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file of the folder: `path` within it, the `real` path to open, `size` in bytes, and a `validator`."""

    path: str
    real: Path
    size: int
    validator: str


def walk(base: Path) -> tuple[PlainFile, ...]:
    """List the plain files under `base`, sorted by path, without `.holdfast/`.

    Raises `Permanent` with the path for what is no content (an escaping or dangling link, a socket, a device, a name
    no manifest may carry) or cannot be read, and `Transient` for what changed or failed meanwhile.
    """
    root = Path(os.path.realpath(base))
    inside = _inside(root)
    found: list[PlainFile] = []
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = os.path.relpath(entry.path, root)
                    if is_reserved(name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        found.append(_look(Path(entry.path), name, inside))
        except OSError as error:
            raise file_error(error, folder) from error
    found.sort(key=lambda file: file.path)
    check_names(str(base), (file.path for file in found))
    return tuple(found)


def look_inside(base: Path, name: str) -> PlainFile:
    """Look at the file `name` of the folder `base`, which a manifest lists. Raises as `walk` does."""
    root = Path(os.path.realpath(base))
    return _follow(root / name, name, _inside(root))


def look_at(path: Path) -> PlainFile:
    """Look at one file, following links wherever they lead: its user named it. Raises as `walk` does."""
    real = Path(os.path.realpath(path))
    try:
        return _plain(real, path.name, os.stat(real), path)
    except OSError as error:
        raise file_error(error, path) from error


def validator(found: os.stat_result) -> str:
    """What changes whenever a file's bytes may have changed."""
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


def file_error(error: OSError, path: Path) -> HoldfastError:
    """Our error for a failed look at `path`."""
    reason = error.strerror or type(error).__name__
    if error.errno in _MISSING:
        return Permanent("not_found", f"{path}: {reason}", "check the path, and that the volume is mounted there")
    if error.errno in _FORBIDDEN:
        return Permanent("forbidden", f"{path}: {reason}", "let the user that runs this process read it")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return Permanent("bad_path", f"{path}: {reason}", "mend the path or the links on it")
    return Transient("read", f"{path}: {reason}", "check the volume, or the NFS server behind it")


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
                "bad_file", f"{path} is a symlink to nothing ({os.readlink(path)})", "mend or remove the link"
            ) from error
        raise file_error(error, path) from error
    if not any(real.is_relative_to(folder) for folder in inside):
        raise Permanent(
            "bad_file",
            f"{path} is a symlink that leaves {inside[0]}, to {real}",
            "put the file itself there (`cp -rL` copies a tree with its links read through)",
        )
    return _plain(real, name, found, path)


def _plain(real: Path, name: str, found: os.stat_result, shown: Path) -> PlainFile:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder behind a symlink" if stat.S_ISDIR(found.st_mode) else "a socket, pipe or device"
        raise Permanent("bad_file", f"{shown}: expected a plain file, found {kind}", "remove it from the folder")
    return PlainFile(name, real, found.st_size, validator(found))
