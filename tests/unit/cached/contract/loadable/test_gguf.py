"""A GGUF file that is cut is told, one that is whole is not. The files are written byte by byte, as ggml's docs/gguf.md
has them; the types' sizes and the ends were compared with gguf-py 0.19."""

from __future__ import annotations

import struct

import pytest

from cached.contract.loadable.verdict import find_problems

# Numbers in a tensor, its type, and its bytes: float32, Q8_0, Q4_K, Q6_K, IQ4_XS, float16.
TENSORS = ((300, 0, 1200), (1536, 8, 1632), (1536, 12, 864), (1536, 14, 1260), (1536, 23, 816), (7, 1, 14))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def value(name: str, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + data


def aligned(length: int, alignment: int) -> int:
    return -(-length // alignment) * alignment


def written(alignment: int = 32) -> bytes:
    """A file with a vocabulary, values of many types, and tensors of several quantizations."""
    tokens = b"".join(text(f"token {index}") for index in range(5000))
    values = [
        value("general.name", 8, text("x" * 100_000)),
        value("general.alignment", 4, struct.pack("<I", alignment)),
        value("test.flag", 7, b"\1"),
        value("test.number", 12, struct.pack("<d", 0.5)),
        value("tokens", 9, struct.pack("<IQ", 8, 5000) + tokens),
        value("scores", 9, struct.pack("<IQ", 6, 5000) + bytes(4 * 5000)),
        value("merges", 9, struct.pack("<IQ", 8, 0)),
    ]
    infos, data = [], b""
    for index, (numbers, kind, length) in enumerate(TENSORS):
        shape = struct.pack("<IQ", 1, numbers) if index else struct.pack("<IQQ", 2, 100, numbers // 100)
        infos.append(text(f"blk.{index}") + shape + struct.pack("<IQ", kind, len(data)))
        data += bytes(aligned(length, alignment))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(values)) + b"".join(values) + b"".join(infos)
    return header.ljust(aligned(len(header), alignment), b"\0") + data


def codes(data: bytes) -> list[str]:
    sizes = {"model.gguf": len(data)}
    return [one.code for one in find_problems(sizes, lambda _, offset, length: data[offset : offset + length])]


@pytest.mark.parametrize("alignment", [32, 8, 4096])
def test_a_file_is_judged_by_where_its_tensors_end(alignment: int) -> None:
    """The whole file is no finding, nor one without its last padding; without its last number's last byte it is cut."""
    data = written(alignment)
    end = len(data) - aligned(TENSORS[-1][2], alignment) + TENSORS[-1][2]
    assert codes(data) == codes(data[:end]) == []
    assert codes(data[: end - 1]) == ["incomplete"]


@pytest.mark.parametrize("kept", [30, 200, 100_100, 150_000])
def test_a_file_that_is_cut_in_its_header_is_told(kept: int) -> None:
    """A name, a value or the vocabulary that goes beyond the end is a cut file, as a broken download leaves it."""
    assert codes(written()[:kept]) == ["incomplete"]


def test_a_tensor_of_a_new_type_counts_from_where_it_begins() -> None:
    """A quantization that is not known has no size here: only where it begins must be in the file."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<IQIQ", 1, 64, 999, 4096)
    header = header.ljust(aligned(len(header), 32), b"\0")
    assert codes(header + bytes(4096)) == []
    assert codes(header + bytes(4095)) == ["incomplete"]


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF" + struct.pack("<IQQ", 1, 1, 1) + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 9, 1, 1) + bytes(40),
        b"FUGG" + struct.pack(">IQQ", 3, 1, 1) + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1) + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 77) + bytes(40),
    ],
)
def test_what_is_not_known_is_not_judged(data: bytes) -> None:
    """Another version, byte order or type of value may be right: it is left to the engine."""
    assert codes(data) == []
