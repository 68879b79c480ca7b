"""Import torch and the base of transformers' models, in half the time of a plain import.

Law: leaves out what no served model runs. With torch 2.13 and transformers 5.23 a plain import of any model's class
imports torch._dynamo, sympy and torch.distributed.tensor for decorators and type checks, a second of processor time,
and twice reads the source of every model that transformers has, 36 MB, to learn their names.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import server.engine.libraries.offline  # noqa: F401 - before transformers
from cached.contract.program.logs import take_over
from server.engine.libraries.deferred import Deferral, defer

# The releases whose `torch._dynamo` has a submodule that needs none of the others.
_TORCH = ("2.13.",)
_DYNAMO = Deferral(
    "torch._dynamo",
    alone=frozenset({"_trace_wrapped_higher_order_op"}),
    marks=frozenset({"allow_in_graph", "assume_constant_result"}),
    wrappers=frozenset({"disable"}),
)


def _home_of_tokenizer(name: str) -> str | None:
    """Return the package of a model whose tokenizer's class has this name; None for another attribute."""
    if not name.endswith("Tokenizer"):
        return None
    home = f"transformers.models.{name.removesuffix('Tokenizer').lower()}"
    return home if find_spec(home) is not None and name in importlib.import_module(home).__all__ else None


_TRANSFORMERS = (
    Deferral("transformers", first="dependency_versions_check", versioned=True, home_of=_home_of_tokenizer),
    Deferral("transformers.models"),
)


def import_base() -> None:
    """Import torch, and what all of transformers' models import; raises what a plain import raises."""
    import torch

    if torch.__version__.startswith(_TORCH):
        defer(_DYNAMO)
    for deferral in _TRANSFORMERS:
        defer(deferral)
    with _replaced(_WHILE_IMPORTING):
        import transformers.modeling_utils
        import transformers.processing_utils  # noqa: F401
    take_over("transformers")


@contextmanager
def _replaced(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Give the modules of transformers that are imported in the block these functions in place of its own."""
    from transformers.utils import import_utils

    homes: tuple[Any, ...] = (import_utils, sys.modules["transformers.utils"])
    found = [(home, name, getattr(home, name)) for home in homes for name in functions if hasattr(home, name)]
    for home, name, _ in found:
        setattr(home, name, functions[name])
    try:
        yield
    finally:
        for home, name, own in found:
            setattr(home, name, own)


def _is_not_available() -> bool:
    return False


def _find_transformers(*_: Any) -> ModuleType:
    return sys.modules["transformers"]


_WHILE_IMPORTING: dict[str, Callable[..., Any]] = {
    "is_torch_distributed_available": _is_not_available,  # for a model on several processes; else DTensor and sympy
    "is_scipy_available": _is_not_available,  # for losses, which training computes
    "direct_transformers_import": _find_transformers,  # runs the `__init__` once more, and reads all models again
}
