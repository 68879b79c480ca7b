"""The JSON files of a sentence-transformers model, and what is said about a field that is not served.

Law: reads only; every refusal names the file, the field, what was expected and what was found.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cached.contract.errors import Permanent

Document = dict[str, Any]

OWN_CODE = "serve it with --app"
_LOG = logging.getLogger(__name__)


def read_document(path: Path) -> Document:
    """Return the JSON object in `path`; raises `Permanent` (`invalid_config`)."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise damaged(path, f"expected a JSON object, found {show(found)}")
    return found


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises `Permanent` (`invalid_config`)."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise damaged(path, "expected this file, found none") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"expected JSON: {error}") from error


def damaged(path: Path, problem: str) -> Permanent:
    """Return the error of a file that no version of the library reads."""
    return Permanent("invalid_config", f"{path}: {problem}", "publish the model's folder whole, as its authors have it")


def unsupported(path: Path, field: str, found: object, expected: str, remedy: str = OWN_CODE) -> Permanent:
    """Return the refusal of a field's value that would change the vectors and is not served."""
    return Permanent("unsupported_model", f"{path}: {field}: expected {expected}, found {show(found)}", remedy)


def refuse_unknown(path: Path, document: Document, known: Collection[str]) -> None:
    """Refuse a field that the library refuses too: it passes the file's fields to a constructor."""
    for field in document:
        if field not in known:
            raise Permanent(
                "unsupported_model",
                f"{path}: expected the fields that sentence-transformers reads here ({', '.join(sorted(known))}), "
                f"found {field[:60]!r}",
                "correct the field's name, or serve the model with --app",
            )


def warn_unknown(path: Path, document: Document, known: Collection[str]) -> None:
    """Tell about fields that the library passes over."""
    unknown = sorted(field for field in document if field not in known)
    if unknown:
        _LOG.warning(
            "%s: without effect, as in sentence-transformers, which does not read it: %s",
            path,
            ", ".join(unknown)[:300],
        )


def flag(path: Path, document: Document, field: str, *, default: bool) -> bool:
    """Return true or false; `default` where the field is absent. Raises `Permanent` (`invalid_config`)."""
    value = document.get(field, default)
    if not isinstance(value, bool):
        raise damaged(path, f"{field}: expected true or false, found {show(value)}")
    return value


def count(path: Path, document: Document, field: str) -> int | None:
    """Return a whole number of at least 1; None where the field is absent or null."""
    value = document.get(field)
    if value is not None and (type(value) is not int or value < 1):
        raise damaged(path, f"{field}: expected a whole number of at least 1, found {show(value)}")
    return value


def required_count(path: Path, document: Document, field: str) -> int:
    """Return a whole number of at least 1. Raises `Permanent` (`invalid_config`), also where the field is absent."""
    value = count(path, document, field)
    if value is None:
        raise damaged(path, f"{field}: expected a whole number of at least 1, found none")
    return value


def section(path: Path, document: Document, field: str) -> Document:
    """Return an object in the document; empty where the field is absent or null."""
    value = document.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise damaged(path, f"{field}: expected an object, found {show(value)}")
    return value


def show(value: object) -> str:
    """Return the beginning of a value, for a message."""
    return repr(value)[:80]
