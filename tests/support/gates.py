"""Gates as the processes they are.

Law: a gate is driven through its options, environment and signals, and seen through its output, exit code and port.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef

REPOSITORY = Path(__file__).resolve().parents[2]
REF = ModelRef("acme/tiny", "v1")
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096, "sub/tokenizer.json": b"[1]"}
PATIENCE_S = 150.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Look until `condition` holds; fails naming `what` after a generous deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


@dataclass
class RunningGate:
    """A gate's process; `said()` is what it wrote so far."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def said(self) -> str:
        """Stdout and stderr so far."""
        return Path(self.log.name).read_text()

    def wait_said(self, text: str) -> None:
        """Wait until the gate wrote `text`; fails at once where it ended without."""
        wait_for(lambda: text in self.said() or self.process.poll() is not None, text)
        assert text in self.said(), self.said()

    def address(self) -> str:
        """Where it answers probes, as `http://127.0.0.1:PORT`."""
        self.wait_said("probes on ")
        return self.said().partition("probes on ")[2].split()[0]

    def wait(self) -> int:
        """The exit code, once it ends by itself."""
        return self.process.wait(PATIENCE_S)


class Gates:
    """Starts gates over `public`, without probes unless asked, and ends those that are left."""

    def __init__(self, public: PublicLayout, folder: Path) -> None:
        self._public = public
        self.termination_log = folder / "termination-log"
        self._started: list[RunningGate] = []

    def start(
        self, *options: str, environment: Mapping[str, str] | None = None, through: Sequence[str] = ()
    ) -> RunningGate:
        """A gate for `REF` with more `options`, staying unless they say `--once`; `through` is a program to run it."""
        named = ("--model", REF.name, "--version", REF.version, *options)
        return self.start_bare(*named, environment=environment, through=through)

    def start_bare(
        self, *options: str, environment: Mapping[str, str] | None = None, through: Sequence[str] = ()
    ) -> RunningGate:
        """A gate with these options, and the root and the termination log of this test."""
        fixed = ["--root", str(self._public.path), "--termination-log", str(self.termination_log)]
        if not {"--listen", "--once"} & set(options):
            fixed += ["--listen", "127.0.0.1:0"]
        log = tempfile.NamedTemporaryFile(dir=self.termination_log.parent, prefix="gate-")  # noqa: SIM115
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
        process = subprocess.Popen(
            [*through, sys.executable, "-m", "sidecar", "gate", *fixed, *options],
            env={**inherited, **(environment or {})},
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        gate = RunningGate(process, log)
        self._started.append(gate)
        return gate

    def check_opens(self, ref: ModelRef) -> None:
        """Run a gate as an init container; fails, with what it said, unless it opens."""
        gate = self.start_bare("--model", ref.name, "--version", ref.version, "--once")
        assert gate.wait() == 0, gate.said()

    def stop(self, gate: RunningGate, number: int = signal.SIGTERM) -> int:
        """End one gate by a signal and forget it; returns its exit code."""
        gate.process.send_signal(number)
        code = gate.wait()
        gate.log.close()
        self._started.remove(gate)
        return code

    def end(self) -> None:
        """Kill what still runs."""
        for gate in self._started:
            with contextlib.suppress(ProcessLookupError):
                gate.process.kill()
            gate.process.wait()
            gate.log.close()
