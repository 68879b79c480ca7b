"""The file with the pool's keys."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import Permanent
from cached.peers.access import NotOfThisPool, PoolKeys, SignedRequest
from cached.peers.serving.key_file import KeyFile

REQUEST = SignedRequest("GET", "/", "")
OLD, NEW = "old-" + "0" * 32, "new-" + "1" * 32


def write(path: Path, text: str) -> None:
    """Replace the file as a Secret's volume does, by a rename."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def test_a_key_is_rotated_without_a_restart(tmp_path: Path) -> None:
    """After the file changed, its first key signs, and keys that are no longer listed count no more."""
    path = tmp_path / "key"
    write(path, f"{OLD}\n")
    keys = KeyFile(path)
    signed = keys.read().sign(REQUEST, 0.0)
    write(path, f"\n{NEW}\r\n{OLD}\n")
    keys.read().check(REQUEST, signed, 0.0)
    newer = keys.read().sign(REQUEST, 0.0)
    write(path, NEW)
    keys.read().check(REQUEST, newer, 0.0)
    with pytest.raises(NotOfThisPool):
        keys.read().check(REQUEST, signed, 0.0)


@pytest.mark.parametrize("text", [None, "", "short", "\n\n", f"{OLD}\n{OLD}", "x" * 70_000])
def test_a_file_without_good_keys_is_an_error(tmp_path: Path, text: str | None) -> None:
    """A missing file, no key, a short one or the same twice is `no_pool_key`, which tells how to make one and shows
    none."""
    path = tmp_path / "key"
    if text is not None:
        write(path, text)
    with pytest.raises(Permanent, match="openssl") as caught:
        KeyFile(path).read()
    assert caught.value.code == "no_pool_key"
    assert OLD not in str(caught.value)


def test_a_key_may_come_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is not there yet is told once; the key counts from the moment that it is there, which is told too."""
    path = tmp_path / "key"
    keys = KeyFile(path)
    with caplog.at_level(logging.INFO):
        assert [keys.has_keys() for _ in range(3)] == [False] * 3
        write(path, OLD)
        assert [keys.has_keys() for _ in range(3)] == [True] * 3
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "no peers" not in told[1]
    assert all(str(path) in each and OLD not in each for each in told)


def test_a_file_that_breaks_later_leaves_the_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that goes away or is emptied while the daemon runs does not split the pool, and the log says it."""
    path = tmp_path / "key"
    write(path, OLD)
    keys = KeyFile(path)
    signed = keys.read().sign(REQUEST, 0.0)
    write(path, "")
    keys.read().check(REQUEST, signed, 0.0)
    path.unlink()
    keys.read().check(REQUEST, signed, 0.0)
    assert [record.getMessage().count("stay") for record in caplog.records] == [1, 1]


@given(st.lists(st.sampled_from([OLD.encode(), NEW.encode(), b"\n", b"\r\n", b" ", b"\0", b"\xff", b"k"]), max_size=90))
def test_any_bytes_are_keys_or_an_error(parts: list[bytes]) -> None:
    """Whatever is in the file, it is 1 to 4 keys of which each is long enough, or `no_pool_key`."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(parts))
        file.flush()
        lines = [each.strip() for each in b"".join(parts).splitlines() if each.strip()]
        try:
            keys = KeyFile(Path(file.name)).read()
        except Permanent as error:
            assert error.code == "no_pool_key"
        else:
            assert 1 <= len(lines) == len(set(lines)) <= 4
            assert min(map(len, lines)) >= 32
            keys.check(REQUEST, PoolKeys(lines[:1]).sign(REQUEST, 0.0), 0.0)
