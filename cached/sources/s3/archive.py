"""Objects that S3 has put where nobody can read them: Glacier, Deep Archive, Intelligent-Tiering's archive tiers.

Law: pure. A listing names the storage class, HeadObject says whether a copy is restored.
"""

from __future__ import annotations

from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient

_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})  # GLACIER_IR is read at once, like any other
_SHOWN = 40


def may_be_archived(storage_class: str) -> bool:
    """Tell whether an object of this class is unreadable unless a copy was restored."""
    return storage_class in _CLASSES


def archived(what: str, found: dict[str, Any]) -> HoldfastError | None:
    """Why an object cannot be read, from what HeadObject gives; None where it can."""
    restore = str(found.get("Restore", "")).replace(" ", "")
    place = str(found.get("ArchiveStatus") or found.get("StorageClass", ""))[:_SHOWN]
    if not found.get("ArchiveStatus") and not may_be_archived(place):
        return None
    if 'ongoing-request="false"' in restore:
        return None
    if 'ongoing-request="true"' in restore:
        return Transient(
            "restoring", f"{what}: being restored from {place}", "it is tried again until S3 has restored it"
        )
    return refusal(what, place)


def refusal(what: str, place: str) -> Permanent:
    """The error for an object that lies in an archive."""
    return Permanent(
        "archived",
        f"{what}: archived ({place}): it cannot be read before it is restored",
        "restore it (`aws s3api restore-object`), or copy it to another storage class; then pull again",
    )
