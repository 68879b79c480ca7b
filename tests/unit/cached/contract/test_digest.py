"""Digests: one spelling, and no other."""

from __future__ import annotations

import pytest

from cached.contract.digest import Digest, is_hex
from cached.contract.errors import InvalidReference

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4, the empty message


def test_of_bytes() -> None:
    """A digest is the sha256 of the bytes."""
    assert str(Digest.of(b"")) == f"sha256:{EMPTY}"


def test_reads_what_it_writes() -> None:
    """A digest reads back what it is written as."""
    assert Digest.parse(str(Digest.of(b"x"))) == Digest.of(b"x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        EMPTY,
        f"sha256:{EMPTY[:-1]}",
        f"sha256:{EMPTY}0",
        f"sha256:{EMPTY.upper()}",
        f"SHA256:{EMPTY}",
        f"sha512:{EMPTY}",
        f" sha256:{EMPTY}",
        f"sha256:{EMPTY}\n",
        f"sha256:{EMPTY[:-1]}g",
        f"sha256:{EMPTY[:-1]}٣",
        pytest.param("sha256:" + "z" * 100_000, id="long"),
    ],
)
def test_any_other_spelling_is_refused(text: str) -> None:
    """Only `sha256:` and 64 lower-case hexadecimal digits are a digest; a refusal is short."""
    with pytest.raises(InvalidReference) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "expected"), [(EMPTY, True), (EMPTY.upper(), False), (EMPTY + "\n", False), ("", False)]
)
def test_is_hex(text: str, expected: bool) -> None:
    """`is_hex` accepts what a `Digest` accepts."""
    assert is_hex(text) is expected
