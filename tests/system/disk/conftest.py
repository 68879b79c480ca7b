"""A daemon whose root is a small file system of its own, with what it is to fetch and what must hold of the root."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cached.contract.digest import Digest
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, publish_files
from tests.support.mounts import mounted_image

MIB = 1024 * 1024
OPTIONS = ("--scrub-rate", "0")

Place = Callable[..., dict[str, object]]
Start = Callable[..., AbstractContextManager[DaemonProcess]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Put a version with files of these sizes at its own source; gives its catalog entry."""

    def put(name: str, *sizes: int) -> dict[str, object]:
        chance = random.Random(name)
        files = {f"part-{number}/weights.bin": chance.randbytes(size) for number, size in enumerate(sizes)}
        publish_files(tmp_path / "source" / name, files)
        return {"source": f"file://{tmp_path}/source/{name}"}

    return put


@pytest.fixture
def on_ext4(tmp_path: Path) -> Start:
    """A daemon, not started, on an ext4 of so many bytes."""

    @contextmanager
    def start(size_bytes: int, *options: str, make: tuple[str, ...] = ("-m", "0")) -> Iterator[DaemonProcess]:
        with (
            mounted_image(tmp_path / "root", "ext4", size_bytes, *make),
            daemon_process(tmp_path, *OPTIONS, *options) as daemon,
        ):
            yield daemon

    return start


def told(daemon: DaemonProcess, ref: ModelRef) -> dict[str, Any]:
    """What the port says of a version: it says it also where the status file cannot be written. Empty: nothing."""
    found = [
        item for item in daemon.document()["models"] if (item["model"], item["version"]) == (ref.name, ref.version)
    ]
    return found[0] if found else {}


def error_of(daemon: DaemonProcess, ref: ModelRef) -> dict[str, Any]:
    """The error that the port tells of a version; empty where it tells none."""
    return told(daemon, ref).get("error") or {}


def wait_error_told(daemon: DaemonProcess, ref: ModelRef, code: str) -> dict[str, Any]:
    """Wait until the port tells this error of a version; returns it: the next try may clear it at once."""
    seen: dict[str, Any] = {}

    def is_told() -> bool:
        nonlocal seen
        seen = error_of(daemon, ref)
        return seen.get("code") == code

    daemon.wait(is_told, code)
    return seen


def wait_told(daemon: DaemonProcess, ref: ModelRef, state: str) -> None:
    """Wait until the port says that a version is in `state`."""
    daemon.wait(lambda: told(daemon, ref).get("state") == state, f"{ref} {state}")


def check_public(daemon: DaemonProcess) -> None:
    """Whatever is visible is complete, and its bytes are what its name promises."""
    public = daemon.layout.public
    for link in public.models.glob("*/*"):
        if link.is_symlink():
            assert os.path.isdir(link), f"{link} leads nowhere"
    for snapshot in public.snapshots.iterdir():
        if snapshot.name.startswith(".tmp-"):
            continue
        data = (snapshot / ".holdfast" / "manifest.json").read_bytes()
        assert Digest.of(data).hex == snapshot.name
        for entry in Manifest.parse(data).files:
            found = (snapshot / entry.path).read_bytes()
            assert (len(found), hashlib.sha256(found).hexdigest()) == (entry.size, entry.sha256)
