"""Describe the machine of a benchmark, and append sections to docs/benchmarks.md.

Law: reads the kernel's description of this machine; writes one file, and only with `--append`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from bench.measure import failed
from cached.contract.program.units import format_size

BENCHMARKS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def describe(folder: Path) -> str:
    """Return one line: processor, cores, memory, kernel, and the file system of `folder`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kernel = os.uname()
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {format_size(memory)} memory, "
        f"{kernel.sysname} {kernel.release}, {_file_system(folder)}"
    )


def require_space(folder: Path, size: int) -> None:
    """Raise `Permanent` unless the file system of `folder` has `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise failed(f"{folder} has {format_size(free)} free, expected {format_size(size)}", "give a smaller --size")


def append_section(title: str, folder: Path, body: str) -> None:
    """Append a dated section, with the machine's description, to docs/benchmarks.md."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    with BENCHMARKS.open("a", encoding="utf-8") as page:
        page.write(f"\n### {title}, {now}\n\n{describe(folder)}\n\n{body}\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _file_system(folder: Path) -> str:
    if shutil.which("findmnt") is None:
        return "an unknown file system"
    found = subprocess.run(
        ["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--target", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return " on ".join(found.stdout.split()) or "an unknown file system"
