"""Objects in S3's archives, unreadable until restored: Glacier, Deep Archive, Intelligent-Tiering's archive tiers.

Law: pure. A listing has the storage class, HeadObject the state of a restored copy.
"""

from __future__ import annotations

from typing import Any

from cached.contract.errors import HoldfastError, Permanent, Transient

_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})  # GLACIER_IR is readable at once, like any other
_SHOWN = 40


def may_be_archived(storage_class: str) -> bool:
    """Return whether an object of this class is unreadable without a restored copy."""
    return storage_class in _CLASSES


def archived(uri: str, found: dict[str, Any]) -> HoldfastError | None:
    """Return why an object is unreadable, from the result of HeadObject; None if it is readable."""
    restore = str(found.get("Restore", "")).replace(" ", "")
    place = str(found.get("ArchiveStatus") or found.get("StorageClass", ""))[:_SHOWN]
    is_archived = bool(found.get("ArchiveStatus")) or may_be_archived(place)
    if not is_archived or 'ongoing-request="false"' in restore:
        return None
    if 'ongoing-request="true"' in restore:
        return Transient(
            "restoring", f"{uri}: being restored from {place}", "it is tried again until S3 has restored it"
        )
    return refusal(uri, place)


def refusal(uri: str, place: str) -> Permanent:
    """Return the error of an archived object."""
    return Permanent(
        "archived",
        f"{uri}: archived ({place}): it cannot be read before it is restored",
        "restore it (`aws s3api restore-object`), or copy it to another storage class; then pull again",
    )
