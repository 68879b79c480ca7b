"""The catalog as the injector reads it."""

from __future__ import annotations

import pytest

from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from sidecar.injector.catalog_view import NO_CATALOG, read_catalog
from tests.support.pods import DIGEST, OTHER_DIGEST


def test_pins_are_found_by_reference() -> None:
    """Every version with a digest is pinned, also where its key would be a date or a number."""
    text = f"""
    defaults: {{source: "s3://bucket/{{name}}/{{version}}/"}}
    models:
      llama:
        pin: true
        versions:
          2024-07-23: {{source: "hf://a/b@c", digest: "{DIGEST}"}}
          1.0: {{digest: {OTHER_DIGEST}}}
          free: {{source: "hf://a/b@d"}}
          bare:
      listed: {{versions: [v1, v2]}}
      empty:
    """
    found = read_catalog(text)
    assert found.pins == {ModelRef("llama", "2024-07-23"): DIGEST, ModelRef("llama", "1.0"): OTHER_DIGEST}
    assert found.knows("llama") and found.knows("empty") and not found.knows("other")


@pytest.mark.parametrize(
    "entry",
    ['{digest: "sha256:short"}', "{digest: null}", "{digest: [1]}", "{digest: }", "text", "[]"],
)
def test_a_bad_entry_pins_nothing(entry: str) -> None:
    """What the daemon would reject is passed over, and the rest counts."""
    found = read_catalog(f"models: {{a: {{versions: {{v1: {entry}, v2: {{digest: '{DIGEST}'}}}}}}}}")
    assert found.pins == {ModelRef("a", "v2"): DIGEST}


def test_namespaces_are_read() -> None:
    """A model with `namespaces` is for those, one without for all."""
    found = read_catalog("models: {a: {namespaces: [team-a, team-b]}, b: {versions: [v1]}, c: }")
    assert found.namespaces == {"a": {"team-a", "team-b"}}


@pytest.mark.parametrize("value", ["", "[]", "team-a", "[team-a, [x]]", "[Team_A]", "{team-a: }", "null", "['']"])
def test_namespaces_that_cannot_be_read_are_nobodys(value: str) -> None:
    """A limit that the daemon would refuse to read is kept as one that no namespace meets."""
    assert read_catalog(f"models: {{a: {{namespaces: {value}}}}}").namespaces == {"a": frozenset()}


def test_a_bad_name_pins_nothing() -> None:
    """A name or version outside the grammar is passed over."""
    entry = f"{{versions: {{v1: {{digest: '{DIGEST}'}}, 'v 2': {{digest: '{DIGEST}'}}}}}}"
    assert read_catalog(f"models: {{'bad--name': {entry}, good: {entry}}}").pins == {ModelRef("good", "v1"): DIGEST}


@pytest.mark.parametrize("text", ["- a\n- b", "", "models: {a: [", "secret-in-a-line: @x"])
def test_what_is_no_catalog_is_refused(text: str) -> None:
    """The whole file is refused, without a word of what it holds."""
    with pytest.raises(Permanent) as caught:
        read_catalog(text)
    assert caught.value.code == "invalid_catalog" and "secret" not in str(caught.value)


def test_without_a_catalog_every_name_is_known() -> None:
    """Where there is no catalog nothing can be missing from it."""
    assert NO_CATALOG.knows("anything") and not NO_CATALOG.pins
