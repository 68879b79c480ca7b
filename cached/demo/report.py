"""The demo's output: acts, measured steps, lines of other processes, two tables.

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


class Report:
    """Prints the demo as it happens. Threads may call it: lines stay whole."""

    def __init__(self) -> None:
        self._act, self._lock = 0, threading.Lock()
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._bold, self._dim, self._plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if colours else ("", "", "")

    def act(self, title: str) -> None:
        """Print the next act's number and title."""
        self._act += 1
        self.text(f"\n{self._bold}{self._act}. {title}{self._plain}")

    def step(self, what: str, took_s: float | None = None) -> None:
        """Print a step, with its seconds where it has some."""
        self.text(f"   {what}" if took_s is None else f"   {what:<62}{seconds(took_s):>12}")

    def command(self, line: str) -> None:
        """Print a command as a person would type it."""
        self.text(f"   {self._dim}$ {line}{self._plain}")

    def lines_of(self, name: str) -> Callable[[str], None]:
        """Return a function that prints each line of `holdfast NAME` after the name."""
        prefix = f"   {self._dim}{name} │{self._plain} "
        return lambda line: self.text(f"{prefix}{line.removeprefix(f'holdfast {name}: ')}")

    def similarities(self, vectors: Sequence[Sequence[float]]) -> None:
        """Print the sentences and the cosines between them: 1 is the same meaning, 0 an unrelated one."""
        width = max(map(len, SENTENCES))
        self.text(f"   {'cosine similarity':<{width + 3}}" + "".join(f"{row:>6}" for row in range(1, len(vectors) + 1)))
        for row, (sentence, vector) in enumerate(zip(SENTENCES, vectors, strict=True), start=1):
            cosines = "".join(f"{cosine(vector, other):>6.2f}" for other in vectors)
            self.text(f"   {row}  {sentence:<{width}}{cosines}")

    def row(self, what: str, cold: str, warm: str) -> None:
        """Print a row of the closing table."""
        self.text(f"   {what:<46}{cold:>12}{warm:>12}")

    def text(self, text: str) -> None:
        """Print text and a line break."""
        with self._lock:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def seconds(value: float | None) -> str:
    """Format seconds for a cell of a table: milliseconds below 0.1 s, `-` for None."""
    return "-" if value is None else f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors of one length."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
