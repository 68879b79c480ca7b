"""Starts by the index: believed where nothing changed, and else as if there were none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.store.version import snapshots
from tests.support.daemon import DaemonProcess, prefetched, publish_files

ONE, TWO = ModelRef("one", "v1"), ModelRef("two", "v1")
_FILES = {name: {"config.json": name.encode(), "model.bin": name.encode() * 1000} for name in ("one", "two")}
_BELIEVED = "start index: believed, of 2 versions"


@pytest.fixture
def held(daemon: DaemonProcess, source: Path) -> DaemonProcess:
    """A daemon that ended with two versions, whose source is gone."""
    digests = {name: publish_files(source / name, files).digest for name, files in _FILES.items()}
    models = {name: prefetched(f"file://{source / name}", digest=str(digests[name])) for name in _FILES}
    daemon.write_catalog(models)
    daemon.start()
    for ref in (ONE, TWO):
        daemon.wait_ready(ref)
    _end_with_an_index(daemon)
    return daemon


def _end_with_an_index(daemon: DaemonProcess) -> None:
    """End a daemon so that it has written an index: an end has seconds for that, which a busy machine may take."""
    for _ in range(10):
        assert daemon.stop() == 0
        if "start index: written" in daemon.log() or _BELIEVED in daemon.log():
            return
        daemon.start()
    pytest.fail(f"no index was written:\n{daemon.log()}")


def _read(daemon: DaemonProcess, ref: ModelRef) -> dict[str, bytes]:
    folder = daemon.layout.public.model_link(ref)
    return {name: (folder / name).read_bytes() for name in _FILES[ref.name]}


def test_an_unchanged_root_is_believed(held: DaemonProcess) -> None:
    """After an end and after kill -9 at rest the index is believed, written again only after a change, and all is
    served as before."""
    before = held.layout.start_index.stat()
    for end in (held.stop, held.kill, held.stop):
        held.start()
        assert _BELIEVED in held.log()
        for ref in (ONE, TWO):
            held.wait_ready(ref)
            assert _read(held, ref) == _FILES[ref.name]
        end()
        assert "start index: written" not in held.log()
    assert held.layout.start_index.stat().st_ino == before.st_ino


_CHANGES: dict[str, Callable[[Layout], object]] = {
    "a name": lambda layout: layout.public.model_link(ONE).unlink(),
    "a name's folder": lambda layout: shutil.rmtree(layout.public.model_link(ONE).parent),
    "a snapshot": lambda layout: shutil.rmtree(layout.public.model_link(ONE).resolve()),
    "a manifest": lambda layout: (layout.public.model_link(ONE).resolve() / ".holdfast" / "manifest.json").unlink(),
    "all blobs": lambda layout: shutil.rmtree(layout.blobs),
    "a name led elsewhere": lambda layout: snapshots.set_name(
        layout, ONE, snapshots.read_name(layout, TWO) or pytest.fail("no name")
    ),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_what_was_changed_by_hand_is_put_back(held: DaemonProcess, name: str) -> None:
    """What people delete or move while no daemon runs is seen by the next start and put back, as without an index."""
    _CHANGES[name](held.layout)
    held.start()
    assert "start index: not used" in held.log()
    for ref in (ONE, TWO):
        held.wait(lambda: _is_back(held, ref), f"{ref} as it was published")  # noqa: B023 - called at once
    _end_with_an_index(held)
    held.start()
    assert _BELIEVED in held.log()


def test_what_is_deleted_is_put_back_without_a_catalog(held: DaemonProcess) -> None:
    """A start that has no catalog, and so never plans, looks after the root all the same."""
    held.catalog.unlink()
    held.listen()
    held.layout.public.model_link(ONE).unlink()
    held.wait(lambda: _is_back(held, ONE), "the deleted name")


def _is_back(daemon: DaemonProcess, ref: ModelRef) -> bool:
    try:
        return _read(daemon, ref) == _FILES[ref.name]
    except OSError:
        return False
