"""Check a loaded model or adapter before any client can use it: a dummy inference, and its golden predictions.

Law: runs once per model, after warm-up and before the registry lists it. An error keeps the model out, and at the start
keeps the server from being ready. Golden predictions are replayed over HTTP, as clients ask; they are part of the
version, under its digest: an answer that differs is due to the libraries, the driver or the hardware.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.golden import GOLDEN_NAME, MAX_GOLDEN_BYTES, Case, Environment, Golden, compare
from cached.contract.program.logs import about
from server.engine.engine import call_in_thread
from server.lifecycle.entries import GoldenMode
from server.lifecycle.environment import environment, loaded_packages
from server.lifecycle.registry import ModelRegistry, Served

_LOG = logging.getLogger("holdfast.serve")
_DUMMY_WITHIN_S = 300.0  # the first pass of an engine may compile kernels
_ANSWER_WITHIN_S = 120.0
_DIFFERENCES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class GoldenComparison:
    """How a version's answers compare. `largest` is the largest difference of a number, in the case `at`. `failures`
    has a line for each case that does not agree."""

    cases: int
    largest: float
    at: str
    failures: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return not self.failures

    def document(self) -> dict[str, Any]:
        """Return the JSON of `/v1/models`."""
        return {
            "agrees": self.agrees,
            "cases": self.cases,
            "failed": len(self.failures),
            "largest_difference": self.largest,
            "at": self.at,
        }


async def admit(
    served: Served, mode: GoldenMode, device: str, application: Callable[[ModelRegistry], web.Application]
) -> None:
    """Run a dummy inference through the model's engine on `device`, and replay its golden predictions against the API
    that `application` makes; raises `HoldfastError`."""
    try:
        async with asyncio.timeout(_DUMMY_WITHIN_S):
            await served.run_dummy_inference()
    except TimeoutError as error:
        raise Permanent(
            "no_answer",
            f"{served.card.name}: expected an answer to a dummy inference, found none in {_DUMMY_WITHIN_S:.0f} s",
            "see what the GPU does (nvidia-smi) and the node's kernel log for Xid errors",
        ) from error
    if mode is GoldenMode.OFF:
        return
    golden = await call_in_thread("golden", partial(read_golden, served.card.snapshot.path))
    if golden is not None:
        async with serve_privately(application(ModelRegistry.of_one(served))) as url:
            served.golden = await replay(golden, url, served.card.name, {})
        await judge(golden, served.golden, served.card.name, mode, device)


async def judge(golden: Golden, verdict: GoldenComparison, name: str, mode: GoldenMode, device: str) -> None:
    """Log how the answers compare; raises `Permanent` (`golden_mismatch`) where `mode` requires agreement."""
    if verdict.agrees:
        _LOG.info(
            "%s: %d golden predictions agree, within %.3g",
            name,
            verdict.cases,
            verdict.largest,
            extra=about(model=name),
        )
        return
    current = await call_in_thread("environment", partial(environment, device))
    error = explain(golden, verdict, current, await call_in_thread("packages", loaded_packages))
    if mode is GoldenMode.REQUIRE:
        raise error
    _LOG.warning("%s is served anyway: %s", name, error, extra=about(model=name))


def read_golden(directory: Path) -> Golden | None:
    """Read a version's golden predictions, None where it has none; raises `Permanent` where they are invalid."""
    path = directory / GOLDEN_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_GOLDEN_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Permanent("unreadable", f"{path}: {error.strerror}", "check that this user may read the mount") from error
    try:
        return Golden.parse(data)
    except HoldfastError as error:
        raise Permanent(error.code, f"{path}: {error.message}", error.remedy) from error


async def replay(golden: Golden, url: str, model: str, headers: Mapping[str, str]) -> GoldenComparison:
    """Send each case to the server at `url` for its model `model`, with `headers` on each request."""
    largest, at, failures = 0.0, "", []
    timeout = aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(url, timeout=timeout, headers=headers) as session:
        for case in golden.cases:
            try:
                answer = await _ask(session, case, model)
            except HoldfastError as error:
                failures.append(f"{case.name}: {error.message}")
                continue
            agreement = compare(case, answer)
            if not agreement.largest <= largest:
                largest, at = agreement.largest, f"{case.name}: {agreement.at}"
            if agreement.mismatch is not None:
                failures.append(f"{case.name}: {agreement.mismatch}")
    return GoldenComparison(len(golden.cases), largest, at, tuple(failures))


def explain(golden: Golden, verdict: GoldenComparison, here: Environment, loaded: Collection[str]) -> Permanent:
    """Return the error of a mismatch: the inputs, the differences, and the versions that changed since recording, of
    packages those that are `loaded` here."""
    changed = golden.environment.differences(here, loaded)
    shown = "; ".join(changed[:_DIFFERENCES_SHOWN]) + ("; …" if len(changed) > _DIFFERENCES_SHOWN else "")
    return Permanent(
        "golden_mismatch",
        f"{len(verdict.failures)} of {verdict.cases} golden predictions differ: {' | '.join(verdict.failures[:5])}; "
        f"the largest difference is {verdict.largest:.3g} ({verdict.at or 'no number was compared'}). "
        f"Since they were recorded {golden.recorded_at}: {shown or 'nothing that is loaded here changed'}",
        "serve with the versions it was tested with; or, where the new answers are right, record them with "
        "`holdfast golden record` and publish; --golden warn serves anyway",
    )


@asynccontextmanager
async def serve_privately(application: web.Application) -> AsyncIterator[str]:
    """Serve `application` on a port of the loopback interface while the block runs; yields its URL."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _ask(session: aiohttp.ClientSession, case: Case, model: str) -> Any:
    request = {"model": model, **case.request} if case.path.startswith("/v1/") else case.request
    try:
        async with session.post(case.path, json=request) as response:
            text = await response.text()
            if response.status != 200:
                raise Permanent("refused", f"{case.path} answered {response.status}: {text[:300]}", "")
            return json.loads(text)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Permanent("no_answer", f"{case.path} gave no JSON: {type(error).__name__}: {error}", "") from error
