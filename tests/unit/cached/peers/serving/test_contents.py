"""What serving leaves in the page cache."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.peers.serving.contents import CHUNK_BYTES, Contents, NoPartials, PageCacheManners, send_chunk
from tests.support.page_cache import drop_pages

SHA256 = "a" * 64
SIZE = 4 * CHUNK_BYTES


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A blob of four chunks on a disk."""
    path = Layout(tmp_path).blob(SHA256)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        os.fsync(file.fileno())
    return path


def is_cached(path: Path, offset: int) -> bool:
    """Return whether the page is cached; it may be afterwards, so that a page can be asked about once."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        try:
            return os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("this file system does not tell what is cached")
            raise


def drop(path: Path) -> None:
    drop_pages(path)
    if is_cached(path, CHUNK_BYTES - 4096):
        pytest.skip("this file system keeps its pages")


def serve(path: Path) -> None:
    """Send the whole blob over a socket, with the manners of the server."""
    contents = Contents(Layout(path.parents[3]), NoPartials())
    ours, theirs = socket.socketpair()
    with ours, theirs, contents.open_range(SHA256, 0, SIZE) as opened:
        assert opened is not None
        reader = threading.Thread(target=lambda: theirs.recv(SIZE, socket.MSG_WAITALL))
        reader.start()
        manners = PageCacheManners(opened)
        for offset in range(0, SIZE, CHUNK_BYTES):
            send_chunk(ours, opened, offset, CHUNK_BYTES)
        manners.drop_behind()
        reader.join()


def test_what_was_not_cached_leaves_the_cache(blob: Path) -> None:
    """A range that serving read from the disk takes no memory afterwards."""
    drop(blob)
    serve(blob)
    assert not any(is_cached(blob, offset) for offset in range(65536, SIZE, CHUNK_BYTES))


def test_what_was_cached_stays(blob: Path) -> None:
    """The chunk that a process had read before is still cached afterwards."""
    drop(blob)
    with blob.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), CHUNK_BYTES, 2 * CHUNK_BYTES)
    serve(blob)
    assert [is_cached(blob, offset) for offset in range(65536, SIZE, CHUNK_BYTES)] == [False, False, True, False]


def test_a_shortened_blob_is_an_error(blob: Path) -> None:
    """A blob that became shorter ends the upload; nothing is made up in place of its bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Contents(Layout(blob.parents[3]), NoPartials()).open_range(SHA256, 0, SIZE) as opened:
        assert opened is not None
        os.truncate(blob, 10)
        with pytest.raises(OSError, match="ended early"):
            send_chunk(ours, opened, 0, CHUNK_BYTES)
