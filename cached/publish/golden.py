"""The golden predictions of a version to publish: its own file, or that of `--golden`.

Law: reads and checks. Golden predictions that no server can replay are refused.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cached.contract.errors import Permanent
from cached.contract.golden import GOLDEN_NAME, MAX_GOLDEN_BYTES, Golden
from cached.publish.content import Folder
from cached.sources.local.tree import PlainFile, file_error


def with_golden(folder: Folder, named: Path | None) -> Folder:
    """Return the folder with `named` as its golden file, in place of its own; raises `HoldfastError`."""
    if named is not None:
        file = PlainFile(GOLDEN_NAME, named, _size(named), validator="")
        others = (other for other in folder.files if other.path != GOLDEN_NAME)
        folder = replace(folder, files=tuple(sorted((*others, file), key=lambda file: file.path)))
    for file in folder.files:
        if file.path == GOLDEN_NAME:
            _check(file)
    return folder


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise file_error(error, path) from error


def _check(file: PlainFile) -> None:
    try:
        with file.real.open("rb") as opened:
            Golden.parse(opened.read(MAX_GOLDEN_BYTES + 1))
    except OSError as error:
        raise file_error(error, file.real) from error
    except Permanent as error:
        raise Permanent(error.code, f"{file.real}: {error.message}", error.remedy) from error
