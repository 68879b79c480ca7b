"""Snapshots that are kept for pods: their name moved on while these pods read them.

Law: one file for each snapshot under `private/kept/`, durable before the name moves. A pod whose gate ended holds no
lease, and its version's name says from then on what new pods get: only this file says what the pod goes on reading.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.status import encode
from cached.store.disk import durable

_log = logging.getLogger(__name__)


def write(layout: Layout, digest: Digest, pods: frozenset[str]) -> None:
    """Replace the record of a snapshot, durably; `pods`: uids. Raises `Transient`."""
    with durable.disk_errors(f"keeping snapshot {digest} for its pods"):
        durable.replace(layout.kept_record(digest), encode({"digest": str(digest), "pods": sorted(pods)}), 0o600)


def read_all(layout: Layout) -> dict[Digest, frozenset[str]]:
    """Return the uids of the pods by snapshot. A file that is no record is deleted, and logged: it keeps nothing."""
    found: dict[Digest, frozenset[str]] = {}
    for name in sorted(os.listdir(layout.kept)):
        path = layout.kept / name
        try:
            digest, pods = _decode(json.loads(path.read_bytes()))
        except (ValueError, KeyError, TypeError, HoldfastError) as error:
            _log.warning("%s: not a record of kept pods (%s); it is removed", path, error)
            durable.unlink(path)
        else:
            found[digest] = pods
    return found


def _decode(document: dict[str, Any]) -> tuple[Digest, frozenset[str]]:
    return Digest.parse(document["digest"]), frozenset(str(uid) for uid in document["pods"])


def remove(layout: Layout, digest: Digest) -> None:
    """Delete the record of a snapshot. Idempotent."""
    durable.unlink(layout.kept_record(digest))
