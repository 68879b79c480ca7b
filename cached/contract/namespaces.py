"""Which namespaces' pods a catalog gives a model to: its key `namespaces`.

Law: pure. One error for the injector, the daemon and the CSI node service, so that a pod reads the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 label, as Kubernetes names namespaces
_SHOWN = 10


class ForbiddenNamespace(Permanent):
    """The catalog gives the model to other namespaces than the pod's. `allowed`: those, at least one."""

    def __init__(self, ref: ModelRef, namespace: str, allowed: Collection[str]) -> None:
        more = ", …" if len(allowed) > _SHOWN else ""
        listed = ", ".join(sorted(allowed)[:_SHOWN]) + more
        super().__init__(
            "forbidden_namespace",
            f"{ref}: expected a pod of a namespace that the catalog gives this model to ({listed}), found one of "
            f"{namespace[:100]!r}",
            f"run the pod in one of those, or add its namespace to `namespaces` of {ref.name!r} in the catalog",
        )


def is_namespace(text: str) -> bool:
    """Return whether Kubernetes accepts `text` as the name of a namespace."""
    return _NAMESPACE.fullmatch(text) is not None
