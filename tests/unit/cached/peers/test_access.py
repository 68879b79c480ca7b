"""Which requests come from a node of the pool."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.peers.access import WINDOW_S, NotOfThisPool, PoolKeys, SignedRequest, digest_content

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0
REQUEST = SignedRequest("GET", "/v1/blobs/sha256/ab", "bytes=0-9", digest_content(b"body"))


def test_a_request_of_the_pool_is_accepted_within_the_window() -> None:
    """A signature counts from a window before to a window after its time, and no longer."""
    keys = PoolKeys([KEY])
    signed = keys.sign(REQUEST, NOW)
    for now in (NOW - WINDOW_S, NOW, NOW + WINDOW_S):
        keys.check(REQUEST, signed, now)
    for now in (NOW - WINDOW_S - 2, NOW + WINDOW_S + 2):
        with pytest.raises(NotOfThisPool, match="clocks"):
            keys.check(REQUEST, signed, now)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "POST"},
        {"path": "/v1/blobs/sha256/ac"},
        {"range": "bytes=0-99"},
        {"range": ""},
        {"content_digest": ""},
    ],
)
def test_a_signature_is_of_one_request(change: dict[str, str]) -> None:
    """A signature of one request is none of another method, path, range or body's digest."""
    keys = PoolKeys([KEY])
    with pytest.raises(NotOfThisPool):
        keys.check(replace(REQUEST, **change), keys.sign(REQUEST, NOW), NOW)


def test_parts_cannot_be_moved_between_fields() -> None:
    """The end of a path is no beginning of a range: each part is signed with its length."""
    keys = PoolKeys([KEY])
    one, other = SignedRequest("GET", "/ab", "c"), SignedRequest("GET", "/a", "bc")
    with pytest.raises(NotOfThisPool):
        keys.check(other, keys.sign(one, NOW), NOW)


def test_two_pools_do_not_mix_and_a_key_rotates() -> None:
    """Another key is refused; while both are listed, nodes with the old and the new one understand each other."""
    old, new, both, swapped = PoolKeys([OTHER]), PoolKeys([KEY]), PoolKeys([OTHER, KEY]), PoolKeys([KEY, OTHER])
    with pytest.raises(NotOfThisPool, match="another key"):
        new.check(REQUEST, old.sign(REQUEST, NOW), NOW)
    for signer, reader in ((old, both), (both, old), (both, swapped), (swapped, both), (swapped, new), (new, swapped)):
        reader.check(REQUEST, signer.sign(REQUEST, NOW), NOW)


@given(st.text(max_size=120))
def test_any_header_is_refused_or_right(header: str) -> None:
    """Whatever stands in the header, it is refused and never an error."""
    with contextlib.suppress(NotOfThisPool):
        PoolKeys([KEY]).check(REQUEST, header, NOW)
        raise AssertionError(header)


@pytest.mark.parametrize("keys", [[], [b"short"], [KEY, KEY], [bytes([n]) * 32 for n in range(5)]])
def test_weak_keys_are_refused(keys: list[bytes]) -> None:
    """No key, a short one, the same twice or too many are a ValueError, which shows no key."""
    with pytest.raises(ValueError, match="expected") as caught:
        PoolKeys(keys)
    assert "short" not in str(caught.value).replace("shortest", "")
    assert "kkk" not in repr(PoolKeys([KEY]))
