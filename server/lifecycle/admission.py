"""Check a loaded model or adapter before any client can use it: at the start, and at each swap.

Law: runs once per model, after warm-up and before the catalog lists it. An error keeps the model out, and at the start
keeps the server from being ready.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from cached.contract.errors import Permanent
from cached.contract.golden import Golden
from server.engine.engine import call_in_thread
from server.lifecycle.environment import environment
from server.lifecycle.golden import Mode, Verdict, explain, privately, read, replay
from server.lifecycle.registry import ModelRegistry, Served

_LOG = logging.getLogger("holdfast.serve")
_ANSWER_WITHIN_S = 300.0  # the first pass of an engine may compile kernels


@dataclass(frozen=True, slots=True)
class Rules:
    """How models are admitted on `device`; `application` makes the API that answers their golden predictions."""

    golden: Mode
    device: str
    application: Callable[[ModelRegistry], web.Application]


async def admit(served: Served, rules: Rules) -> None:
    """Run a dummy inference through the model's engine and replay its golden predictions; raises `HoldfastError`."""
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            await served.run_dummy_inference()
    except TimeoutError as error:
        raise Permanent(
            "no_answer",
            f"{served.card.name}: expected an answer to a dummy inference, found none in {_ANSWER_WITHIN_S:.0f} s",
            "see what the GPU does (nvidia-smi) and the node's kernel log for Xid errors",
        ) from error
    if rules.golden is Mode.OFF:
        return
    golden = await call_in_thread("golden", partial(read, served.card.snapshot.path))
    if golden is not None:
        async with privately(rules.application(ModelRegistry.of_one(served))) as url:
            served.golden = await replay(golden, url, served.card.name, {})
        await judge(golden, served.golden, served.card.name, rules.golden, rules.device)


async def judge(golden: Golden, verdict: Verdict, name: str, mode: Mode, device: str) -> None:
    """Log how the answers compare; raises `Permanent` (`golden_mismatch`) where `mode` requires agreement."""
    if verdict.agrees:
        _LOG.info("%s: %d golden predictions agree, within %.3g", name, verdict.cases, verdict.largest)
        return
    current = await call_in_thread("environment", partial(environment, device))
    error = explain(golden, verdict, current)
    if mode is Mode.REQUIRE:
        raise error
    _LOG.warning("%s is served anyway: %s", name, error)
