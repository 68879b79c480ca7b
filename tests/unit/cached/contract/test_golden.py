"""Golden predictions: the file, and how an answer compares with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import Permanent
from cached.contract.golden import MAX_CASES, Case, Environment, Golden, Tolerance, compare

CASE = Case("hello", "/v1/embeddings", {"input": "hello"}, {"data": [{"embedding": [0.5, -1.0]}]}, Tolerance(0.01, 0.1))
GOLDEN = Golden(
    (CASE,), Environment("3.11.7", "NVIDIA H200", "12.8", "570.1", "", {"torch": "2.13.0"}), "m", "2026-11-20T18:00:00Z"
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def expecting(value: object) -> Case:
    return replace(CASE, expected={"value": value})


def test_a_golden_file_is_read_as_it_was_written() -> None:
    """What is encoded parses to the same golden predictions."""
    assert Golden.parse(GOLDEN.encode()) == GOLDEN


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": "holdfast.dev/golden/v2"}, "expected schema"),
        ({"cases": []}, f"1 to {MAX_CASES} cases"),
        ({"cases": {}}, "a list"),
        ({"cases": [1]}, "case 0: expected an object"),
        ({"recorded_at": "yesterday"}, "recorded_at"),
        ({"model": None}, "as text"),
        ({"environment": {"packages": {"torch": 2}}}, "as text"),
    ],
)
def test_what_is_no_golden_file_is_refused(change: dict[str, Any], reason: str) -> None:
    """A document that is not of the schema is refused, and the message says what was expected."""
    document = {**json.loads(GOLDEN.encode()), **change}
    with pytest.raises(Permanent, match=reason) as caught:
        Golden.parse(json.dumps(document).encode())
    assert caught.value.code == "invalid_golden"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "name"),
        ({"path": "v1"}, "path"),
        ({"path": "/v1\n"}, "path"),
        ({"request": None}, "request"),
        ({"expected": {}}, "not empty"),
        ({"tolerance": {"absolute": 1}}, "tolerance"),
        ({"tolerance": {"absolute": -1, "relative": 0}}, "from 0"),
        ({"tolerance": {"absolute": True, "relative": 0}}, "from 0"),
        ({"expected": {"a": json.loads("[" * 40 + "]" * 40)}}, "deep"),
    ],
)
def test_a_bad_case_is_refused(change: dict[str, Any], reason: str) -> None:
    """A case that could not be replayed or compared is refused, with its number."""
    document = json.loads(GOLDEN.encode())
    document["cases"][0] |= change
    with pytest.raises(Permanent, match=reason):
        Golden.parse(json.dumps(document).encode())


def test_two_cases_of_one_name_are_refused() -> None:
    """A name says which case it is."""
    with pytest.raises(Permanent, match="same name"):
        replace(GOLDEN, cases=(CASE, CASE))


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    """Whatever the file holds, it is golden predictions or a `Permanent` error."""
    with pytest.raises(Permanent):
        Golden.parse(data)


@given(VALUES)
def test_an_answer_agrees_with_itself(value: object) -> None:
    """The answer that was recorded is within every tolerance, the narrowest too."""
    case = replace(expecting(value), tolerance=Tolerance(0, 0))
    assert compare(case, {"value": value, "id": "other"}).agrees


@given(VALUES, VALUES)
def test_comparing_never_fails(expected: object, found: object) -> None:
    """Any two answers compare; a difference is never negative."""
    assert not compare(expecting(expected), {"value": found}).largest < 0


@pytest.mark.parametrize(("found", "agrees"), [(1.109, True), (1.111, False), (0.891, True), (0.889, False)])
def test_tolerance_is_absolute_plus_relative(found: float, agrees: bool) -> None:
    """A number agrees within `absolute + relative * |expected|`, on both sides."""
    assert compare(expecting(1.0), {"value": found}).agrees is agrees


def test_the_largest_difference_is_named() -> None:
    """The largest difference is told with its place, agreeing or not."""
    answer = {"data": [{"embedding": [0.5, -1.05]}]}
    agreement = compare(CASE, answer)
    assert agreement.agrees and agreement.at == "data[0].embedding[1]"
    assert agreement.largest == pytest.approx(0.05)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": None},
        {"data": []},
        {"data": [{"embedding": [0.5]}]},
        {"data": [{"embedding": [0.5, None]}]},
        {"data": [{"embedding": [0.5, float("nan")]}]},
        {"data": [{"embedding": [0.5, True]}]},
    ],
)
def test_another_shape_does_not_agree(answer: object) -> None:
    """What lacks something, is shaped otherwise or is not a number does not agree, and the place is named."""
    mismatch = compare(CASE, answer).mismatch
    assert mismatch is not None and mismatch.startswith("data")


def test_text_agrees_only_when_it_is_equal() -> None:
    """Text has no tolerance."""
    assert compare(expecting("yes"), {"value": "yes"}).agrees
    assert compare(expecting("yes"), {"value": "yes "}).mismatch == "value: expected 'yes', found 'yes '"


def test_numbers_beside_another_text_are_compared_too() -> None:
    """Where a text differs, the largest difference of the numbers around it tells how far the model is off."""
    case = Case("c", "/v1/completions", {}, {"text": "ab", "logprobs": [-1.0, -2.0]}, Tolerance(0.1, 0))
    agreement = compare(case, {"text": "ac", "logprobs": [-1.0, -2.5]})
    assert agreement.mismatch == "text: expected 'ab', found 'ac'"
    assert (agreement.largest, agreement.at) == (0.5, "logprobs[1]")


def test_what_changed_between_two_environments_is_listed() -> None:
    """Each version that is another there is a line, with both sides, those that compute first; equal ones are not
    mentioned, nor packages that are not loaded there."""
    recorded = replace(
        GOLDEN.environment, packages={"torch": "2.13.0", "black": "1", "aiohttp": "1", "tokenizers": "1"}
    )
    there = {"torch": "2.13.0", "numpy": "2.3", "aiohttp": "2", "black": "2", "isort": "1"}
    here = replace(recorded, driver="580.2", python="9", packages=there)
    assert recorded.differences(here, {"torch", "numpy", "aiohttp", "yarl"}) == [
        "tokenizers 1 -> none",
        "numpy none -> 2.3",
        f"python {recorded.python} -> 9",
        "driver 570.1 -> 580.2",
        "aiohttp 1 -> 2",
    ]
