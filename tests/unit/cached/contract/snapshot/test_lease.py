"""Leases: who excludes whom, and what happens when the file behind the path is another."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cached.contract.snapshot.lease import is_held, take_exclusive, take_shared


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A lease file."""
    path = tmp_path / "lease"
    path.touch(mode=0o444)
    return path


def test_users_share_and_keep_an_eviction_out(path: Path) -> None:
    """Any number of users hold a lease together, and none gets it alone until they end."""
    first, second = take_shared(path), take_shared(path)
    assert first is not None and second is not None
    first.close()
    assert take_exclusive(path) is None and is_held(path)
    second.close()
    assert not is_held(path)


def test_an_eviction_keeps_users_out(path: Path) -> None:
    """Who holds a lease alone excludes users and other evictions until it gives it back."""
    alone = take_exclusive(path)
    assert alone is not None
    with alone:
        assert take_shared(path) is None and take_exclusive(path) is None
    with_others = take_shared(path)
    assert with_others is not None
    with_others.close()


def test_closing_twice_does_nothing(path: Path) -> None:
    """A lease that was given back may be closed again, and the descriptor's number is no longer its own."""
    lease = take_shared(path)
    assert lease is not None
    lease.close()
    with path.open() as reused:
        lease.close()
        assert reused.read() == ""


def test_nothing_there_is_no_lease(tmp_path: Path) -> None:
    """A path that names nothing gives None, and is held by no process."""
    assert take_shared(tmp_path / "gone") is None
    assert take_exclusive(tmp_path / "gone") is None
    assert not is_held(tmp_path / "gone")


def test_a_replaced_file_is_another_lease(path: Path) -> None:
    """Holding a file that its path no longer names excludes no other from the one it names now."""
    old = take_shared(path)
    assert old is not None
    with old:
        path.unlink()
        path.touch()
        assert not is_held(path)


def test_a_lease_follows_its_path(path: Path) -> None:
    """Following locks what the path names now, and keeps the old lock while nothing is there or an eviction has it."""
    held = take_shared(path)
    assert held is not None
    with held:
        old = path.with_name("old")
        path.rename(old)
        held.relock(path)
        assert is_held(old)
        path.touch()
        alone = take_exclusive(path)
        assert alone is not None
        with alone:
            held.relock(path)
            assert is_held(old)
        held.relock(path)
        held.relock(path)
        assert is_held(path) and not is_held(old)
    held.relock(path)
    assert not is_held(path)


def test_a_symlink_is_no_lease(path: Path) -> None:
    """A symlink at the path is not followed."""
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        take_shared(link)


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    """Who looks at a lease, or takes it, waits for no writer of a pipe that lies in its place."""
    path = tmp_path / "lease"
    os.mkfifo(path)
    for act in (is_held, take_shared, take_exclusive):
        asked = threading.Thread(target=act, args=(path,), daemon=True)
        asked.start()
        asked.join(30)
        assert not asked.is_alive()


def test_a_look_is_no_use(path: Path) -> None:
    """Looking whether a lease is held, in other threads, never makes an eviction believe that a reader uses it."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            is_held(path)

    with ThreadPoolExecutor(2) as pool:
        looks = [pool.submit(look) for _ in range(2)]
        try:
            for _ in range(2000):
                alone = take_exclusive(path)
                assert alone is not None
                alone.close()
        finally:
            over.set()
        for each in looks:
            each.result()
