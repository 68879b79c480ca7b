"""The content of the small files that decide what a preset picks.

Law: reads through the caller's function; opens nothing.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping

from cached.contract.loadable.names import CONFIG, folder_of, index_format
from cached.contract.loadable.verdict import shards_of
from cached.contract.loadable.weights import Read
from cached.core.selection.presets import Indexes, Preset, files_to_read

_MAX_CONFIG_BYTES = 1 << 20


def read_indexes(preset: Preset, sizes: Mapping[str, int], read: Read) -> Indexes:
    """Return what indexes and config.json say, of those that the preset reads and `sizes` (in bytes, by path) has. A
    file that is no index, or no JSON, says nothing: the verdict on the version names it."""
    shards: dict[str, tuple[str, ...]] = {}
    explicit = None
    for path in files_to_read(preset, sizes.keys()):
        if index_format(path) is not None:
            shards[path] = shards_of(path, sizes[path], read) or ()
        elif path == CONFIG and sizes[path] <= _MAX_CONFIG_BYTES:
            explicit = _explicit(read(path, 0, sizes[path]))
    if explicit in shards:  # transformers looks for its files from the model's own folder
        shards[explicit] = tuple(name.removeprefix(folder_of(explicit)) for name in shards[explicit])
    return Indexes({path: names for path, names in shards.items() if names}, explicit)


def _explicit(config: bytes) -> str | None:
    try:
        name = json.loads(config)["transformers_weights"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return posixpath.normpath(name) if isinstance(name, str) and name else None
