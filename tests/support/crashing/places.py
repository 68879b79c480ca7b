"""What a path under the root is, in words: half of the name of a crash point, such as `rename blob`.

Law: pure; knows the layout of the design, section 3, and every temporary name in it.
"""

from __future__ import annotations

import os
import re

_HEX = "[0-9a-f]{64}"
_NEW = r"public/snapshots/\.tmp-[^/]+"
_OLD = f"public/snapshots/{_HEX}"
_PLACES = (
    ("", "root"),
    (r"VERSION", "VERSION"),
    (r"\.tmp-[^/]+", "VERSION temporary"),
    (r"private", "private"),
    (r"private/daemon\.sock", "socket"),
    (r"private/pins\.json", "pins"),
    (r"private/digests\.jsonl", "digest journal"),
    (r"private/hashed\.jsonl", "hash notes"),
    (r"private/start-index", "start index"),
    (r"private/\.tmp-start-index[^/]+", "start index temporary"),
    (r"private/\.tmp-[^/]+", "private temporary"),
    (r"private/ingest", "ingest"),
    (r"private/ingest/\.tmp-[^/]+", "small blob temporary"),
    (rf"private/ingest/{_HEX}", "ingest folder"),
    (rf"private/ingest/{_HEX}/data", "ingest data"),
    (rf"private/ingest/{_HEX}/state\.json", "ingest state"),
    (rf"private/ingest/{_HEX}/\.tmp-[^/]+", "ingest state temporary"),
    (r"private/blobs", "blobs"),
    (r"private/blobs/[0-9a-f]{2}", "blob folder"),
    (rf"private/blobs/[0-9a-f]{{2}}/{_HEX}", "blob"),
    (r"private/fetched", "fetch records"),
    (r"private/fetched/[^/]+", "fetch record folder"),
    (r"private/fetched/[^/]+/\.tmp-[^/]+", "fetch record temporary"),
    (r"private/fetched/[^/]+/[^/]+\.json", "fetch record"),
    (r"private/kept", "kept records"),
    (r"private/kept/\.tmp-[^/]+", "kept record temporary"),
    (rf"private/kept/{_HEX}\.json", "kept record"),
    (r"private/quarantine", "quarantine"),
    (rf"private/quarantine/{_HEX}", "quarantined blob"),
    (r"private/trash", "trash"),
    (r"private/trash/[^/]+", "trashed snapshot"),
    (r"private/trash/.+", "trashed content"),
    (r"public", "public"),
    (r"public/\.tmp-[^/]+", "public temporary"),
    (r"public/snapshots", "snapshots"),
    (_NEW, "new snapshot"),
    (rf"{_NEW}/\.holdfast", "new records folder"),
    (rf"{_NEW}/\.holdfast/manifest\.json", "new manifest"),
    (rf"{_NEW}/\.holdfast/verified\.json", "new verified record"),
    (rf"{_NEW}/\.holdfast/lease", "new lease"),
    (rf"{_NEW}/.+", "new snapshot content"),
    (_OLD, "snapshot"),
    (rf"{_OLD}/\.holdfast", "records folder"),
    (rf"{_OLD}/\.holdfast/verified\.json", "verified record"),
    (rf"{_OLD}/\.holdfast/\.tmp-[^/]+", "verified record temporary"),
    (rf"{_OLD}/\.holdfast/lease", "lease"),
    (rf"{_OLD}/.+", "snapshot content"),
    (r"public/models", "models"),
    (r"public/models/[^/]+", "model folder"),
    (r"public/models/[^/]+/\.tmp-[^/]+", "model name temporary"),
    (r"public/models/[^/]+/[^/]+", "model name"),
    (r"public/status", "statuses"),
    (r"public/status/daemon\.json", "heartbeat"),
    (r"public/status/\.tmp-[^/]+", "heartbeat temporary"),
    (r"public/status/[^/]+", "status folder"),
    (r"public/status/[^/]+/\.tmp-[^/]+", "status temporary"),
    (r"public/status/[^/]+/[^/]+\.json", "status"),
)
_COMPILED = tuple((re.compile(pattern), name) for pattern, name in _PLACES)


def place(root: str, path: str) -> str | None:
    """What `path` is under `root`, `foreign` where the layout has no such name; None outside the root."""
    if path != root and not path.startswith(f"{root}/"):
        return None
    relative = os.path.relpath(path, root) if path != root else ""
    return next((name for pattern, name in _COMPILED if pattern.fullmatch(relative)), "foreign")
