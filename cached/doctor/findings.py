"""What a check found. Law: values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cached.contract.errors import HoldfastError


class Verdict(StrEnum):
    """How a check ended. `SKIPPED`: it does not apply here, or cannot be made from here."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its `area` (disk, daemon, …), what was found, and what to do; `remedy` is empty where nothing is."""

    area: str
    verdict: Verdict
    message: str
    remedy: str = ""

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**asdict(self), "verdict": self.verdict.value}


def ok(area: str, message: str) -> Finding:
    """Return the finding that all is well."""
    return Finding(area, Verdict.OK, message)


def skipped(area: str, message: str, remedy: str = "") -> Finding:
    """Return the finding that a check was not made, and why."""
    return Finding(area, Verdict.SKIPPED, message, remedy)


def warning(area: str, message: str, remedy: str) -> Finding:
    """Return a finding that stops nothing now."""
    return Finding(area, Verdict.WARNING, message, remedy)


def failed(area: str, message: str, remedy: str) -> Finding:
    """Return a finding that stops something."""
    return Finding(area, Verdict.FAILED, message, remedy)


def of_error(area: str, error: HoldfastError) -> Finding:
    """Return the finding of an error of ours."""
    return failed(area, error.message, error.remedy)


def has_failed(findings: Iterable[Finding]) -> bool:
    """Return whether anything failed."""
    return any(finding.verdict is Verdict.FAILED for finding in findings)
