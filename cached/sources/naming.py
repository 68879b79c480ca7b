"""Names of files as a source lists them, checked against what a version may hold.

Law: pure. A file with a name that no manifest could carry is refused by name, never skipped: a version with a file
silently missing is worse than none. Only chosen files are checked: what a version leaves out may have any name.
"""

from __future__ import annotations

from collections.abc import Iterable

from cached.contract.errors import InvalidManifest, Permanent
from cached.contract.manifest import RESERVED, check_path, check_tree

_REMEDY = "rename it at the source, or leave it out with `exclude` in the model's entry of the catalog"


def check_names(where: str, paths: Iterable[str]) -> None:
    """Raise `Permanent` (`bad_name`) that names the place and the first path that no manifest could carry."""
    listed = list(paths)
    try:
        for path in listed:
            check_path(path)
        check_tree(listed)
    except InvalidManifest as error:
        raise Permanent("bad_name", f"{where}: {error.message}", _REMEDY) from error


def is_reserved(path: str) -> bool:
    """Tell whether `path` is a record of Holdfast's own at a source, and so no content."""
    return path == RESERVED or path.startswith(f"{RESERVED}/")


def shown(path: str) -> str:
    """`path` for a message: as it is, or escaped where it holds what no terminal or log should be given."""
    return path if path.isprintable() else repr(path)
