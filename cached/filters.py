"""Which files of a listing belong to a version: a catalog entry's globs, and what no server ever reads.

Law: pure. Globs are those of the Hugging Face Hub, which the field knows: `fnmatch` on the whole path, case-sensitive,
so that `*` crosses `/`; a pattern that ends in `/` means everything under that folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase, translate

from cached.contract.errors import Permanent

_CLUTTER_FOLDERS = frozenset({".git", ".cache"})
_CLUTTER_FILES = frozenset({".gitattributes", ".gitignore", ".DS_Store", "Thumbs.db"})
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


def select(paths: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    """The paths that match any of `include` (empty: all do) and none of `exclude`, in their order."""
    return tuple(path for path in paths if (not include or _matches(path, include)) and not _matches(path, exclude))


def without_clutter(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths less what version control, caches and desktops leave behind, and less weights that are there again in
    another format: next to `model*.safetensors` in the same folder, or under `original/` where the root has those.

    The same folder, because elsewhere a `pytorch_model.bin` may be the only copy of its part of the model.
    """
    kept = [path for path in paths if not _is_clutter(path)]
    twice = {_folder(path) for path in kept if fnmatchcase(_name(path), _SAFETENSORS)}
    return tuple(
        path
        for path in kept
        if not (_folder(path) in twice and _OTHER_FORMATS.match(_name(path)))
        and not ("" in twice and path.startswith("original/"))
    )


def nothing_selected(where: str, paths: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> Permanent:
    """The error for a version of which the filters leave no file; `where` is the source without credentials."""
    found = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "") if paths else "none"
    return Permanent(
        "nothing_selected",
        f"{where}: expected files that match include {list(include)} and not exclude {list(exclude)}, "
        f"found none among {len(paths)} files ({found})",
        "correct `include` and `exclude` of the model's entry in the catalog",
    )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _is_clutter(path: str) -> bool:
    *folders, name = path.split("/")
    return name in _CLUTTER_FILES or not _CLUTTER_FOLDERS.isdisjoint(folders)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
