"""What `holdfast publish` leaves out, and what it refuses because no server could load it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from tests.support.publishing import publish, published, tensors, tree

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"


def index(*names: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"w{n}": name for n, name in enumerate(names)}}).encode()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


MODEL = {
    "config.json": b"{}",
    "1.safetensors": tensors(),
    "2.safetensors": tensors(),
    "model.safetensors.index.json": index("1.safetensors", "2.safetensors"),
}


def test_what_downloads_leave_behind_gives_no_other_digest(tmp_path: Path) -> None:
    """Two copies of one model that differ in version control, caches and a desktop's files are one version."""
    clutter = {
        ".git/HEAD": b"ref: refs/heads/main",
        ".cache/huggingface/download/config.json.metadata": os.urandom(20),
        "._config.json": b"\0\5\x16\7",
        "sub/.DS_Store": b"x",
        "__MACOSX/._1.safetensors": b"x",
        ".gitattributes": b"*.safetensors filter=lfs",
    }
    clean = published(write(tmp_path / "clean", MODEL), tmp_path / "out")
    folder = write(tmp_path / "folder", MODEL | clutter)
    (folder / ".git" / "bad\\name").touch()
    (folder / ".cache" / "dangling").symlink_to("nowhere")
    done = publish(folder, tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == clean["digest"]
    assert set(tree(tmp_path / "again")) == {*MODEL, "holdfast.json"}
    for name in (".git", ".cache", "._config.json", "sub/.DS_Store", "__MACOSX", ".gitattributes"):
        assert f"left out: {folder / name}," in done.stderr


@pytest.mark.parametrize("path", ["1.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_refused_by_name(tmp_path: Path, path: str) -> None:
    """A clone without its large files is no model: the file and `git lfs pull` are named, and nothing is published."""
    done = publish(write(tmp_path / "model", MODEL | {path: POINTER}), tmp_path / "out")
    assert done.returncode == 1 and "git lfs pull" in done.stderr
    assert f"{path} is a pointer of Git LFS" in done.stderr
    assert not (tmp_path / "out").exists()


def without(*paths: str) -> dict[str, bytes]:
    return {path: data for path, data in MODEL.items() if path not in paths}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (without("2.safetensors"), "2.safetensors"),
        (MODEL | {"2.safetensors": tensors()[:-1]}, "2.safetensors"),
        (MODEL | {"2.safetensors": tensors()[:20]}, "2.safetensors"),
        ({"sub/a.safetensors.index.json": index("1.safetensors"), "1.safetensors": tensors()}, "1.safetensors"),
        ({"pytorch_model.bin.index.json": index("p-1.bin"), "config.json": b"{}"}, "p-1.bin"),
    ],
    ids=["missing", "cut short", "cut in its header", "elsewhere", "another format"],
)
def test_a_set_of_shards_that_is_not_whole_is_refused(tmp_path: Path, files: dict[str, bytes], named: str) -> None:
    """A shard that the index names and that is not there, or is shorter than its header says, is named."""
    done = publish(write(tmp_path / "model", files), tmp_path / "out")
    assert done.returncode == 1 and named in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "files",
    [
        MODEL | {"pytorch_model.bin.index.json": index("gone.bin")},
        {"c.safetensors": struct.pack("<Q", 2) + b"{}", "config.json": b"{}"},
        {"LFS.md": b"A pointer begins with " + POINTER},
        {"page.html": b"<!doctype html><html></html>", "weights.custom": b"<html>"},
    ],
    ids=["an index that outlived its shards", "no tensor", "a text about pointers", "a page that is one"],
)
def test_what_only_looks_odd_is_published(tmp_path: Path, files: dict[str, bytes]) -> None:
    """What is not certainly wrong is no finding."""
    assert published(write(tmp_path / "model", files), tmp_path / "out")["files"] == len(files)


def test_force_publishes_what_is_not_loadable_and_says_so(tmp_path: Path) -> None:
    """What is refused can be had with `--force`; `--check` compares it, and says that it is not loadable, too."""
    folder = write(tmp_path / "model", MODEL | {"1.safetensors": POINTER})
    refused = publish(folder, tmp_path / "out")
    assert refused.returncode == 1 and "--force" in refused.stderr
    for option in ("--force", "--check"):
        done = publish(folder, tmp_path / "out", option)
        assert done.returncode == 0 and "not loadable: 1.safetensors is a pointer" in done.stderr


def test_options_choose_as_the_catalog_does(tmp_path: Path) -> None:
    """`--include`, `--exclude` and `--for` choose by the catalog's rules; `--keep-all` keeps clutter and copies too."""
    copies = {"model.safetensors": tensors(), "onnx/model.onnx": b"x", "m-Q4_0.gguf": b"GGUF" + bytes(20)}
    clutter = {".git/HEAD": b"x", "config.json~": b"x"}
    folder = write(tmp_path / "model", {"config.json": b"{}", "card.md": b"x", **copies, **clutter})
    cases: dict[tuple[str, ...], set[str]] = {
        (): {"config.json", "card.md", "model.safetensors"},
        ("--exclude", "*.md"): {"config.json", "model.safetensors"},
        ("--include", "*.json,*.safetensors", "--include", "onnx/*"): {*copies, "config.json"} - {"m-Q4_0.gguf"},
        ("--for", "gguf:Q4_0"): {"config.json", "card.md", "m-Q4_0.gguf"},
        ("--for", "all"): {"config.json", "card.md", *copies},
        ("--keep-all",): {"config.json", "card.md", *copies, *clutter},
    }
    for number, (options, expected) in enumerate(cases.items()):
        done = publish(folder, tmp_path / str(number), *options)
        assert done.returncode == 0, done.stderr
        assert set(tree(tmp_path / str(number))) == {*expected, "holdfast.json"}, options
        assert ("--for all publishes it too" in done.stderr) == (
            options in ((), ("--exclude", "*.md"), ("--for", "gguf:Q4_0"))
        )


def test_filters_that_lose_what_an_engine_reads_are_refused(tmp_path: Path) -> None:
    """An `--include` without the configuration is refused by name, as in the catalog; nothing selected is an error."""
    folder = write(tmp_path / "model", MODEL)
    lost = publish(folder, tmp_path / "out", "--include", "*.safetensors,*.index.json")
    assert lost.returncode == 1 and "the filters leave out 'config.json'" in lost.stderr
    none = publish(folder, tmp_path / "out", "--include", "*.gguf")
    assert none.returncode == 1 and "--include" in none.stderr and "config.json" in none.stderr
    for wrong in (("--for", "tgi"), ("--include", "/abs"), ("--keep-all", "--exclude", "*.md")):
        assert publish(folder, tmp_path / "out", *wrong).returncode == 2
