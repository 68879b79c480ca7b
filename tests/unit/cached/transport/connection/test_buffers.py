"""The buffers: aligned, as many as were made, and none in two hands."""

from __future__ import annotations

import ctypes
import mmap
import threading
from itertools import pairwise

import pytest

from cached.transport.connection.buffers import BufferPool


def test_they_are_aligned_and_apart() -> None:
    """Each buffer has its size, begins at a page, and shares no byte with another."""
    pool = BufferPool(5, 64 * 1024)
    buffers = [pool.take() for _ in range(5)]
    starts = sorted(ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers)
    assert [len(buffer) for buffer in buffers] == [pool.size] * 5
    assert all(start % mmap.PAGESIZE == 0 for start in starts)
    assert all(later - earlier >= pool.size for earlier, later in pairwise(starts))


def test_the_last_one_back_is_lent_first() -> None:
    """So that no more memory is touched than was needed at once."""
    pool = BufferPool(3, 4096)
    first, second = pool.take(), pool.take()
    pool.give(first)
    assert pool.take() is first
    pool.give(second)
    assert pool.take() is second


def test_whoever_finds_none_waits() -> None:
    """With all buffers lent, `take` waits until one is given back."""
    pool = BufferPool(1, 4096)
    buffer, taken = pool.take(), threading.Event()

    def take() -> None:
        pool.take()
        taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.05)
    pool.give(buffer)
    assert taken.wait(100)
    thread.join()


def test_lent_for_a_block() -> None:
    """Leaving the block gives it back, an error or not."""
    pool = BufferPool(1, 4096)
    for _ in range(3):
        with pytest.raises(RuntimeError), pool.lent():
            raise RuntimeError
    assert len(pool.take()) == 4096


def test_a_release_gives_all_pages_back() -> None:
    """Nothing of what was received stays in memory: the kernel hands out fresh pages afterwards."""
    pool = BufferPool(2, 4096)
    buffers = [pool.take(), pool.take()]
    for buffer in buffers:
        buffer[:] = b"x" * 4096
        pool.give(buffer)
    assert pool.holds_pages
    pool.release()
    assert not pool.holds_pages
    assert [bytes(pool.take()) for _ in buffers] == [bytes(4096)] * 2


def test_no_release_under_a_borrower() -> None:
    """While one buffer is lent, a release changes no byte of any."""
    pool = BufferPool(2, 4096)
    lent, other = pool.take(), pool.take()
    lent[:] = other[:] = b"x" * 4096
    pool.give(other)
    pool.release()
    assert pool.holds_pages
    assert bytes(lent) == bytes(pool.take()) == b"x" * 4096
