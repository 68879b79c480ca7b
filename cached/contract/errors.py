"""The errors of Holdfast, split by remedy: retry (`Transient`) or tell a person what to do (`Permanent`).

Law: every error that crosses a module boundary is one of these, chained from the library's own as its cause.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

_STATUSES = frozenset(int(status) for status in HTTPStatus)


def http_code(status: int) -> str:
    """The code for an HTTP status that has no name of its own here. Those that no registry knows share one a class, so
    that no server can make up more values of a metric's label than there are."""
    return f"http_{status}" if status in _STATUSES else f"http_{min(status // 100, 5)}xx"


class HoldfastError(Exception):
    """An error with a stable code, a message (expected, found, where) and a remedy (what to do next).

    `code` is one lower-case word with underscores, stable for machines: it is what status files carry and what
    the label `reason` of `holdfast_fetch_errors_total` holds.
    """

    permanent: ClassVar[bool]

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class Transient(HoldfastError):
    """Worth trying again. `retry_after_s` is the wait the other side asked for, in seconds, if it did."""

    permanent = False

    def __init__(self, code: str, message: str, remedy: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, message, remedy)
        self.retry_after_s = retry_after_s


class Permanent(HoldfastError):
    """Trying again changes nothing: somebody must act as `remedy` says."""

    permanent = True


class InvalidReference(Permanent):
    """A model reference, name, version or digest that the grammar refuses."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__("invalid_reference", message, remedy)


class InvalidManifest(Permanent):
    """A manifest, or a path in one, that the schema refuses."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__("invalid_manifest", message, remedy)


class DigestMismatch(Permanent):
    """Bytes, or a manifest, whose sha256 is not the one that was promised."""

    def __init__(self, what: str, expected: str, found: str, remedy: str) -> None:
        super().__init__("digest_mismatch", f"{what}: expected {expected}, found {found}", remedy)
        self.expected = expected
        self.found = found
