"""The files of a Hub's listing: what is wrong with one of them is told of that one, and changes no other."""

from __future__ import annotations

from typing import Any

import pytest

from cached.core.listing import RemoteFile
from cached.sources.huggingface.entries import SIBLING, TREE_ENTRY, Names, parse_files
from cached.sources.huggingface.errors import HubRequest

REQUEST = HubRequest("https://hub.example.com", "org/name", "main", "hf://org/name", False)
COMMIT, OID, SHA256 = "c" * 40, "a" * 40, "b" * 64


def entry(names: Names, path: Any, size: Any = 5, oid: Any = OID, sha256: Any = None) -> dict[str, Any]:
    found = {names.path: path, "size": size, names.oid: oid}
    return found if sha256 is None else {**found, "lfs": {names.sha256: sha256, "size": size}}


def parse(names: Names, *entries: Any) -> list[RemoteFile]:
    return list(parse_files(REQUEST, COMMIT, "", entries, names))


WRONG: dict[str, dict[str, Any]] = {
    "no id": {"oid": None},
    "an id of a number": {"oid": 7},
    "a short id": {"oid": "a" * 39},
    "an upper-case id": {"oid": "A" * 40},
    "an id with a line's end": {"oid": "a" * 39 + "\n"},
    "a long sha256": {"sha256": "b" * 65},
    "a sha256 of a list": {"sha256": ["b"] * 64},
    "a size of text": {"size": "5"},
    "a size that is true": {"size": True},
    "a size that is a fraction": {"size": 5.0},
    "a size below zero": {"size": -1},
    "a size beyond reason": {"size": 1 << 60},
    "no size": {"size": None},
}


@pytest.mark.parametrize("names", [SIBLING, TREE_ENTRY], ids=["metadata", "tree"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_a_problem_of_that_file(case: str, names: Names) -> None:
    """Files are judged together where all are right: one that is wrong has a problem, and the others are as without
    it."""
    right = [entry(names, "config.json"), entry(names, "w.bin", sha256=SHA256)]
    expected = [
        RemoteFile("config.json", f"{COMMIT}:config.json", 5, OID, None, OID),
        RemoteFile("w.bin", f"{COMMIT}:w.bin", 5, SHA256, SHA256),
    ]
    assert parse(names, *right) == expected
    *others, odd = parse(names, *right, entry(names, "odd.bin", **WRONG[case]))
    assert others == expected
    assert odd.path == "odd.bin" and odd.size is None and odd.problem is not None


@pytest.mark.parametrize("lfs", [False, [], {}, "b" * 64])
def test_a_record_that_is_none_is_a_problem_of_its_file(lfs: object) -> None:
    """A Git LFS record of another kind is no reason to take the file's own id, which is the pointer's."""
    (found,) = parse(SIBLING, {**entry(SIBLING, "w.bin"), "lfs": lfs})
    assert found.problem is not None


def test_our_own_records_are_left_out() -> None:
    """A record of Holdfast's own is no content, but for the chaining values; a name that only looks like one is."""
    paths = [".holdfast/publishing", ".holdfast/chains", ".holdfast.bin", "sub/.holdfast/x", "a"]
    assert [file.path for file in parse(SIBLING, *(entry(SIBLING, path) for path in paths))] == paths[1:]


def test_two_ids_of_the_wrong_lengths_are_two_problems() -> None:
    """One digit less here and one more there are no two right ids."""
    found = parse(SIBLING, entry(SIBLING, "a", oid="a" * 39), entry(SIBLING, "b", oid="a" * 41))
    assert all(file.problem is not None for file in found)
