"""The loader's refusals, which are the safetensors package's own error too where that package is installed.

Law: two classes; no torch, no I/O. Code that catches `SafetensorError` or `FileNotFoundError` goes on working with this
loader in the package's place.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from cached.contract.errors import Permanent

if TYPE_CHECKING:
    from safetensors import SafetensorError
else:
    try:
        from safetensors import SafetensorError
    except ImportError:  # no caller can name that class then
        SafetensorError = Exception


class WeightsError(Permanent, SafetensorError):
    """A file, a handle or a request that cannot give the tensors asked for."""


class MissingFile(WeightsError, FileNotFoundError):
    """A file that a caller named and that is not there. Its text is safetensors' own; `remedy` has more."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            "unreadable",
            f"No such file or directory: {path}",
            "check the path, or load the folder, whose index names its files; nothing is downloaded",
        )
        self.errno, self.filename = errno.ENOENT, str(path)

    def __str__(self) -> str:
        return self.message
