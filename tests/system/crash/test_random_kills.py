"""Kills at random moments under load: many versions, a quota that holds few of them, pulls all the time."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from tests.support.crashing.checks import settled, visible
from tests.support.crashing.stage import Scenario, Stage, bare_stage
from tests.support.crashing.trying import Trials
from tests.support.crashing.warm import SEGMENT_BYTES

_VERSIONS = 12
_LIVES = 300
_SHARED = random.Random(11).randbytes(2 * SEGMENT_BYTES)
_NAMES = [f"v{number}" for number in range(_VERSIONS)]
_FILES = {
    name: {
        "shared.bin": _SHARED,
        "model.bin": random.Random(number).randbytes(SEGMENT_BYTES * (1 + number % 4) + number),
        "config.json": name.encode(),
    }
    for number, name in enumerate(_NAMES)
}


def _serve(on: Stage) -> None:
    for name, files in _FILES.items():
        on.serve(name, files)


def _catalog(on: Stage) -> dict[str, object]:
    return {"load": {"versions": {n: {"source": on.origin.url(f"/{n}/")} for n in _NAMES}}}


_LOAD = Scenario(
    "load",
    {},
    _serve,
    _catalog,
    lambda on: None,
    options=(
        "--scrub-rate",
        "0",
        "--connections",
        "4",
        "--quota",
        "3MB",
        "--high-watermark",
        "0.8",
        "--low-watermark",
        "0.8",
    ),
)


@pytest.mark.slow
def test_random_kills_under_load(trials: Trials) -> None:
    """Whenever a busy daemon is killed, nothing visible is broken; after hundreds of deaths what is asked for comes,
    the account is the disk's, and nothing is left over."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    with bare_stage(_LOAD, trials.fresh() / "stage", trials.parent) as on:
        on.daemon.write_catalog(_catalog(on))
        for life in range(_LIVES):
            on.daemon.start()
            for name in chance.sample(_NAMES, chance.randint(1, 4)):
                with contextlib.suppress(HoldfastError):
                    on.daemon.pull(f"load@{name}")
            time.sleep(chance.random() * 0.4)
            on.daemon.kill()
            try:
                visible(on.daemon.layout)
            except AssertionError as broken:
                raise AssertionError(f"seed {seed}, life {life}: {broken}") from broken
        last = chance.choice(_NAMES)
        on.daemon.start()
        on.daemon.pull(f"load@{last}")
        ref = ModelRef("load", last)
        on.daemon.wait_ready(ref)
        on.daemon.control.pin(ref)
        on.daemon.wait(lambda: not on.daemon.metric("holdfast_fetch_in_progress"), "an end of all other fetches")
        on.daemon.control.gc(dry_run=False)
        settled(on.daemon, {ref: _FILES[last]})
