"""The server: maps a version's safetensors and answers inference requests; also a loader for other programs.

Law: of ours it imports `cached.contract` only. torch and transformers are imported on first use; nothing here
downloads, or runs code of a model. The names below are imported on first access, so that `import server` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.weights.files import iter_tensors, load_file
    from server.weights.format.shards import Shards
    from server.weights.modules import load_model
    from server.weights.pretrained import load_pretrained
    from server.weights.safe_open import safe_open

__all__ = ["Shards", "iter_tensors", "load_file", "load_model", "load_pretrained", "safe_open"]

_HOMES = {
    "Shards": "server.weights.format.shards",
    "iter_tensors": "server.weights.files",
    "load_file": "server.weights.files",
    "load_model": "server.weights.modules",
    "load_pretrained": "server.weights.pretrained",
    "safe_open": "server.weights.safe_open",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
