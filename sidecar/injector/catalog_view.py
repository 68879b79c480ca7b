"""The catalog as the injector needs it: the models' names, who may have them, and the digests of pinned versions.

Law: text in, values out; opens no file. Tolerant where the daemon is strict: an entry that the daemon rejects pins
nothing here, and the daemon reports it; but namespaces that cannot be read give the model to no pod. Never keeps or
repeats a source, which may contain a credential.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.namespaces import ForbiddenNamespace, is_namespace
from cached.contract.reference import ModelRef

# All scalars as text, so that the version 2024-07-23 is no date; in C where PyYAML has it, twenty times as fast.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(frozen=True, slots=True)
class CatalogView:
    """The pins of one catalog, the names in it, and the namespaces of models that are not for all; `names` None: there
    is no catalog."""

    pins: Mapping[ModelRef, Digest]
    names: frozenset[str] | None
    namespaces: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Return whether the catalog has this model; True without a catalog."""
        return self.names is None or name in self.names

    def require_allowed(self, ref: ModelRef, namespace: str) -> None:
        """Raise `ForbiddenNamespace` where the catalog gives the model to other namespaces than the pod's, and
        `Permanent` (`invalid_catalog`) where it cannot be read which."""
        allowed = self.namespaces.get(ref.name)
        if allowed is None or namespace in allowed:
            return
        if not allowed:
            raise Permanent(
                "invalid_catalog",
                f"the catalog's `namespaces` of {ref.name!r}: expected a list of namespaces, found something else",
                "correct it in the catalog: until then the model is given to no new pod",
            )
        raise ForbiddenNamespace(ref, namespace, allowed)


NO_CATALOG = CatalogView({}, None)


def read_catalog(text: str) -> CatalogView:
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
    names = frozenset(name for name in models if isinstance(name, str))
    limited = {name: models[name]["namespaces"] for name in names if "namespaces" in _mapping(models[name])}
    return CatalogView(dict(_pins(models)), names, {name: _namespaces(node) for name, node in limited.items()})


def _pins(models: Mapping[Any, Any]) -> Iterator[tuple[ModelRef, Digest]]:
    for name, model in models.items():
        for version, entry in _mapping(_mapping(model).get("versions")).items():
            # No digest, no valid name, or a key that is a list.
            with suppress(HoldfastError, KeyError, TypeError, AttributeError):
                yield ModelRef(name, version), Digest.parse(_mapping(entry)["digest"])


def _namespaces(node: object) -> frozenset[str]:
    """Return the listed namespaces; none where any of them is none, as the daemon refuses the whole key then."""
    if not isinstance(node, list) or not all(isinstance(item, str) and is_namespace(item) for item in node):
        return frozenset()
    return frozenset(node)


def _mapping(node: object) -> Mapping[Any, Any]:
    return node if isinstance(node, dict) else {}


def _invalid(problem: str) -> Permanent:
    return Permanent(
        "invalid_catalog", f"the catalog: {problem}", "correct the file; until then the last good one stays in force"
    )
