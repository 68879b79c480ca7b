"""The built-in filters of releases before the presets.

Law: pure, and never changed: digests that people pinned then rest on them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

_FOLDERS = frozenset({".git", ".cache", "__MACOSX"})
_FILES = frozenset({".gitattributes", ".gitignore", ".DS_Store", "Thumbs.db"})
_SAFETENSORS = "model*.safetensors"
_OTHER_FORMATS = re.compile(
    r"(?:pytorch_model.*\.bin|tf_model.*\.h5|flax_model.*\.msgpack)(?:\.index\.json)?|rust_model\.ot", re.DOTALL
)


def is_clutter(path: str) -> bool:
    """Return whether the earlier filter took a file for one of version control, a cache, a desktop or `fsck`."""
    *folders, name = path.split("/")
    return name in _FILES or name.startswith("._") or path.startswith("lost+found/") or not _FOLDERS.isdisjoint(folders)


def find_doubles(paths: Collection[str]) -> dict[str, str]:
    """Return the paths that the earlier filter took for copies of the same weights."""
    parts = [(path, *path.rpartition("/")[::2]) for path in paths]
    twice = {folder for _, folder, name in parts if fnmatchcase(name, _SAFETENSORS)}
    return {
        path: "another format"
        for path, folder, name in parts
        if (folder in twice and _OTHER_FORMATS.fullmatch(name)) or ("" in twice and path.startswith("original/"))
    }
