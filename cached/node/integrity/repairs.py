"""The repairs of what a check found, by the part that may change the store.

Law: chooses the repair of each finding; carries out none itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from cached.contract.digest import Digest
from cached.node.integrity.files import BadBlob, Finding


class Repairs(Protocol):
    """The repairs; each raises `HoldfastError` where the disk fails."""

    async def quarantine_blobs(self, sha256s: Collection[str]) -> None:
        """Quarantine corrupt blobs, withdraw the snapshots that link them, and fetch their versions again."""

    async def restore_snapshot(self, digest: Digest) -> None:
        """Restore the parts of a snapshot that were deleted or replaced, and its manifest, and fetch what has no copy
        here."""


async def repair(repairs: Repairs, digest: Digest, findings: Sequence[Finding]) -> None:
    """Repair a snapshot with these findings. All its bad blobs go before a fetch could take one of them as right."""
    blobs = dict.fromkeys(finding.sha256 for finding in findings if isinstance(finding, BadBlob))
    if blobs:
        await repairs.quarantine_blobs(tuple(blobs))
    elif findings:
        await repairs.restore_snapshot(digest)
