from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import save

from cached.contract.errors import Permanent
from server.weights.format.checkpoint import open_checkpoint
from server.weights.format.safetensors import MAX_HEADER_BYTES, parse_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: object, data: bytes) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def test_reads_what_the_reference_writer_wrote(tmp_path: Path) -> None:
    """Names, types, shapes and offsets are those of the safetensors package, empty tensors and metadata included."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.int8),
        "scalar": np.array(7, np.int64),
    }
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(arrays, metadata={"format": "pt"}))
    with open_checkpoint(path) as checkpoint:
        header = checkpoint.files[0].header
    assert header.metadata == {"format": "pt"}
    assert {name: entry.shape for name, entry in header.tensors.items()} == {n: a.shape for n, a in arrays.items()}
    data = path.read_bytes()
    for name, array in arrays.items():
        entry = header.tensors[name]
        assert data[entry.begin : entry.end] == array.tobytes()


BAD: list[tuple[str, Any, bytes, str]] = [
    ("gap", {"a": F32, "b": {**F32, "data_offsets": [9, 17]}}, bytes(17), "gap"),
    ("overlap", {"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12), "overlaps"),
    ("not from 0", {"a": {**F32, "data_offsets": [4, 12]}}, bytes(12), "gap"),
    ("trailing bytes", {"a": F32}, bytes(9), "file has"),
    ("short", {"a": F32}, bytes(7), "file has"),
    ("size against shape", {"a": {**F32, "shape": [3]}}, bytes(8), "does not fit"),
    ("end before begin", {"a": {**F32, "shape": [0], "data_offsets": [8, 0]}}, bytes(8), "does not fit"),
    ("unknown dtype", {"a": {**F32, "dtype": "F31"}}, bytes(8), "unknown dtype"),
    ("dtype no text", {"a": {**F32, "dtype": 32}}, bytes(8), "unknown dtype"),
    ("negative length", {"a": {**F32, "shape": [-2]}}, bytes(8), "shape"),
    ("boolean length", {"a": {**F32, "shape": [True, 2]}}, bytes(8), "shape"),
    ("fraction", {"a": {**F32, "shape": [2.0]}}, bytes(8), "shape"),
    ("overflow", {"a": {**F32, "shape": [2**62, 4, 2**62]}}, bytes(8), "does not fit"),
    ("beyond 64 bits", {"a": {**F32, "shape": [2**64]}}, bytes(8), "shape"),
    ("three offsets", {"a": {**F32, "data_offsets": [0, 8, 8]}}, bytes(8), "data_offsets"),
    ("unknown key", {"a": {**F32, "more": 1}}, bytes(8), "expected an object"),
    ("missing key", {"a": {"dtype": "F32"}}, bytes(8), "expected an object"),
    ("half a byte", {"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, bytes(1), "whole bytes"),
    ("metadata", {"__metadata__": {"n": 1}, "a": F32}, bytes(8), "text to text"),
    ("metadata no object", {"__metadata__": "x", "a": F32}, bytes(8), "text to text"),
    ("a list", b"[]", b"", "begin with"),
    ("leading space", b' {"a":1}', b"", "begin with"),
    ("not JSON", b'{"a":', b"", "not JSON"),
    ("not UTF-8", b'{"\xff":1}', b"", "not JSON"),
    ("NaN", b'{"a":NaN}', b"", "not JSON"),
    ("minus zero", b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', bytes(8), "-0"),
    ("half a character", b'{"\\ud800":' + json.dumps(F32).encode() + b"}", bytes(8), "not JSON in UTF-8"),
    ("deep", b'{"a":' + b"[" * 100_000, b"", "not JSON"),
    ("twice", b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}", bytes(8), "twice"),
]


@pytest.mark.parametrize(("header", "data", "reason"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_damaged_header_is_refused(tmp_path: Path, header: object, data: bytes, reason: str) -> None:
    """Whatever does not fit is refused with the file's name and the reason."""
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(Permanent, match=r"bad\.safetensors") as caught:
        open_checkpoint(path)
    assert reason in caught.value.message
    assert caught.value.code == "invalid_weights"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "8 bytes"),
        (b"\1\0\0", "8 bytes"),
        ((100).to_bytes(8, "little") + b"{}", "file has 10 bytes"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "at most"),
        (b"\xff" * 8, "at most"),
    ],
)
def test_a_wrong_length_is_refused_before_it_is_read(tmp_path: Path, content: bytes, reason: str) -> None:
    """A header length that the file or the limit does not allow is refused, whatever it says."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(Permanent, match=reason):
        open_checkpoint(path)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_either_a_header_or_refused(data: bytes, size: int) -> None:
    """No input makes the parser fail in another way than by refusing."""
    try:
        header = parse_header(Path("x"), data, size)
    except Permanent:
        return
    assert all(entry.begin <= entry.end <= size for entry in header.tensors.values())


VALUES = [None, True, 0, -1, 1.0, 2**63, 2**64, "x", [], [[1]], {}, "F32", {"n": 1}, {"n": "m"}]
EDITS = [("b", "a"), ("[0", "[-0"), ("0", "00"), ("0", "0e0"), ("8", "+8"), ("b", r"\ud800"), ("b", r"\ud83d\ude00")]
EDITS += [("b", r"\q"), ("b", "\t"), ("dtype", r"dt\u0079pe"), ("{", " {"), ("{", "\ufeff{"), (",", ",,"), ("}", ",}")]


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """A file whose header is right, or was until a value, some of its text or its size was changed."""
    header: dict[str, Any] = {"a": {**F32}, "b": {"dtype": "U8", "shape": [2, 3], "data_offsets": [8, 14]}}
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.just({"format": "pt"}) | st.sampled_from(VALUES))
    if draw(st.booleans()):
        header["b"][draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(st.sampled_from(VALUES))
    if draw(st.booleans()):
        header["b"][draw(st.sampled_from(["shape", "data_offsets"]))] = draw(st.lists(st.integers(-1, 14), max_size=3))
    text = json.dumps(header)
    for old, new in draw(st.lists(st.sampled_from(EDITS), max_size=2)):
        text = text.replace(old, new, 1)
    encoded = (text + draw(st.sampled_from(["", "", " ", "\n", "\0", "x"]))).encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + bytes(14 + draw(st.sampled_from([0, 0, 0, 1, -1])))


@given(nearly_right())
def test_what_the_reference_refuses_is_refused(content: bytes) -> None:
    """No header is taken that the safetensors package does not take, and it reads the same tensors of it."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = parse_header(Path("x"), content[8 : 8 + length], len(content))
    except Permanent:
        return
    reference: Any = deserialize  # it has no types
    expected = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in reference(content)}
    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == expected
