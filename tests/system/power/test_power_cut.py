"""Power cuts on a strict disk: only what was synced comes back; or names without the bytes that were not."""

from __future__ import annotations

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from cached.contract.layout import Layout
from tests.support.crashing.checks import visible
from tests.support.crashing.journal import Variant
from tests.support.crashing.scenarios import UNLISTED
from tests.support.crashing.stage import Kept, Scenario, bare_stage, survive
from tests.support.crashing.trying import BY_NAME, Trials

_VARIANTS: tuple[Variant, ...] = ("strict", "renamed")


pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_visible_after_a_power_cut(trials: Trials, name: str) -> None:
    """Whenever power is cut, every name that comes back leads to whole content, before any daemon has run."""
    recording, spoiled = trials.recording(BY_NAME[name])
    folder = trials.fresh()
    for upto in range(len(recording.steps)):
        for variant in _VARIANTS:
            root = folder / f"{upto}-{variant}"
            inodes = recording.restore(upto, variant, root)
            visible(Layout(root), [new for old in spoiled for new in inodes.get(old, [])])
            shutil.rmtree(root)


@pytest.mark.parametrize("name", BY_NAME)
def test_recovery_from_a_power_cut(trials: Trials, name: str) -> None:
    """After a power cut at a sync of every kind the next daemon finishes the work, and trusts no byte that was not
    synced."""
    scenario = BY_NAME[name]
    before = [*BY_NAME.values()][: list(BY_NAME).index(name)]
    known = {step for other in before for step in trials.recording(other)[0].steps}
    steps = trials.recording(scenario)[0].steps
    first = [steps.index(step) for step in dict.fromkeys(steps) if step not in known]
    _cut_all(trials, scenario, [(upto, variant, 0) for upto in first for variant in _VARIANTS])


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_recovery_from_every_power_cut(trials: Trials, name: str) -> None:
    """The same at every sync, and with folders of which some come back as they were synced, some as they were."""
    scenario = BY_NAME[name]
    every = range(len(trials.recording(scenario)[0].steps))
    seeds = random.sample(range(1 << 32), 2)
    cuts: list[tuple[int, Variant, int]] = [(upto, variant, 0) for upto in every for variant in _VARIANTS]
    cuts += [(upto, "mixed", seed) for upto in every for seed in seeds]
    _cut_all(trials, scenario, cuts)


def _cut_all(trials: Trials, scenario: Scenario, cuts: list[tuple[int, Variant, int]]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda cut: _cut(trials, scenario, *cut), cuts))


def _cut(trials: Trials, scenario: Scenario, upto: int, variant: Variant, seed: int) -> None:
    recording, spoiled = trials.recording(scenario)
    folder = trials.fresh()
    with bare_stage(scenario, folder / "stage", trials.parent) as on:
        inodes = recording.restore(upto, variant, on.daemon.layout.root, seed)
        on.spoiled.update(new for old in spoiled for new in inodes.get(old, []))
        # The address of an origin is part of what a file without a promised sha256 is known by, and this is another.
        kept = Kept() if scenario is UNLISTED else None
        try:
            survive(scenario, on, kept)
        except AssertionError as broken:
            where = f"{scenario.name}, power cut after {recording.steps[upto]} ({upto}), {variant} {seed}"
            raise AssertionError(f"{where}: {broken}") from broken
    shutil.rmtree(folder)
