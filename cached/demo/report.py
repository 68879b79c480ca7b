"""What the demo says: acts, measured steps, lines of other processes, two tables.

Law: writes to stdout and nowhere else; measures and decides nothing.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Sequence

SENTENCES = (
    "The holdfast anchors the kelp to the rock.",
    "Seaweed clings to stones at the bottom of the sea.",
    "The pod starts once the weights are on its node.",
    "Kubernetes runs the container when its files have arrived.",
    "I would like a cup of coffee with milk, please.",
)
_STEP_WIDTH = 62


class Report:
    """Prints the demo as it happens. Threads may call it: lines stay whole."""

    def __init__(self) -> None:
        self._act = 0
        self._lock = threading.Lock()
        self._bold, self._dim, self._plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if _colours() else ("", "", "")

    def act(self, title: str) -> None:
        """Open the next act."""
        self._act += 1
        self._write(f"\n{self._bold}{self._act}. {title}{self._plain}\n")

    def step(self, what: str, took_s: float | None = None) -> None:
        """Say what was done, and how long it took."""
        text = f"   {what}" if took_s is None else f"   {what:<{_STEP_WIDTH}}{seconds(took_s):>12}"
        self._write(f"{text}\n")

    def command(self, line: str) -> None:
        """Show a command as a person would type it."""
        self._write(f"   {self._dim}$ {line}{self._plain}\n")

    def lines_of(self, name: str) -> Callable[[str], None]:
        """Something to hand each line of `holdfast NAME` to: shown with its name before it."""
        prefix = f"   {self._dim}{name} │{self._plain} "
        return lambda line: self._write(f"{prefix}{line.removeprefix(f'holdfast {name}: ')}\n")

    def text(self, text: str) -> None:
        """Print text as it is."""
        self._write(text + "\n")

    def similarities(self, vectors: Sequence[Sequence[float]]) -> None:
        """The sentences and the cosines between them: 1 is the same meaning, 0 has nothing to do with it."""
        numbers = "".join(f"{number:>6}" for number in range(1, len(vectors) + 1))
        width = max(map(len, SENTENCES))
        self._write(f"   {'cosine similarity':<{width + 3}}{numbers}\n")
        for row, (sentence, vector) in enumerate(zip(SENTENCES, vectors, strict=True), start=1):
            cosines = "".join(f"{cosine(vector, other):>6.2f}" for other in vectors)
            self._write(f"   {row}  {sentence:<{width}}{cosines}\n")

    def comparison(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """The closing table: a step, cold, warm."""
        self._write(f"   {'':<{_STEP_WIDTH - 16}}{'cold':>12}{'warm':>12}\n")
        for what, cold, warm in rows:
            self._write(f"   {what:<{_STEP_WIDTH - 16}}{cold:>12}{warm:>12}\n")

    def _write(self, text: str) -> None:
        with self._lock:
            sys.stdout.write(text)
            sys.stdout.flush()


def seconds(value: float) -> str:
    """Seconds for a cell of the table; milliseconds where they are few."""
    return f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine of the angle between two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
