"""`link: true`: a local file's bytes are shared with the store where the file system can, and copied where not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cached.fetch.blob import BlobSpec
from cached.fetch.sharing import share_files
from cached.transport.target import LocalTarget
from tests.support.fetching import MIB, Engine, check_committed, local, noise, open_engine, private_files, spec_of

DATA = noise()[: 5 * MIB + 17]


@pytest.fixture(params=["here", "reflinks"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder of this machine's usual file system, and one of XFS or btrfs where HOLDFAST_TEST_REFLINK names one."""
    if request.param == "here":
        yield tmp_path
        return
    place = os.environ.get("HOLDFAST_TEST_REFLINK")
    if not place:
        pytest.skip("no folder on a file system with reflinks: name one on XFS or btrfs in HOLDFAST_TEST_REFLINK")
    with TemporaryDirectory(dir=place) as made:
        yield Path(made)


def file_in(folder: Path, data: bytes) -> tuple[BlobSpec, LocalTarget]:
    path = folder / "source.bin"
    path.write_bytes(data)
    target = local(path)
    return spec_of(data, sha256=None, validator=target.validator), target


def share(engine: Engine, spec: BlobSpec, target: LocalTarget) -> bool:
    """Share a file; return whether all its bytes are in the partial blob now."""
    share_files(engine.layout, [(spec, target)])
    return (engine.folder(spec) / "state.json").exists()


def test_a_shared_file_is_the_same_blob(folder: Path) -> None:
    """Shared or copied, the blob has the file's bytes under their sha256; shared, none was read through the engine."""
    with open_engine(folder / "root", 2) as engine:
        spec, target = file_in(folder, DATA)
        shared = share(engine, spec, target)
        check_committed(engine.layout, DATA, engine.fetch(spec, target))
        assert engine.counts.received_bytes == (0 if shared else len(DATA))
        assert shared == (
            "HOLDFAST_TEST_REFLINK" in os.environ and folder.is_relative_to(os.environ["HOLDFAST_TEST_REFLINK"])
        )


def test_the_source_stays_as_it_is_and_its_own(folder: Path) -> None:
    """The source keeps its mode, owner and one link, and a write to it later changes no blob."""
    with open_engine(folder / "root", 2) as engine:
        spec, target = file_in(folder, DATA)
        target.path.chmod(0o640)
        target = local(target.path)
        spec = spec_of(DATA, sha256=None, validator=target.validator)
        share(engine, spec, target)
        verified = engine.fetch(spec, target)
        found = target.path.stat()
        assert (found.st_mode & 0o777, found.st_nlink) == (0o640, 1)
        with target.path.open("r+b") as opened:
            opened.write(b"other")
        check_committed(engine.layout, DATA, verified)


def test_a_file_that_changed_is_not_shared(folder: Path) -> None:
    """A file that is not the listed one leaves no partial blob; its download says what is wrong."""
    with open_engine(folder / "root", 2) as engine:
        spec, target = file_in(folder, DATA)
        target.path.write_bytes(DATA[::-1])
        assert not share(engine, spec, target)
        assert private_files(engine.layout) == set()
        assert getattr(engine.error_of(spec, target), "code", "") == "source_changed"


def test_a_file_of_another_file_system_is_copied(tmp_path: Path) -> None:
    """Where the source is elsewhere nothing is shared, and nothing fails."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with TemporaryDirectory(dir=elsewhere) as made, open_engine(tmp_path / "root", 2) as engine:
        spec, target = file_in(Path(made), DATA)
        assert not share(engine, spec, target)
        check_committed(engine.layout, DATA, engine.fetch(spec, target))
