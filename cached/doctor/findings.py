"""What a check found. Law: values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cached.contract.errors import HoldfastError


class CheckVerdict(StrEnum):
    """How a check ended. `SKIPPED`: it does not apply here, or cannot be made from here."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: its `area` (disk, daemon, …), what was found, and what to do; `remedy` is empty where nothing is."""

    area: str
    verdict: CheckVerdict
    message: str
    remedy: str = ""

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**asdict(self), "verdict": self.verdict.value}


def ok(area: str, message: str) -> CheckResult:
    """Return the finding that all is well."""
    return CheckResult(area, CheckVerdict.OK, message)


def skipped(area: str, message: str, remedy: str = "") -> CheckResult:
    """Return the finding that a check was not made, and why."""
    return CheckResult(area, CheckVerdict.SKIPPED, message, remedy)


def warning(area: str, message: str, remedy: str) -> CheckResult:
    """Return a finding that stops nothing now."""
    return CheckResult(area, CheckVerdict.WARNING, message, remedy)


def failed(area: str, message: str, remedy: str) -> CheckResult:
    """Return a finding that stops something."""
    return CheckResult(area, CheckVerdict.FAILED, message, remedy)


def of_error(area: str, error: HoldfastError) -> CheckResult:
    """Return the finding of an error of ours."""
    return failed(area, error.message, error.remedy)


def has_failed(findings: Iterable[CheckResult]) -> bool:
    """Return whether anything failed."""
    return any(finding.verdict is CheckVerdict.FAILED for finding in findings)
