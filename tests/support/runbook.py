"""The runbook's expressions of PromQL, as an operator would paste them.

Law: an expression is a code span with a metric's name and no command; `M` and `V` stand for a model and a version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.manifests import REPOSITORY

RUNBOOK = REPOSITORY / "docs" / "runbook.md"
QUESTIONS = "Questions, and where the answer is"
_SPAN = re.compile(r"`([^`\n]+)`")
_SERIES = re.compile(r"\b(?:\w+:)?(?:holdfast|kube)_[a-z_]+")
_LABELS_ALONE = re.compile(r"\{\w+\}")  # `holdfast_fetches{state}` says which labels there are


def list_expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression with the title of its section."""
    for section in RUNBOOK.read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        for span in _SPAN.findall(text):
            if _SERIES.search(span) and not span.startswith(("holdfast ", "kubectl ")):
                yield title, _LABELS_ALONE.sub("", span)


def list_names(expr: str) -> set[str]:
    """Return the names of the series in an expression, of a histogram its own."""
    labels = re.sub(r"\{[^}]*\}|\b(?:by|on|without) \([^)]*\)", "", expr)
    found = re.findall(r"\b(?:\w+:)?(?:holdfast|kube)_[a-z_]+(?::\w+)?", labels)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}
