"""What `holdfast publish` writes into a manifest: where each file is in its layer, and its sha256.

Law: pure. It is believed no further than a manifest is: each file is compared with its sha256 when it is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from cached.contract.errors import InvalidManifest
from cached.contract.manifest import FileEntry, Manifest
from cached.sources.oci.manifest import HOLDFAST_FILES, Layer, Packing, bad_artifact

Placed = tuple[FileEntry, str, int]  # a file, the digest of its layer, and where it begins there


def read_published(layers: Sequence[Layer], where: str) -> tuple[list[Placed], Manifest] | None:
    """Return the files of a version that `holdfast publish` wrote, and its manifest; None for any other artifact.
    Raises `Permanent` (`bad_artifact`, `invalid_manifest`)."""
    holding = [layer for layer in layers if layer.packing is not Packing.NONE]
    if not holding or not all(HOLDFAST_FILES in layer.blob.annotations for layer in holding):
        return None
    try:
        placed = [each for layer in holding for each in _read_files(layer, where)]
        return placed, Manifest.build(entry for entry, _, _ in placed)
    except InvalidManifest as error:
        raise InvalidManifest(f"{where}: {error.message}", error.remedy) from error


def _read_files(layer: Layer, where: str) -> list[Placed]:
    """Parse the note of a layer on its files: `[{"path", "sha256", "size", "start"}, …]`."""
    blob = layer.blob
    try:
        found = [
            (FileEntry(each["path"], each["sha256"], each["size"]), each["start"])
            for each in json.loads(blob.annotations[HOLDFAST_FILES])
        ]
    except InvalidManifest:
        raise
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise bad_artifact(where, f"{blob.digest}: its annotation {HOLDFAST_FILES} is malformed") from error
    for entry, start in found:
        if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start <= blob.size - entry.size:
            raise bad_artifact(where, f"{blob.digest}: {entry.path!r} is not within the layer")
    return [(entry, blob.digest, start) for entry, start in found]
