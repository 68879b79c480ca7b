"""Other file systems for a test: loop-mounted images, tmpfs and ramfs; skipped where this user may not mount.

Law: what is mounted is unmounted at the end of the `with` block.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted_tmpfs(folder: Path, size: str = "64m") -> Iterator[Path]:
    """An empty tmpfs of `size` at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mounted(["-t", "tmpfs", "-o", f"size={size}", "tmpfs"], folder):
        yield folder


@contextmanager
def mounted_ramfs(folder: Path) -> Iterator[Path]:
    """An empty ramfs at `folder`: it knows neither O_DIRECT nor fallocate."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mounted(["-t", "ramfs", "ramfs"], folder):
        yield folder


@contextmanager
def mounted_image(folder: Path, kind: str, size_bytes: int) -> Iterator[Path]:
    """An empty file system of `kind` (`ext4`, `vfat`) and so many bytes at `folder`."""
    maker = shutil.which(f"mkfs.{kind}")
    if maker is None:
        pytest.skip(f"no mkfs.{kind} here")
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_name(f"{folder.name}.image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([maker, image], check=True, capture_output=True)
    with _mounted(["-o", "loop", str(image)], folder):
        yield folder


@contextmanager
def _mounted(arguments: list[str], folder: Path) -> Iterator[None]:
    result = subprocess.run(["mount", *arguments, folder], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"cannot mount here: {result.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
