"""Filters: what a glob selects, and what is clutter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.filters import nothing_selected, select, without_clutter

FILES = ("config.json", "model.safetensors", "onnx/model.onnx", "onnx/config.json", "README.md", "tokenizer.model")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], FILES),
        (["*.json"], [], ("config.json", "onnx/config.json")),
        (["onnx/"], [], ("onnx/model.onnx", "onnx/config.json")),
        (["onnx/*"], ["*.onnx"], ("onnx/config.json",)),
        ([], ["*"], ()),
        (["CONFIG.JSON"], [], ()),
        (["config.jso?", "[Rr]eadme.md", "[Rr]EADME.md"], [], ("config.json", "README.md")),
        (["token"], [], ()),
        (["*.json"], ["onnx/"], ("config.json",)),
    ],
)
def test_select(include: list[str], exclude: list[str], expected: tuple[str, ...]) -> None:
    """A glob matches the whole path, case-sensitive, `*` across folders, a final `/` everything below; exclude wins."""
    assert select(FILES, include, exclude) == expected


@given(st.lists(st.text("ab/.*", max_size=6)), st.lists(st.text("ab/.*[!]?", max_size=5)), st.lists(st.text("ab*/")))
def test_select_only_leaves_out(paths: list[str], include: list[str], exclude: list[str]) -> None:
    """What is selected was there, in the same order, and selecting again changes nothing."""
    selected = select(paths, include, exclude)
    rest = iter(paths)
    assert all(path in rest for path in selected)
    assert select(selected, include, exclude) == selected


def test_clutter_goes() -> None:
    """What Git, caches and desktops leave behind goes, at any depth; dot-files that mean something stay."""
    clutter = (".git/config", "sub/.git/HEAD", ".gitattributes", "sub/.gitignore", ".DS_Store", "a/Thumbs.db")
    cache = (".cache/huggingface/download/model.safetensors.lock", "a/.cache/x")
    kept = (".env", "cache/x", "git/config", "notes.lock", ".gitattributes.json")
    assert without_clutter((*clutter, *kept, *cache)) == kept


def test_weights_in_other_formats_go_where_safetensors_have_them() -> None:
    """The same weights for other frameworks go, shards and indexes included; everything else stays."""
    kept = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "onnx/model.onnx")
    again = (
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "original/consolidated.00.pth",
    )
    assert without_clutter((*again, *kept)) == kept


@pytest.mark.parametrize(
    "files",
    [
        ("pytorch_model.bin", "config.json", "original/params.json"),
        ("pytorch_model.bin", "2_Dense/model.safetensors"),
        ("pytorch_model.bin", "adapter_model.safetensors"),
        ("2_Dense/pytorch_model.bin", "model.safetensors"),
        ("training_args.bin", "model.safetensors"),
    ],
)
def test_the_only_copy_stays(files: tuple[str, ...]) -> None:
    """Weights that no safetensors of the same folder have again are never left out."""
    assert without_clutter(files) == files


def test_nothing_selected_says_what_was_there() -> None:
    """The error of filters that leave nothing names the globs, the place and what was found."""
    error = nothing_selected("s3://b/m/", FILES, ["*.gguf"], ["x"])
    assert error.code == "nothing_selected"
    for part in ("s3://b/m/", "*.gguf", "'x'", str(len(FILES)), "config.json"):
        assert part in error.message
    assert "include" in error.remedy
