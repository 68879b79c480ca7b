"""SHA-256's chaining values: what hashlib says of the whole, found out piece by piece."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from functools import cache

import pytest

from cached.peers.chaining import STATE_BYTES, ChainHasher, begin, is_available, step_at
from cached.peers.pieces import PIECE_BYTES

SIZE = 2 * PIECE_BYTES + 777


@cache
def content() -> bytes:
    """A blob of three pieces."""
    return random.Random(3).randbytes(SIZE)


@cache
def sha256_of_content() -> str:
    return hashlib.sha256(content()).hexdigest()


def states_of(data: bytes, step: int) -> bytes:
    """The states of data that is absorbed in parts of `step` bytes; compares the digest with hashlib's."""
    hasher = ChainHasher()
    for at in range(0, len(data), step):
        hasher.update(memoryview(bytearray(data[at : at + step])))
    assert hasher.hexdigest() == hashlib.sha256(data).hexdigest()
    return hasher.states()


@pytest.mark.parametrize("step", [PIECE_BYTES + 4097, 4 * 1024 * 1024, SIZE])
def test_the_states_do_not_depend_on_the_parts(step: int) -> None:
    """However the bytes come, the digest is hashlib's, and there is one state between each two pieces."""
    assert is_available()
    assert len(states_of(content(), step)) == 2 * STATE_BYTES
    assert states_of(content(), step) == states_of(content(), PIECE_BYTES)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES])
def test_a_blobs_end_has_no_state(size: int) -> None:
    """A blob of so many bytes has a state for each boundary inside it, and hashlib's digest."""
    assert len(states_of(content()[:size], PIECE_BYTES)) == max(0, (size - 1) // PIECE_BYTES) * STATE_BYTES


def test_pieces_are_checked_in_any_order_and_join() -> None:
    """Each piece leads from its state to the next one, the last to the digest; a hash that goes over all of them has it
    without their bytes, and so has one that absorbs some."""
    whole_data, sha256, states = content(), sha256_of_content(), states_of(content(), PIECE_BYTES)
    pieces = [(step_at(sha256, at, states), whole_data[at : at + PIECE_BYTES]) for at in range(0, SIZE, PIECE_BYTES)]
    for step, data in reversed(pieces):
        for right in (True, False):
            hasher = begin(step)
            hasher.update(data if right else data[:-1] + bytes([data[-1] ^ 1]))
            assert hasher.ends_as(step) is right
    for absorbed in range(4):
        whole = ChainHasher()
        for number, (step, data) in enumerate(pieces):
            if number == absorbed:
                whole.update(data)
            else:
                assert whole.skip(step, len(data))
        assert (whole.hexdigest(), whole.states()) == (sha256, states)


def test_a_step_from_another_state_is_not_taken() -> None:
    """A hash goes over a piece only from the very state and place that its step begins with."""
    sha256, states = sha256_of_content(), states_of(content(), PIECE_BYTES)
    hasher = ChainHasher()
    hasher.update(bytes(PIECE_BYTES))
    assert not hasher.skip(step_at(sha256, PIECE_BYTES, states), PIECE_BYTES)
    assert not ChainHasher().skip(step_at(sha256, PIECE_BYTES, states), PIECE_BYTES)


def test_lengths_beyond_32_bits_of_bits_count() -> None:
    """The position counts in the digest, as in FIPS 180-4, also above 512 MiB, where the length in bits needs 32 bits
    and more."""
    state = ChainHasher().state
    ends = set()
    for position in (0, 512 * 1024 * 1024, 1 << 40):
        hasher = ChainHasher(position, state)
        hasher.update(b"x")
        ends.add(hasher.hexdigest())
    assert len(ends) == 3


def test_without_the_functions_there_is_no_chaining() -> None:
    """Where libcrypto lacks a function, or another library answers, hashes are hashlib's, and the log says once why."""
    program = (
        "import ctypes, logging\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from cached.peers import chaining\n"
        "chaining._candidates = lambda: iter(['libc.so.6', 'none.so'])\n"
        "print(chaining.is_available(), chaining.is_available())\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
    assert found.stderr.count("no chaining values") == 1
