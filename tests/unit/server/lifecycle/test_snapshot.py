from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from cached.contract.errors import Permanent
from cached.contract.snapshot.lease import is_held, take_exclusive
from server.lifecycle.snapshot import hold, names
from tests.support.serving import publish


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_the_lease_is_held_for_the_block(model: Path, tmp_path: Path) -> None:
    """A snapshot reached by its symlink is leased, named by the link, and released afterwards."""
    published = publish(model, tmp_path / "public", "acme/tiny", "v1")
    with closing(hold(published.link)) as folder:
        snapshot = folder.snapshot
        assert is_held(published.lease)
        assert snapshot.path == published.snapshot
        assert (snapshot.name, snapshot.version) == ("acme/tiny", "v1")
        assert str(snapshot.digest) == f"sha256:{published.snapshot.name}"
    assert not is_held(published.lease)


def test_a_snapshot_made_anew_is_held_again(model: Path, tmp_path: Path) -> None:
    """What the daemon took away because it went bad, and made anew under its name, is held once it is followed."""
    published = publish(model, tmp_path / "public", "m", "v1")
    holding = hold(published.link)
    published.snapshot.rename(tmp_path / "gone bad")
    holding.follow()
    published.link.unlink()
    assert publish(model, tmp_path / "public", "m", "v1") == published
    assert not is_held(published.lease)
    holding.follow()
    assert is_held(published.lease)
    holding.close()
    assert not is_held(published.lease)


def test_a_snapshot_that_is_being_evicted_is_looked_up_again(model: Path, tmp_path: Path) -> None:
    """Where an eviction holds the lease, the symlink is followed anew, to whatever it then names."""
    root = tmp_path / "public"
    old = publish(model, root, "m", "v1")
    other = tmp_path / "other"
    other.mkdir()
    new = publish(other, root, "m", "v2")
    eviction = take_exclusive(old.lease)
    assert eviction is not None

    def republish() -> None:
        time.sleep(0.1)  # the point is to come while the other side already waits
        temporary = root / "link"
        temporary.symlink_to(os.readlink(new.link))
        temporary.rename(root / "moved")
        os.replace(root / "moved", old.link)

    thread = threading.Thread(target=republish)
    thread.start()
    with closing(hold(old.link)) as folder:
        assert folder.snapshot.path == new.snapshot
        assert is_held(new.lease)
    thread.join()
    eviction.close()


def test_a_plain_folder_is_served_without_a_lease(model: Path) -> None:
    """A folder that is no snapshot has no digest and keeps its own name."""
    with closing(hold(model)) as folder:
        snapshot = folder.snapshot
        assert (snapshot.name, snapshot.version, snapshot.digest) == ("source", None, None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/holdfast/models/acme--tiny/v1", ("acme/tiny", "v1")),
        ("/holdfast/models/m/2024-07-23", ("m", "2024-07-23")),
        ("/home/me/models/not a name/v1", ("v1", None)),
        ("/home/me/MiniLM", ("MiniLM", None)),
    ],
)
def test_the_path_spells_name_and_version(path: str, expected: tuple[str, str | None]) -> None:
    """`…/models/<name>/<version>` gives both, any other path its last segment."""
    assert names(Path(path)) == expected


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A missing path, a dangling link and a file are each an error that says what was expected."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("missing", "file", "dangling"):
        with pytest.raises(Permanent, match="expected a"):
            hold(tmp_path / name)
