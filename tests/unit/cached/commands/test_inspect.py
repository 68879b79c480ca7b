"""`holdfast inspect`: what a version is made of."""

from __future__ import annotations

import json
import os

import pytest

from cached.commands import inspect
from cached.contract.golden import GOLDEN_NAME, Case, Environment, Golden, Tolerance
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from tests.unit.cached.commands.conftest import publish

REF = ModelRef("acme/llama", "v3")
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000}
GOLDEN = Golden(
    (Case("hello", "/v1/embeddings", {"input": "hello"}, {"data": []}, Tolerance(0, 0)),),
    Environment(device="NVIDIA H200", packages={"torch": "2.13.0"}),
    "acme/llama",
    "2026-11-20T18:00:00Z",
)


def published(layout: Layout, files: dict[str, bytes]) -> str:
    digest = publish(layout, REF, files)
    snapshot = layout.public.snapshot(digest)
    seen = {path: VerifiedFile.of(os.stat(snapshot.path / path), "2026-11-20T17:00:00Z") for path in files}
    snapshot.verified.write_bytes(VerifiedRecord(seen).encode())
    return str(digest)


def test_inspect_shows_files_with_their_digests(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file is listed with its size, when it was verified and its sha256."""
    digest = published(layout, FILES)
    assert inspect.main(["--root", str(layout.root), str(REF)]) == 0
    text = capsys.readouterr().out
    assert digest in text and "golden predictions: none" in text
    (row,) = [line for line in text.splitlines() if line.startswith("model.safetensors")]
    assert row.split()[1:4] == ["4.9", "KiB", "2026-11-20T17:00:00Z"]


def test_inspect_shows_what_the_golden_predictions_were_recorded_with(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """Device and library versions of the recording are shown, as text and as JSON."""
    published(layout, {**FILES, GOLDEN_NAME: GOLDEN.encode()})
    assert inspect.main(["--root", str(layout.root), str(REF)]) == 0
    text = capsys.readouterr().out
    assert "NVIDIA H200" in text and "2.13.0" in text and "hello" in text
    assert inspect.main(["--root", str(layout.root), "--json", str(REF)]) == 0
    golden = json.loads(capsys.readouterr().out)["golden"]
    assert golden["cases"] == ["hello"] and golden["environment"]["packages"] == {"torch": "2.13.0"}


def test_inspect_of_what_is_not_here(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """A version that is not on the node: exit code 1, the reason and how to get it."""
    assert inspect.main(["--root", str(layout.root), str(REF)]) == 1
    assert "holdfast pull acme/llama@v3" in capsys.readouterr().err


def test_a_golden_file_that_cannot_be_read_is_told(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    """Golden predictions that are none are an error that names the file."""
    published(layout, {GOLDEN_NAME: b"{}"})
    assert inspect.main(["--root", str(layout.root), str(REF)]) == 1
    assert GOLDEN_NAME in capsys.readouterr().err
