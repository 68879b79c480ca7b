"""The catalog as the injector needs it: the models' names, and the digest that each version is pinned to.

Law: text in, values out; opens no file. Tolerant where the daemon is strict: an entry that the daemon rejects pins
nothing here, and the daemon reports it. Never keeps or repeats a source, which may contain a credential.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.reference import ModelRef

# All scalars as text, so that the version 2024-07-23 is no date; in C where PyYAML has it, twenty times as fast.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(frozen=True, slots=True)
class Digests:
    """The pins of one catalog, and the names in it; `names` None: there is no catalog."""

    pins: Mapping[ModelRef, Digest]
    names: frozenset[str] | None

    def knows(self, name: str) -> bool:
        """Return whether the catalog has this model; True without a catalog."""
        return self.names is None or name in self.names


NO_CATALOG = Digests({}, None)


def read_digests(text: str) -> Digests:
    """Parse a catalog; raises `Permanent` (`invalid_catalog`) where it is no YAML mapping."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a base loader makes text, lists and mappings only
    except (yaml.YAMLError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)  # not the error's text, which quotes the line
        line = f", line {where.line + 1}" if where is not None else ""
        raise _invalid(f"not YAML{line}") from error
    if not isinstance(document, dict):
        raise _invalid("expected a mapping with `models`")
    models = _mapping(document.get("models"))
    return Digests(dict(_pins(models)), frozenset(name for name in models if isinstance(name, str)))


def _pins(models: Mapping[Any, Any]) -> Iterator[tuple[ModelRef, Digest]]:
    for name, model in models.items():
        for version, entry in _mapping(_mapping(model).get("versions")).items():
            # No digest, no valid name, or a key that is a list.
            with suppress(HoldfastError, KeyError, TypeError, AttributeError):
                yield ModelRef(name, version), Digest.parse(_mapping(entry)["digest"])


def _mapping(node: object) -> Mapping[Any, Any]:
    return node if isinstance(node, dict) else {}


def _invalid(problem: str) -> Permanent:
    return Permanent(
        "invalid_catalog", f"the catalog: {problem}", "correct the file; until then the last good one stays in force"
    )
