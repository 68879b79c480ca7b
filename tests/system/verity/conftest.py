"""A file system that seals files, where this kernel has fs-verity and this user may mount."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import mounted_image

SIZE_BYTES = 256 << 20


@pytest.fixture(scope="session")
def _verity_kernel() -> None:
    if not Path("/sys/fs/ext4/features/verity").exists():
        pytest.skip("this kernel's ext4 has no fs-verity: `make test-verity` runs these tests in one that has")


@pytest.fixture
def ground(tmp_path: Path, _verity_kernel: None) -> Iterator[Path]:
    """An empty ext4 made with `-O verity`."""
    with mounted_image(tmp_path / "ground", "ext4", SIZE_BYTES, "-b", "4096", "-O", "verity") as folder:
        yield folder


@pytest.fixture
def plain_ground(tmp_path: Path, _verity_kernel: None) -> Iterator[Path]:
    """An empty ext4 made without, under a kernel that could."""
    with mounted_image(tmp_path / "plain", "ext4", SIZE_BYTES, "-b", "4096", "-O", "^verity") as folder:
        yield folder


def image_of(ground: Path) -> Path:
    """The file that a mounted file system is in."""
    return ground.with_name(f"{ground.name}.image")
