"""Other file systems for a test: loop-mounted images, tmpfs and ramfs; skipped where this user may not mount.

Law: what is mounted is unmounted at the end of the `with` block.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted_tmpfs(folder: Path, size: str = "64m", inodes: int | None = None) -> Iterator[Path]:
    """An empty tmpfs of `size` at `folder`; with at most so many inodes, where that is said."""
    folder.mkdir(parents=True, exist_ok=True)
    limit = "" if inodes is None else f",nr_inodes={inodes}"
    with _mounted(["-t", "tmpfs", "-o", f"size={size}{limit}", "tmpfs"], folder):
        yield folder


@contextmanager
def mounted_overlay(folder: Path, lower: Path) -> Iterator[Path]:
    """An overlay at `folder`, whose files are those of `lower`."""
    upper, work = folder.with_name(f"{folder.name}.upper"), folder.with_name(f"{folder.name}.work")
    for made in (folder, upper, work):
        made.mkdir(parents=True, exist_ok=True)
    with _mounted(["-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay"], folder):
        yield folder


@contextmanager
def mounted_ramfs(folder: Path) -> Iterator[Path]:
    """An empty ramfs at `folder`: it knows neither O_DIRECT nor fallocate."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mounted(["-t", "ramfs", "ramfs"], folder):
        yield folder


@contextmanager
def mounted_image(folder: Path, kind: str, size_bytes: int, *options: str) -> Iterator[Path]:
    """An empty file system of `kind` (`ext4`, `vfat`) and so many bytes at `folder`, made with these options of mkfs.

    Its bytes are in the file `<folder>.image`.
    """
    maker = shutil.which(f"mkfs.{kind}")
    if maker is None:
        pytest.skip(f"no mkfs.{kind} here")
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_name(f"{folder.name}.image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([maker, *options, image], check=True, capture_output=True)
    with _mounted(["-o", "loop", str(image)], folder):
        yield folder


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """A file system that is in the file `image` already."""
    with _mounted(["-o", "loop", str(image)], folder):
        yield folder


@contextmanager
def bound(source: Path, folder: Path) -> Iterator[Path]:
    """`source` at `folder` too."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mounted(["--bind", str(source)], folder):
        yield folder


def remount(folder: Path, how: str) -> None:
    """Change a mount: `ro`, `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True, capture_output=True)


class Filler:
    """Another program's file on a file system, which takes what is free."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "others"

    def leave(self, size_bytes: int) -> None:
        """Grow until so many bytes are free, and never beyond what is free now: what others give back in that time is
        theirs."""
        self.vanish()
        found = os.statvfs(self._path.parent)
        most = found.f_bfree * found.f_frsize
        with self._path.open("wb") as file:
            step = 1 << 24
            while step >= found.f_frsize:
                try:
                    at = file.seek(0, os.SEEK_END)
                    if at + step > most:
                        step //= 2
                        continue
                    os.posix_fallocate(file.fileno(), at, step)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    os.ftruncate(file.fileno(), at)
                    step //= 2
            os.ftruncate(file.fileno(), max(0, file.seek(0, os.SEEK_END) - size_bytes))
            os.fsync(file.fileno())

    def vanish(self) -> None:
        """Give all of it back."""
        self._path.unlink(missing_ok=True)
        os.sync()


@contextmanager
def mounted_file(image: Path, folder: Path, options: str) -> Iterator[Path]:
    """The file system that `image` holds, at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mounted(["-o", f"loop,{options}", str(image)], folder):
        yield folder


@contextmanager
def _mounted(arguments: list[str], folder: Path) -> Iterator[None]:
    result = subprocess.run(["mount", *arguments, folder], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"cannot mount here: {result.stderr.strip()}")
    try:
        yield
    finally:
        result = subprocess.run(["umount", folder], capture_output=True, text=True)
        # A test may have taken the mount away by itself, and one that failed may have left a process there.
        if result.returncode and "not mounted" not in result.stderr:
            subprocess.run(["umount", "-l", folder], check=True)
