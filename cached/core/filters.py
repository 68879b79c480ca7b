"""The files of a listing that belong to a version: a catalog entry's globs, and the built-in filter of clutter.

Law: pure. First select, then judge: a file that the filters leave out never fails a version, whatever its name.
Globs are those of the Hugging Face Hub: `fnmatch` on the whole path, case-sensitive, so that `*` crosses `/`; a pattern
that ends in `/` selects everything under that folder. Patterns and paths are compared in Unicode normal form C: an
editor writes NFC into the catalog, macOS another form into file names.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase, translate

from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import Listing, RemoteFile, Unlisted, check_names, format_path

_CLUTTER_FOLDERS = frozenset({".git", ".cache", "__MACOSX"})
_CLUTTER_FILES = frozenset({".gitattributes", ".gitignore", ".DS_Store", "Thumbs.db"})
_APPLE_DOUBLE = "._"  # macOS's metadata of a file on a foreign file system
_LOST_AND_FOUND = "lost+found/"  # by fsck, at the top of an ext file system
_SAFETENSORS = "model*.safetensors"
# The same weights in other frameworks' formats, as transformers names them, with the indexes of their shards.
_OTHER_FORMATS = re.compile(
    r"(?:pytorch_model.*\.bin|tf_model.*\.h5|flax_model.*\.msgpack)(?:\.index\.json)?|rust_model\.ot", re.DOTALL
)


def choose_files(
    listing: Listing, where: str, include: Sequence[str], exclude: Sequence[str]
) -> tuple[RemoteFile, ...]:
    """Return the files of `listing` that belong to a version; `where` is the source without credentials.

    The built-in filter does not apply to a manifest. Raises `Permanent` (`bad_name`) for a chosen name that is invalid
    in a manifest, the `problem` of a chosen file, and `Permanent` (`nothing_selected`).
    """
    own = set(select_paths((file.path for file in listing.files), include, exclude))
    open_folders = [folder for folder in listing.unlisted if may_select_below(folder.path, include, exclude)]
    if listing.manifest is None:
        # One file represents a folder that cannot be listed: if it is clutter, all files below are.
        inside = {f"{folder.path}x": folder for folder in open_folders}
        kept = set(without_clutter([*own, *inside]))
        own &= kept
        open_folders = [folder for path, folder in inside.items() if path in kept]
    chosen = tuple(file for file in listing.files if file.path in own)
    check_names(where, (file.path for file in chosen))
    _raise_problems(listing, chosen, open_folders, include)
    if not chosen:
        raise nothing_selected(where, [file.path for file in listing.files], include, exclude)
    return chosen


def select_paths(paths: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that match any of `include` (empty: all paths) and none of `exclude`, in their order."""
    wanted, unwanted = _matcher(include), _matcher(exclude)

    def is_selected(form: str) -> bool:
        return (not include or wanted.match(form) is not None) and not (exclude and unwanted.match(form))

    return tuple(path for path in paths if is_selected(_form(path)))


def may_select_below(folder: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return whether a path under `folder` (which ends in `/`) could be selected; False is certain, True is not."""
    place = _form(folder)
    if any(pattern.endswith("*") and fnmatchcase(place, pattern) for pattern in map(_whole, exclude)):
        return False
    return not include or any(_reaches_below(place, pattern) for pattern in map(_whole, include))


def without_clutter(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths without files of version control, caches, desktops and `fsck`, and without duplicate weights in
    another format: next to `model*.safetensors` in the same folder, or under `original/` if the root has those.

    The same folder, because elsewhere a `pytorch_model.bin` may be the only copy of its part of the model.
    """
    kept = [path for path in paths if not is_clutter(path)]
    parts = [path.rpartition("/") for path in kept]
    twice = {folder for folder, _, name in parts if fnmatchcase(name, _SAFETENSORS)}
    return tuple(
        path
        for path, (folder, _, name) in zip(kept, parts, strict=True)
        if not (folder in twice and _OTHER_FORMATS.fullmatch(name))
        and not ("" in twice and path.startswith("original/"))
    )


def is_clutter(path: str) -> bool:
    """Return whether this is a file of version control, a cache, a desktop or `fsck`."""
    *folders, name = path.split("/")
    return (
        name in _CLUTTER_FILES
        or name.startswith(_APPLE_DOUBLE)
        or path.startswith(_LOST_AND_FOUND)
        or not _CLUTTER_FOLDERS.isdisjoint(folders)
    )


def nothing_selected(where: str, paths: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> Permanent:
    """Return the error of a version without selected files; `where` is the source without credentials."""
    found = ", ".join(map(format_path, paths[:5])) + (", …" if len(paths) > 5 else "") if paths else "none"
    return Permanent(
        "nothing_selected",
        f"{where}: expected files that match include {list(include)} and not exclude {list(exclude)}, "
        f"found none among {len(paths)} files ({found})",
        "correct `include` and `exclude` of the model's entry in the catalog",
    )


def _raise_problems(
    listing: Listing, chosen: Iterable[RemoteFile], folders: Iterable[Unlisted], include: Sequence[str]
) -> None:
    for file in chosen:
        if file.problem is not None:
            raise file.problem
    for folder in folders:
        raise _with_exclude_remedy(folder)
    for file in listing.files:
        # A dangling link may stand for a folder: a pattern that names it as one selects it.
        if file.problem is not None and any(pattern.startswith(f"{file.path}/") for pattern in include):
            raise file.problem


def _with_exclude_remedy(folder: Unlisted) -> HoldfastError:
    """Add the pattern that excludes the folder to its problem: the name alone would match no file."""
    problem = folder.problem
    if not isinstance(problem, Permanent):
        return problem
    remedy = f"{problem.remedy}; a version without it has `exclude: [{json.dumps(folder.path)}]` in the catalog"
    error = Permanent(problem.code, problem.message, remedy)
    error.__cause__ = problem
    return error


def _form(path: str) -> str:
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _whole(pattern: str) -> str:
    return _form(pattern + "*" if pattern.endswith("/") else pattern)


def _matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(_whole(pattern)) for pattern in patterns))


def _reaches_below(folder: str, pattern: str) -> bool:
    """Return whether a prefix of `pattern` matches `folder`, so that the rest may match a name below it. A prefix that
    ends within a `[…]` reads it as text, which can only give a wrong True."""
    ends = range(len(pattern) + 1 if pattern.endswith("*") else len(pattern))
    return any(fnmatchcase(folder, pattern[:end]) for end in ends)
