"""What is in a snapshot's tree and not in its manifest: a file, a folder or a link that was put there by hand.

Law: reads folders only, and follows no symlink. An engine takes the names that it finds in a folder: one file more
(`model.safetensors` beside an index, `adapter_config.json`) changes what it loads as wrong bytes do.
"""

from __future__ import annotations

import os

from cached.contract.layout import SnapshotLayout
from cached.contract.manifest import RESERVED, Manifest


def find_strays(snapshot: SnapshotLayout, manifest: Manifest) -> list[str]:
    """Return the paths, sorted, of what the manifest does not have; of a folder its own path only. A link or a file in
    place of one of the manifest's folders is one; what is missing is none. Raises OSError."""
    files, folders = frozenset(manifest.packed.paths), frozenset(manifest.list_folders())
    top = os.fspath(snapshot.path)
    strays: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(f"{top}/{below}") as entries:
                for entry in entries:
                    path = f"{below}{entry.name}"
                    if path in folders and entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{path}/")
                    elif path not in files and path != RESERVED:
                        strays.append(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return sorted(strays)
