"""User code served instead of our API: `--app package.module:factory`.

Law: `factory(model_path: Path, device: str) -> aiohttp.web.Application`, sync or async, is called once with the leased
folder and a torch device's name. This module needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from cached.contract.errors import Permanent
from server.engine.engine import call_in_thread

_LOG = logging.getLogger(__name__)
_SIGNATURE = "factory(model_path: Path, device: str) -> aiohttp.web.Application"


async def build(target: str, model_path: Path, device: str) -> web.Application:
    """Import and call the factory; raises `Permanent` (`app_failed`) where that fails."""
    factory = await call_in_thread("import", lambda: _find(target))
    try:
        if inspect.iscoroutinefunction(factory):
            application = await factory(model_path, device)
        else:  # it may load for minutes, in which probes must be answered
            application = await call_in_thread("factory", lambda: factory(model_path, device))
            if inspect.isawaitable(application):
                application = await application
    except Exception as error:
        _LOG.exception("%s failed", target)
        raise Permanent(
            "app_failed", f"--app {target}: {_shown(error)}", "correct the factory: see the traceback above"
        ) from error
    if not isinstance(application, web.Application):
        raise Permanent(
            "app_failed",
            f"--app {target}: expected an aiohttp.web.Application, found {type(application).__name__}",
            f"write {_SIGNATURE}",
        )
    return application


def _find(target: str) -> Callable[[Path, str], Any]:
    module_name, _, name = target.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, unlike the console script
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        _LOG.exception("%s cannot be imported", module_name)
        raise Permanent(
            "app_failed",
            f"--app {target}: {module_name} cannot be imported: {_shown(error)}",
            "check PYTHONPATH and what is installed in the image",
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise Permanent(
            "app_failed", f"--app {target}: {module_name} has no function {name!r}", f"write {_SIGNATURE} in it"
        )
    found: Callable[[Path, str], Any] = factory
    return found


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
