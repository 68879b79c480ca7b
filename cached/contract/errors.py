"""The errors of Holdfast, split by remedy: retry (`Transient`) or tell a person what to do (`Permanent`).

Law: every error that crosses a module boundary is one of these, chained from the library's own as its cause.
"""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import ClassVar

_STATUSES = frozenset(int(status) for status in HTTPStatus)


def http_code(status: int) -> str:
    """Return the error code of an HTTP status. Unregistered statuses share one code per class, which bounds the values
    of a metric's label whatever a server sends."""
    return f"http_{status}" if status in _STATUSES else f"http_{min(status // 100, 5)}xx"


class HoldfastError(Exception):
    """An error with a stable code, a message (expected, found, where) and a remedy (what to do next). `code` is one
    lower-case word with underscores, as in status files and in the label `reason` of `holdfast_fetch_errors_total`."""

    permanent: ClassVar[bool]

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class Transient(HoldfastError):
    """A retry may succeed. `retry_after_s`: the delay in seconds that the server asked for, or None."""

    permanent = False

    def __init__(self, code: str, message: str, remedy: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, message, remedy)
        self.retry_after_s = retry_after_s


class Permanent(HoldfastError):
    """A retry cannot succeed: a person must act as `remedy` says."""

    permanent = True


class InvalidReference(Permanent):
    """A model reference, name, version or digest outside the grammar."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__("invalid_reference", message, remedy)


class InvalidManifest(Permanent):
    """A manifest, or a path in one, outside the schema."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__("invalid_manifest", message, remedy)


class DigestMismatch(Permanent):
    """Bytes or a manifest whose sha256 differs from the expected one."""

    def __init__(self, what: str, expected: str, found: str, remedy: str) -> None:
        super().__init__("digest_mismatch", f"{what}: expected {expected}, found {found}", remedy)
        self.expected = expected
        self.found = found


def describe_read_error(path: Path, error: OSError | UnicodeDecodeError) -> str:
    """Return which text file was not read, and why: its name stands there once."""
    return f"{path}: {getattr(error, 'strerror', None) or error}"
