"""The verdict on a version, beside the libraries that would load it."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cached.contract.loadable.findings import is_loadable, not_loadable
from cached.contract.loadable.verdict import find_name_problems, find_problems, is_checked

WHOLE = save({"a": torch.zeros(300), "b": torch.ones(2, 3)}, metadata={"note": '{"data_offsets": [0, 999999]}'})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>" * 40
GENERATING = {"architectures": ["LlamaForCausalLM"]}


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3000)}, buffer)
    return buffer.getvalue()


def problems(files: Mapping[str, bytes]) -> list[tuple[str, str, str]]:
    """Code, path and message of each finding."""
    found = find_problems({path: len(data) for path, data in files.items()}, lambda p, o, n: files[p][o : o + n])
    return [(each.code, each.path, each.message) for each in found]


BROKEN = {
    "empty": b"",
    "a pointer": POINTER,
    "a page": PAGE,
    "an error document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "JSON": b'{"error": "Repository not found"}',
    "zeros": bytes(5000),
    "noise": b"a" * 1000,
    "a header longer than the file": struct.pack("<Q", 10_000) + b'{"a":',
    "a header that is not JSON": struct.pack("<Q", 16) + b'{"a": truncated ',
    "cut in its header": WHOLE[:40],
    "cut in its tensors": WHOLE[:-1],
    "more than its tensors": WHOLE + b"\0",
    "a header with zeros after it": struct.pack("<Q", 8) + b"{}" + bytes(6),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_safetensors_refuses_is_a_finding(tmp_path: Path, data: bytes) -> None:
    """A file that safetensors itself does not open is named, with what it is."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorError), safe_open(path, framework="pt") as opened:
        opened.keys()
    [(_, named, message)] = problems({"model.safetensors": data})
    assert named == "model.safetensors" and message.startswith("model.safetensors ")


def test_what_safetensors_opens_is_none(tmp_path: Path) -> None:
    """Metadata that reads like offsets, no tensor, padding: what safetensors opens is whole."""
    header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    headers = [header + padding for padding in (b" " * 11, b"\t\r\n ", b" " * 4000, b" " * (3 << 20))]
    padded = [struct.pack("<Q", len(each)) + each + b"ab" for each in headers]
    big = save({f"layer.{number}.weight": torch.zeros(1) for number in range(20_000)})  # of several reads
    for data in (WHOLE, big, struct.pack("<Q", 2) + b"{}", *padded):
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        with safe_open(path, framework="pt") as opened:
            opened.keys()
        assert problems({"model.safetensors": data}) == []


def test_a_cut_torch_file_is_a_finding() -> None:
    """A checkpoint of torch is a zip archive, whose directory is at its end."""
    assert problems({"pytorch_model.bin": torch_file()}) == []
    [(code, path, message)] = problems({"pytorch_model.bin": torch_file()[:-30]})
    assert (code, path) == ("incomplete", "pytorch_model.bin") and "cut short" in message
    with pytest.raises((RuntimeError, ValueError)):
        torch.load(io.BytesIO(torch_file()[:-30]))


@pytest.mark.parametrize("path", ["tokenizer.json", "config.json", "spiece.model", "m.gguf", "x.onnx", "a.index.json"])
@pytest.mark.parametrize(("data", "code"), [(POINTER, "lfs_pointer"), (PAGE, "web_page")])
def test_what_stands_for_a_file_is_named(path: str, data: bytes, code: str) -> None:
    """A pointer or a page in place of any file that an engine reads is a finding of its own kind."""
    path = path.replace("a.index", "model.safetensors.index")
    assert problems({path: data})[0][:2] == (code, path)


def index(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"w{number}": name for number, name in enumerate(names)}}).encode()


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({INDEX: index("a.safetensors", "b.safetensors"), "a.safetensors": WHOLE}, "b.safetensors"),
        ({"model-00001-of-00002.safetensors": WHOLE}, "expected 2 files, found 1"),
        ({"m-00002-of-00003.gguf": b"GGUF" + bytes(30)}, "expected 3 files, found 1"),
        ({INDEX: b"{}", "model.safetensors": WHOLE}, "weight_map"),
        ({"pytorch_model.bin.index.json": index("p.bin")}, "p.bin"),
        ({"config.json": b'{"transformers_weights": "gone.safetensors"}', "a.safetensors": WHOLE}, "gone.safetensors"),
    ],
    ids=["an index", "a set without index", "gguf", "no index", "older", "named by config.json"],
)
def test_a_missing_shard_is_named(files: dict[str, bytes], named: str) -> None:
    """What an index names, or the numbers of a set promise, and is not there is a finding."""
    [(_, _, message)] = problems(files)
    assert named in message


