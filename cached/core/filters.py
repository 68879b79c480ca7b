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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate

from cached.contract.errors import HoldfastError, Permanent
from cached.core.listing import Listing, RemoteFile, Unlisted, check_names, format_path
from cached.core.selection import earlier_filters
from cached.core.selection.clutter import is_clutter
from cached.core.selection.presets import DEFAULT, EARLIER, NO_INDEXES, Indexes, Preset, find_left_out


@dataclass(frozen=True, slots=True)
class Rules:
    """What an entry of the catalog says about the files of its versions: its globs, and `preset` (`for:`)."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    preset: Preset = DEFAULT


@dataclass(frozen=True, slots=True)
class Selection:
    """The files of a version. `left_out`: the paths that its globs select and that stay out, with the reason.
    `dropped`: those that its globs do not select. Clutter is in neither."""

    files: tuple[RemoteFile, ...]
    left_out: Mapping[str, str]
    dropped: tuple[str, ...]


def choose_files(
    listing: Listing, where: str, include: Sequence[str], exclude: Sequence[str]
) -> tuple[RemoteFile, ...]:
    """Return the files that `select_files` chooses without a preset."""
    return select_files(listing, where, Rules(include, exclude)).files


def select_files(listing: Listing, where: str, rules: Rules, indexes: Indexes = NO_INDEXES) -> Selection:
    """Return the files of `listing` that belong to a version; `where` is the source without credentials. `indexes`: the
    content of the files that `files_to_read` names, as far as they were read.

    The built-in filters do not apply to a manifest, a preset does. Raises `Permanent` (`bad_name`) for a chosen name
    that is invalid in a manifest, the `problem` of a chosen file, and `Permanent` (`nothing_selected`).
    """
    include, exclude = rules.include, rules.exclude
    own = set(select_paths((file.path for file in listing.files), include, exclude))
    open_folders = [folder for folder in listing.unlisted if may_select_below(folder.path, include, exclude)]
    is_out = earlier_filters.is_clutter if rules.preset == EARLIER else is_clutter
    dropped = tuple(file.path for file in listing.files if file.path not in own and not is_clutter(file.path))
    left_out: dict[str, str] = {}
    if listing.manifest is None or rules.preset != DEFAULT:
        # One file represents a folder that cannot be listed: if it is clutter, all files below are.
        inside = {f"{folder.path}x": folder for folder in open_folders}
        paths = [path for path in (*own, *inside) if listing.manifest is not None or not is_out(path)]
        left_out = _find_left_out(where, paths, rules, indexes)
        own = {path for path in paths if path in own and path not in left_out}
        open_folders = [inside[path] for path in paths if path in inside and path not in left_out]
        left_out = {path: left_out[path] for path in sorted(left_out) if path not in inside}
    chosen = tuple(file for file in listing.files if file.path in own)
    check_names(where, (file.path for file in chosen))
    _raise_problems(listing, chosen, open_folders, include)
    if not chosen:
        raise nothing_selected(where, [file.path for file in listing.files], include, exclude)
    return Selection(chosen, left_out, dropped)


def _find_left_out(where: str, paths: Sequence[str], rules: Rules, indexes: Indexes) -> dict[str, str]:
    if len(paths) == 1 and rules.preset == DEFAULT:
        return {}  # nothing is there twice
    patterns = [select_paths(paths, [pattern], ()) for pattern in rules.include]
    try:
        return find_left_out(rules.preset, paths, indexes, patterns)
    except Permanent as error:
        raise Permanent(error.code, f"{where}: {error.message}", error.remedy) from error


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
