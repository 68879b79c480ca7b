"""What a pod asks for: model versions, each with an optional pin and alias, as the annotations write them.

Law: pure; the grammar of `holdfast.dev/models` is section 2 of the design.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cached.contract.digest import Digest
from cached.contract.errors import InvalidReference
from cached.contract.reference import ModelRef

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_REMEDY = "write them as in `base=llama-3.1-8b@v3,adapter=support-lora@v7`; `alias=` may be left out"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One version that must be there; `pin` is the only manifest digest it may have, `alias` the pod's name for it."""

    ref: ModelRef
    pin: Digest | None = None
    alias: str | None = None

    def __str__(self) -> str:
        return f"{self.alias}={self.ref}" if self.alias else str(self.ref)


def parse_models(text: str) -> tuple[Wanted, ...]:
    """Read `alias=name@version,…`; raises `InvalidReference`, also where an alias or a reference comes twice."""
    found = tuple(_parse_one(item.strip()) for item in text.split(","))
    for names in ([w.alias for w in found if w.alias], [str(w.ref) for w in found]):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidReference(f"expected each model once, found {', '.join(twice)} more than once", _REMEDY)
    return found


def _parse_one(item: str) -> Wanted:
    alias, equals, reference = item.rpartition("=")
    if equals and not _ALIAS.fullmatch(alias):
        raise InvalidReference(f"not an alias: {alias[:100]!r} in {item[:200]!r}", _REMEDY)
    return Wanted(ModelRef.parse(reference), alias=alias or None)
