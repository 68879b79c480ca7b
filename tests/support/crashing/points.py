"""Crash points: which there are, and what a daemon under test is told to do at one of them.

Law: values and their JSON only. A point is named by its call and its place (`rename blob`); `nth` counts the points of
one name. That pair finds a point again in another run, where threads interleave differently; its number would not.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

When = Literal["before", "half", "after"]


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """The `nth` step (from 1) of the name `name`."""

    name: str
    nth: int

    def __str__(self) -> str:
        return f"{self.name} #{self.nth}"


@dataclass(frozen=True, slots=True)
class Kill:
    """Where to die by SIGKILL: before the step, after half of its bytes (writes only), or after it."""

    point: Point
    when: When

    def __str__(self) -> str:
        return f"{self.when} {self.point}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a daemon under test does besides its work.

    `log`: where the points it passes are written; `kill`: at which one it dies; `journal`: a folder for a copy of all
    that becomes durable.
    """

    root: Path
    log: Path
    kill: Kill | None = None
    journal: Path | None = None

    def encode(self) -> dict[str, object]:
        return {
            "root": str(self.root),
            "log": str(self.log),
            "kill": None if self.kill is None else asdict(self.kill),
            "journal": None if self.journal is None else str(self.journal),
        }

    @classmethod
    def decode(cls, document: dict[str, object]) -> Plan:
        kill, journal = document["kill"], document["journal"]
        assert kill is None or isinstance(kill, dict)
        return cls(
            root=Path(str(document["root"])),
            log=Path(str(document["log"])),
            kill=None if kill is None else Kill(Point(**kill["point"]), kill["when"]),
            journal=None if journal is None else Path(str(journal)),
        )


def read_points(log: Path) -> list[Point]:
    """The points that a run passed, in order."""
    seen: Counter[str] = Counter()
    points = []
    for line in log.read_text().splitlines():
        name = json.loads(line)["name"]
        seen[name] += 1
        points.append(Point(name, seen[name]))
    return points


def kills_at(point: Point) -> list[Kill]:
    """Every way to die at a point."""
    half: list[Kill] = [Kill(point, "half")] if point.name.split()[0] in ("write", "pwrite") else []
    return [Kill(point, "before"), *half, Kill(point, "after")]