def test_an_index_finds_its_files_wherever_they_are() -> None:
    """`./x` and subfolders of an index, and a set that an index makes needless, are no findings."""
    files = {INDEX: index("./a.safetensors", "sub/b.safetensors"), "a.safetensors": WHOLE, "sub/b.safetensors": WHOLE}
    assert problems(files | {"model-00001-of-00002.safetensors": WHOLE}) == []
    config = b'{"transformers_weights": "new/m.safetensors.index.json"}'
    files = {
        "config.json": config,
        "new/m.safetensors.index.json": index("new/a.safetensors"),
        "new/a.safetensors": WHOLE,
    }
    assert problems(files) == []


def test_an_outlived_index_beside_the_single_file_is_a_note() -> None:
    """transformers takes model.safetensors and ignores the index, vLLM asks the index: not certainly wrong."""
    files = {INDEX: index("gone.safetensors"), "model.safetensors": WHOLE}
    found = find_problems({path: len(data) for path, data in files.items()}, lambda p, o, n: files[p][o : o + n])
    assert [finding.fatal for finding in found] == [False]


@pytest.mark.parametrize(
    ("config", "more", "is_found"),
    [
        (GENERATING, {}, True),
        (GENERATING, {"merges.txt": b"a b"}, True),
        (GENERATING, {"tokenizer_config.json": b"{}"}, True),
        ({"architectures": ["T5ForConditionalGeneration"]}, {}, True),
        (GENERATING, {"tokenizer.json": b"{}"}, False),
        (GENERATING, {"tokenizer.model": b"x"}, False),
        (GENERATING, {"vocab.json": b"{}", "merges.txt": b"a b"}, False),
        (GENERATING, {"qwen.tiktoken": b"x"}, False),
        (GENERATING, {"tekken.json": b"{}"}, False),
        (GENERATING, {"tokenizer_config.json": b'{"tokenizer_class": "ByT5Tokenizer"}'}, False),
        (GENERATING, {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}}'}, False),
        ({"architectures": ["BertModel"]}, {}, False),
        ({}, {}, False),
    ],
)
def test_a_generating_model_without_tokenizer_is_found(config: object, more: dict[str, bytes], is_found: bool) -> None:
    """A model that generates text needs a tokenizer's vocabulary, in any of its forms, unless it reads bytes."""
    found = problems({"config.json": json.dumps(config).encode(), "model.safetensors": WHOLE} | more)
    assert [code for code, _, _ in found] == (["no_tokenizer"] if is_found else [])


def test_a_model_without_weights_is_found() -> None:
    """config.json of a model and no weights of any kind: nothing would load; a dataset or a tokenizer is no model."""
    assert problems({"config.json": json.dumps(GENERATING).encode(), "tokenizer.json": b"{}"})[0][0] == "no_weights"
    assert problems({"config.json": b"{}", "tokenizer.json": b"{}"}) == []
    assert problems({"config.json": b'{"architectures": ["X"]}', "weights.custom": b"x"}) == []


def test_names_alone_tell_before_a_byte_is_fetched() -> None:
    """An incomplete set and a generating model without a tokenizer are known from the listing."""
    shard = "model-00001-of-00002.safetensors"
    [shards] = find_name_problems(["config.json", shard])
    assert shards.code == "incomplete"
    assert find_name_problems(["config.json", shard, INDEX]) == ()  # the index will tell
    [tokenizer] = find_name_problems(["config.json", "generation_config.json", "model.safetensors"])
    assert tokenizer.code == "no_tokenizer"


def test_one_error_has_the_findings_and_their_remedies() -> None:
    """The error of a version names each file, what it is, and what to do."""
    found = find_problems(
        {"a.safetensors": len(POINTER), "b.bin": len(PAGE)}, lambda p, *_: POINTER if "a" in p else PAGE
    )
    error = not_loadable("m@v1", found)
    assert not is_loadable(found) and error.code == "not_loadable"
    for part in ("m@v1", "a.safetensors is a pointer of Git LFS", "b.bin is a web page"):
        assert part in error.message
    assert "git lfs pull" in error.remedy


def test_other_files_are_not_read() -> None:
    """A version of thousands of other files costs no read."""
    names = ("README.md", "images/a.png", "data/train.parquet", "LICENSE", "optimizer.pt", ".gitattributes")
    assert not any(map(is_checked, names))
