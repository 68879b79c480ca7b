"""Model references: the grammar of section 2 of the design, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import InvalidReference
from cached.contract.reference import ModelRef, name_from_path_segment

GOOD_NAMES = ["m", "acme/Llama-3.1-8B", "a/b/c", "0", "a_b", "a.b", "A" * 96, "a_", "x/y_.z", "daemon", "daemon.json/x"]
BAD_NAMES = [
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    "a/b/c/d",
    ".a",
    "-a",
    "_a",
    "a.",
    "a-",
    "a--b",
    "a/b-/c",
    "..",
    "a/../b",
    "a b",
    "a\n",
    "a\x00",
    "a\\b",
    "a@b",
    "á",
    "٣",
    "A" * 97,
    "daemon.json",
    "Daemon.JSON",
]
BAD_VERSIONS = ["", ".", "..", ".v", "-1", "_1", "a/b", "a b", "v1\n", "v\x00", "v@1", "é", "v" * 129]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names(name: str) -> None:
    """A name of the grammar is accepted and is one path segment that reads back."""
    ref = ModelRef.parse(f"{name}@v1")
    assert (ref.name, ref.version, str(ref)) == (name, "v1", f"{name}@v1")
    assert "/" not in ref.path_segment
    assert name_from_path_segment(ref.path_segment) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(name: str) -> None:
    """A name outside the grammar is refused, also where it would be a file of the daemon's own."""
    with pytest.raises(InvalidReference) as caught:
        ModelRef(name, "v1")
    assert caught.value.code == "invalid_reference"
    assert caught.value.remedy


@pytest.mark.parametrize("version", ["1", "v1", "2024-07-23", "a..b", "a--b", "v1.", "v1-", "v" * 128])
def test_good_versions(version: str) -> None:
    """A version of the grammar is accepted."""
    assert ModelRef("m", version).version == version


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_bad_versions(version: str) -> None:
    """A version outside the grammar is refused."""
    with pytest.raises(InvalidReference):
        ModelRef("m", version)


@pytest.mark.parametrize("text", ["", "m", "@", "m@", "@v", "m@v@w", "m @v", pytest.param("x" * 100_000, id="long")])
def test_not_a_reference(text: str) -> None:
    """A text that is not `name@version` is refused with a message of bounded length."""
    with pytest.raises(InvalidReference) as caught:
        ModelRef.parse(text)
    assert len(str(caught.value)) < 1000


def test_a_name_too_long_for_a_path_segment() -> None:
    """A name of three good segments is refused where the file system has no room for it in one."""
    fits, too_long = "/".join(["a" * 83, "b" * 84, "c" * 84]), "/".join(["a" * 84, "b" * 84, "c" * 84])
    assert len(ModelRef(fits, "v").path_segment) == 255
    with pytest.raises(InvalidReference, match="256 bytes"):
        ModelRef(too_long, "v")


@pytest.mark.parametrize("segment", ["a---b", "a--", "--a", "a--b--c--d", "a-", ".tmp-x", ""])
def test_path_segments_that_are_no_name(segment: str) -> None:
    """A folder that no name is written as is never taken for a model's."""
    with pytest.raises(InvalidReference):
        name_from_path_segment(segment)


names = st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), min_size=1, max_size=3)


@given(names, names)
def test_two_names_are_two_path_segments(first: list[str], second: list[str]) -> None:
    """No two names are written as the same path segment."""
    try:
        one, other = (ModelRef("/".join(segments), "v") for segments in (first, second))
    except InvalidReference:
        return
    assert (one == other) is (one.path_segment == other.path_segment)


@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """No text gives anything but a reference that reads back or `InvalidReference`."""
    try:
        ref = ModelRef.parse(text)
    except InvalidReference:
        return
    assert str(ref) == text
