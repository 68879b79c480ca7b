"""What is wrong with a version, in words for a person.

Law: pure values. A finding names the file, what it is, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cached.contract.errors import Permanent

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why a version may not load as its authors meant. `fatal`: no engine loads it so, or what comes out
    differs; else only some engines miss the file."""

    code: str
    path: str
    message: str
    remedy: str
    fatal: bool = True

    def document(self) -> dict[str, Any]:
        """Return the JSON object of a finding."""
        return asdict(self)

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Finding:
        """Return the finding of a JSON object; raises KeyError or TypeError."""
        texts = {name: document[name] for name in ("code", "path", "message", "remedy")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError("expected texts in a finding")
        return cls(**texts, fatal=bool(document.get("fatal", True)))

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})"


def is_loadable(findings: Iterable[Finding]) -> bool:
    """Return whether no finding is fatal."""
    return not any(finding.fatal for finding in findings)


def not_loadable(where: str, findings: Sequence[Finding]) -> Permanent:
    """Return the error of a version with fatal findings; `where` names it. One finding gives its code too."""
    fatal = [finding for finding in findings if finding.fatal]
    said = "; ".join(finding.message for finding in fatal[:_SHOWN])
    more = f"; and {len(fatal) - _SHOWN} more" if len(fatal) > _SHOWN else ""
    remedies = "; ".join(dict.fromkeys(finding.remedy for finding in fatal[:_SHOWN]))
    codes = {finding.code for finding in fatal}
    code = codes.pop() if len(codes) == 1 else "not_loadable"
    return Permanent(code, f"{where}: not loadable: {said}{more}", remedies)


def describe_names(names: Sequence[str]) -> str:
    """Return up to three names, quoted, and the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name)[:200] for name in names[:_SHOWN]) + more
