"""Cut a scenario short, and see what is left: the counting run, one kill, many kills.

Law: every try has a folder, an origin and daemons of its own; several go on at once, as many as there are processors.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tests.support.crashing.journal import Recording
from tests.support.crashing.points import Kill, Plan, Point, read_points
from tests.support.crashing.scenarios import ALL
from tests.support.crashing.stage import Scenario, make_template, play, stage, survive
from tests.support.crashing.warm import WarmParent

BY_NAME = {scenario.name: scenario for scenario in ALL}


class Trials:
    """What tests of one session share. Counting runs and templates are made once."""

    def __init__(self, parent: WarmParent, folder: Path) -> None:
        self.parent = parent
        self._folder = folder
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.template = cache(self._make_template)
        self.recording = cache(self._record)
        self.points = cache(self._count)

    def fresh(self) -> Path:
        """A new folder."""
        with self._lock:
            made = self._folder / str(next(self._numbers))
        made.mkdir()
        return made

    def kill(self, scenario: Scenario, *kills: Kill) -> list[bool]:
        """Die at each of `kills` in turn, each time on what the last left; then everything must hold.

        Tells which were met: threads interleave differently from run to run.
        """
        folder = self.fresh()
        with stage(scenario, folder / "stage", self.parent, self.template(scenario)) as on:
            met = []
            for number, kill in enumerate(kills):
                met.append(play(scenario, on, Plan(on.daemon.layout.root, folder / f"points{number}", kill)))
            try:
                survive(scenario, on)
            except AssertionError as broken:
                raise AssertionError(f"{scenario.name}, killed {', then '.join(map(str, kills))}: {broken}") from broken
        shutil.rmtree(folder)
        return met

    def kill_all(self, scenario: Scenario, kills: Iterable[Kill]) -> set[Kill]:
        """One try for each of `kills`; returns those that were met."""
        tried = list(kills)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(lambda kill: self.kill(scenario, kill), tried))
        return {kill for kill, (met,) in zip(tried, results, strict=True) if met}

    def _count(self, scenario: Scenario) -> list[Point]:
        """The points of a scenario, in order; the run that counts them must itself end well."""
        folder = self.fresh()
        with stage(scenario, folder / "stage", self.parent, self.template(scenario)) as on:
            died = play(scenario, on, Plan(on.daemon.layout.root, folder / "points"))
            assert not died
            survive(scenario, on)
        return read_points(folder / "points")

    def _record(self, scenario: Scenario) -> tuple[Recording, frozenset[int]]:
        """A run with a copy of all that it made durable, and the inodes that the test spoiled before it."""
        folder = self.fresh()
        with stage(scenario, folder / "stage", self.parent, self.template(scenario)) as on:
            play(scenario, on, Plan(on.daemon.layout.root, folder / "points", journal=folder / "journal"))
            spoiled = frozenset(on.spoiled)
        return Recording(folder / "journal"), spoiled

    def _make_template(self, scenario: Scenario) -> Path | None:
        return make_template(scenario, self.fresh() / "template", self.parent)


def one_of_each(points: Iterable[Point]) -> list[Point]:
    """The first point of every name."""
    return [point for point in points if point.nth == 1]
