"""Annotations: what a pod may ask for, and how it is told that it asked wrongly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.annotations import KNOWN, parse
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.reference import ModelRef, ModelRequest, add_pins, parse_models, write_models, write_pins

A, B = Digest("a" * 64), Digest("b" * 64)


def asking(**given: str) -> dict[str, str]:
    return {f"holdfast.dev/{key.replace('_', '-')}": value for key, value in given.items()}


def test_a_pod_without_a_model_asks_for_nothing() -> None:
    """Neither foreign annotations nor our other ones make a pod ask for weights."""
    assert parse({}) is None
    assert parse({"example.com/model": "x", **asking(verify="full")}) is None


def test_one_model_with_defaults() -> None:
    """Two annotations are enough; everything else has a default."""
    asked = parse(asking(model="acme/llama", version="v3"))
    assert asked is not None
    assert asked.models == (ModelRequest(ModelRef("acme/llama", "v3")),)
    assert (asked.verify, asked.containers, asked.mount_path, asked.affinity) == (
        "record",
        None,
        "/holdfast",
        "preferred",
    )
    assert asked.injected is None


def test_every_annotation() -> None:
    """Every annotation of the design is read."""
    given = asking(
        models="base=llama@v3, adapter=lora@v7",
        digest=f"adapter={B},base={A}",
        verify="full",
        containers="server, metrics",
        mount_path="/weights/here",
        affinity="required",
        injected="v1",
    )
    asked = parse(given)
    assert asked is not None
    assert [(each.alias, str(each.ref), each.pin) for each in asked.models] == [
        ("base", "llama@v3", A),
        ("adapter", "lora@v7", B),
    ]
    assert asked.containers == ("server", "metrics")
    assert (asked.verify, asked.mount_path, asked.affinity, asked.injected) == (
        "full",
        "/weights/here",
        "required",
        "v1",
    )


def test_one_bare_digest_pins_one_model() -> None:
    """With a single model the digest needs no name, however the model is written."""
    for how in (asking(model="a", version="1"), asking(models="x=a@1"), asking(models="a@1")):
        asked = parse({**how, **asking(digest=str(A))})
        assert asked is not None
        assert asked.models[0].pin == A


def test_models_without_an_alias_are_pinned_by_reference() -> None:
    """A digest may name its model by alias or by reference, and may pin only some."""
    asked = parse(asking(models="a@1,b@2", digest=f"b@2={B}"))
    assert asked is not None
    assert [each.pin for each in asked.models] == [None, B]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (asking(model="a"), "holdfast.dev/version"),
        (asking(model="a@v3"), "write `holdfast.dev/model: a` and `holdfast.dev/version: v3`"),
        (asking(model="a", version="1", models="b@2"), "exclude each other"),
        (asking(models="b@2", version="1"), "exclude each other"),
        (asking(model="a", version="1", modle="x"), "holdfast.dev/modle"),
        (asking(model="a b", version="1"), "a b"),
        (asking(model="a", version=""), "version"),
        (asking(models=""), "base=llama-3.1-8b@v3"),
        (asking(models="a@1,"), "base=llama-3.1-8b@v3"),
        (asking(models="a@1,a@1"), "more than once"),
        (asking(models="x=a@1,x=b@1"), "more than once"),
        (asking(models="x-y=a@1,X_Y=b@1"), "HOLDFAST_MODEL_PATH_X_Y"),
        (asking(models="ä=a@1"), "alias"),
        (asking(models="a@1,b@1", digest=str(A)), "base=sha256:"),
        (asking(models="x=a@1", digest=f"y={A}"), "'y'"),
        (asking(models="x=a@1", digest=f"x={A},x={A}"), "twice"),
        (asking(models="x=a@1", digest=f"x={A},a@1={A}"), "a@1"),
        (asking(model="a", version="1", digest="sha256:zz"), "hexadecimal"),
        (asking(model="a", version="1", digest=f"{A},{B}"), "which model"),
        (asking(model="a", version="1", verify="maybe"), "record or full"),
        (asking(model="a", version="1", affinity="no"), "preferred or required"),
        (asking(model="a", version="1", containers=""), "leave it out"),
        (asking(model="a", version="1", containers="x,x"), "each once"),
        (asking(model="a", version="1", containers="Server"), "Server"),
        *(
            (asking(model="a", version="1", mount_path=path), "absolute")
            for path in ("/", "x", "/a/", "/a/../b", "//a", "/a:b")
        ),
    ],
)
def test_what_is_wrong_is_refused_with_how_to_write_it(given: dict[str, str], says: str) -> None:
    """Bad annotations are refused as a whole, naming what is wrong and how it is written."""
    with pytest.raises(Permanent) as refused:
        parse(given)
    assert refused.value.code == "invalid_annotations"
    assert says in str(refused.value)
    assert refused.value.remedy


@given(st.dictionaries(st.sampled_from(KNOWN), st.text(max_size=40)))
def test_whatever_is_written_is_read_or_refused(given: dict[str, str]) -> None:
    """No text in an annotation gives anything but a reading or a refusal."""
    try:
        parse(given)
    except HoldfastError as error:
        assert error.code == "invalid_annotations"


def test_models_and_pins_are_written_as_they_are_read() -> None:
    """What the injector writes back into a pod reads as the same models and pins."""
    for text, pins in (("base=a@1,b@2", f"base={A}"), ("base=a@1,b@2", f"base={A},b@2={B}"), ("a@1", str(A))):
        models = add_pins(parse_models(text), pins)
        assert (write_models(models), write_pins(models)) == (text, pins)
    assert write_pins(parse_models("a@1,b@2")) is None
