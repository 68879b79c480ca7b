"""Replay a version's golden predictions against the model to be served, over HTTP as clients would.

Law: requests and compares; serves nothing. The predictions are part of the version, under its digest: an answer that
differs is due to the libraries, the driver or the hardware.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.golden import GOLDEN_NAME, MAX_GOLDEN_BYTES, Case, Environment, Golden, compare

_LOG = logging.getLogger(__name__)
_ANSWER_WITHIN_S = 120.0
_DIFFERENCES_SHOWN = 12


class Mode(StrEnum):
    """The effect of golden predictions: on readiness, a warning, or none."""

    REQUIRE = "require"
    WARN = "warn"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Verdict:
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


def read(directory: Path) -> Golden | None:
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


async def replay(golden: Golden, url: str, model: str, headers: Mapping[str, str]) -> Verdict:
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
    return Verdict(len(golden.cases), largest, at, tuple(failures))


def explain(golden: Golden, verdict: Verdict, here: Environment) -> Permanent:
    """Return the error of a mismatch: the inputs, the differences, and the versions that changed since recording."""
    changed = golden.environment.differences(here)
    shown = "; ".join(changed[:_DIFFERENCES_SHOWN]) + ("; …" if len(changed) > _DIFFERENCES_SHOWN else "")
    return Permanent(
        "golden_mismatch",
        f"{len(verdict.failures)} of {verdict.cases} golden predictions differ: {' | '.join(verdict.failures[:5])}; "
        f"the largest difference is {verdict.largest:.3g} ({verdict.at or 'no number was compared'}). "
        f"Since they were recorded {golden.recorded_at}: {shown or 'no version changed'}",
        "serve with the versions it was tested with; or, where the new answers are right, record them with "
        "`holdfast golden record` and publish; --golden warn serves anyway",
    )


@asynccontextmanager
async def privately(application: web.Application) -> AsyncIterator[str]:
    """Serve `application` on a port of the loopback interface while the block runs; yields its URL."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        assert runner.server is not None
        server = await asyncio.get_running_loop().create_server(runner.server, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
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
