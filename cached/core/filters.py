"""Which files of a listing belong to a version: a catalog entry's globs, and what no server ever reads.

Law: pure. First select, then judge: what the filters leave out is no reason to refuse a version, whatever it is called.
Globs are those of the Hugging Face Hub, which the field knows: `fnmatch` on the whole path, case-sensitive, so that `*`
crosses `/`; a pattern that ends in `/` means everything under that folder. Patterns and paths are compared in Unicode
normal form C: an editor writes that into the catalog, and macOS another one into file names.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase, translate

from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import Listing, RemoteFile, Unlisted, check_names, shown

_CLUTTER_FOLDERS = frozenset({".git", ".cache", "__MACOSX"})
_CLUTTER_FILES = frozenset({".gitattributes", ".gitignore", ".DS_Store", "Thumbs.db"})
_APPLE_DOUBLE = "._"  # what macOS keeps beside a file on a foreign file system
_LOST_AND_FOUND = "lost+found/"  # fsck's own, at the top of an ext file system
_SAFETENSORS = "model*.safetensors"
# The same weights again in other frameworks' formats, as transformers names them, with the indexes of their shards.
_OTHER_FORMATS = re.compile(
    "|".join(
        map(
            translate,
            (
                "pytorch_model*.bin",
                "pytorch_model*.bin.index.json",
                "tf_model*.h5",
                "tf_model*.h5.index.json",
                "flax_model*.msgpack",
                "flax_model*.msgpack.index.json",
                "rust_model.ot",
            ),
        )
    )
)


def choose(listing: Listing, where: str, include: Sequence[str], exclude: Sequence[str]) -> tuple[RemoteFile, ...]:
    """The files of `listing` that belong to a version; `where` is the source without credentials.

    The built-in filter spares what a manifest lists. Raises `Permanent` (`bad_name`) for a chosen name that no manifest
    may carry, the `problem` of what was chosen, and `nothing_selected`.
    """
    own = set(select((file.path for file in listing.files), include, exclude))
    open_folders = [folder for folder in listing.unlisted if may_select_below(folder.path, include, exclude)]
    if listing.manifest is None:
        # A folder that cannot be listed stands for one file in it: is that clutter, so is every other.
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


def select(paths: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    """The paths that match any of `include` (empty: all do) and none of `exclude`, in their order."""
    wanted, unwanted = _matcher(include), _matcher(exclude)

    def is_selected(form: str) -> bool:
        return (not include or wanted.match(form) is not None) and not (exclude and unwanted.match(form))

    return tuple(path for path in paths if is_selected(_form(path)))


def may_select_below(folder: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Tell whether a path under `folder` (which ends in `/`) could be selected; where it says no, none could."""
    place = _form(folder)
    if any(pattern.endswith("*") and fnmatchcase(place, pattern) for pattern in map(_whole, exclude)):
        return False
    return not include or any(_reaches_below(place, pattern) for pattern in map(_whole, include))


def without_clutter(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths less what version control, caches, desktops and `fsck` leave behind, and less weights that are there
    again in another format: next to `model*.safetensors` in the same folder, or under `original/` where the root has
    those.

    The same folder, because elsewhere a `pytorch_model.bin` may be the only copy of its part of the model.
    """
    kept = [path for path in paths if not is_clutter(path)]
    twice = {_folder(path) for path in kept if fnmatchcase(_name(path), _SAFETENSORS)}
    return tuple(
        path
        for path in kept
        if not (_folder(path) in twice and _OTHER_FORMATS.match(_name(path)))
        and not ("" in twice and path.startswith("original/"))
    )


def is_clutter(path: str) -> bool:
    """Tell whether version control, a cache, a desktop or `fsck` left this file behind."""
    *folders, name = path.split("/")
    return (
        name in _CLUTTER_FILES
        or name.startswith(_APPLE_DOUBLE)
        or path.startswith(_LOST_AND_FOUND)
        or not _CLUTTER_FOLDERS.isdisjoint(folders)
    )


def nothing_selected(where: str, paths: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> Permanent:
    """The error for a version of which the filters leave no file; `where` is the source without credentials."""
    found = ", ".join(map(shown, paths[:5])) + (", …" if len(paths) > 5 else "") if paths else "none"
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
        raise _with_the_way_out(folder)
    for file in listing.files:
        # Nobody knows whether a dangling link is meant to be a folder: a pattern that names it as one says so.
        if file.problem is not None and any(pattern.startswith(f"{file.path}/") for pattern in include):
            raise file.problem


def _with_the_way_out(folder: Unlisted) -> HoldfastError:
    """The folder's problem, with the pattern that leaves the folder out: its name alone would match no file."""
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
    """Tell whether the beginning of `pattern` uses up `folder`, so that its rest may match a name in there.

    A cut within a `[…]` reads that as text, which can only err towards yes.
    """
    ends = range(len(pattern) + 1 if pattern.endswith("*") else len(pattern))
    return any(fnmatchcase(folder, pattern[:end]) for end in ends)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
