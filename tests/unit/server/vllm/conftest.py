"""vLLM: the real one where it can be imported, else a stub with its interface."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STUBS = Path(__file__).parents[3] / "support" / "stubs"
REAL = importlib.util.find_spec("vllm") is not None


@pytest.fixture(scope="package")
def importable_vllm() -> Iterator[None]:
    """vLLM can be imported and has the load format; the stub is forgotten once this folder's tests are over."""
    with pytest.MonkeyPatch.context() as patch:
        if not REAL:
            patch.syspath_prepend(STUBS)
        from server.vllm.plugin import register

        register()
        yield
    if not REAL:
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            del sys.modules[name]
        del sys.modules["server.vllm.loader"]


@pytest.fixture
def vllm(importable_vllm: None) -> Iterator[None]:
    """vLLM with the load format, and no lease left from another test."""
    yield
    held = sys.modules["server.vllm.loader"]._HELD
    for holding in held.values():
        holding.close()
    held.clear()
