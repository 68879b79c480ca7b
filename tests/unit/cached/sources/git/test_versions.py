"""What a host says of itself, in both versions of Git's protocol, and what is none of that."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.sources.git.pktline import ControlPacket, Packets, SideBand, encode
from cached.sources.git.versions import First, Second, parse_ref, read_version

A, B, C = "a" * 40, "b" * 40, "c" * 40
SERVICE: list[str | ControlPacket] = ["# service=git-upload-pack", ControlPacket.FLUSH]
ALL = "multi_ack side-band-64k ofs-delta shallow filter allow-reachable-sha1-in-want"


def packets(data: bytes) -> Packets:
    return Packets(io.BytesIO(data).readinto, "here")


def test_the_second_version_has_capabilities() -> None:
    """Version 2 is read with and without the line of the service."""
    said: list[str | ControlPacket] = [
        "version 2",
        "agent=git/2",
        "ls-refs=unborn",
        "fetch=shallow filter",
        "object-info",
        ControlPacket.FLUSH,
    ]
    for lines in (said, [*SERVICE, *said]):
        found = read_version(packets(encode(lines)))
        assert isinstance(found, Second)
        assert (found.filters, found.gives_any, found.tells_sizes, found.refs) == (True, True, True, None)
    assert not read_version(packets(encode(["version 2", "fetch=shallow", ControlPacket.FLUSH]))).filters


def test_the_first_version_has_refs() -> None:
    """Version 0 has all refs, annotated tags with their commits; its requests offer what the host knows."""
    refs = [
        f"{A} HEAD\0{ALL} symref=HEAD:refs/heads/main",
        f"{A} refs/heads/main",
        f"{B} refs/tags/v",
        f"{C} refs/tags/v^{{}}",
    ]
    for first in ([], ["version 1"]):
        found = read_version(packets(encode([*SERVICE, *first, *refs, ControlPacket.FLUSH])))
        assert isinstance(found, First)
        assert {ref.name: ref.commit for ref in found.refs} == {"HEAD": A, "refs/heads/main": A, "refs/tags/v": C}
        assert found.filters
        assert found.fetch([A, B], ["deepen 1"]) == [
            f"want {A} multi_ack side-band-64k ofs-delta shallow filter agent=holdfast",
            f"want {B}",
            "deepen 1",
            ControlPacket.FLUSH,
            "done",
        ]


def test_a_filter_without_single_objects_is_none() -> None:
    """A host that would leave files out and not give them later is asked for all."""
    names = "side-band-64k shallow filter"
    assert not read_version(packets(encode([f"{A} HEAD\0{names}", ControlPacket.FLUSH]))).filters


def test_an_empty_repository_has_no_refs() -> None:
    """An empty repository has none, in each of the ways that hosts say so."""
    for lines in (
        [*SERVICE, ControlPacket.FLUSH],
        [*SERVICE, f"{'0' * 40} capabilities^{{}}\0{ALL}", ControlPacket.FLUSH],
    ):
        assert read_version(packets(encode(lines))).refs == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0000",
        encode([*SERVICE]),
        encode([f"{A} HEAD"]),
        encode([f"{A} HEAD", ControlPacket.FLUSH]),
        encode([f"{A} HEAD\0{ALL}"]),
        encode([f"{A[:-1]} HEAD\0{ALL}", ControlPacket.FLUSH]),
        encode(["something", ControlPacket.FLUSH]),
        encode([*SERVICE, "version 2"]),
        encode([*SERVICE, "version 2", "agent=git/2", "ls-refs=unborn"]),
    ],
)
def test_what_says_nothing_is_a_bad_response(data: bytes) -> None:
    """An answer without refs and capabilities is `bad_response`, and so is one that was cut between two of them."""
    with pytest.raises(Transient) as caught:
        read_version(packets(data))
    assert caught.value.code == "bad_response"


@pytest.mark.parametrize(
    "lines", [["version 2", "object-format=sha256", ControlPacket.FLUSH], [f"{A}{A[:24]} HEAD\0object-format=sha256"]]
)
def test_other_object_formats_are_unsupported(lines: list[str | ControlPacket]) -> None:
    """A repository of sha256 objects is refused by name."""
    with pytest.raises(Permanent, match="sha256"):
        read_version(packets(encode(lines)))


@given(
    st.one_of(
        st.binary(max_size=200), st.lists(st.sampled_from(["version 2", "x=y", f"{A} r", f"{A} r\0a"])).map(encode)
    )
)
def test_any_answer_is_read_or_refused(data: bytes) -> None:
    """Whatever a host answers is read, or is an error of ours with a remedy and a short message."""
    try:
        read_version(packets(data))
        band = SideBand(packets(data))
        while band.read():
            pass
    except HoldfastError as error:
        assert error.remedy
        assert len(str(error)) < 1000


@given(st.text(max_size=120))
def test_a_line_is_a_ref_or_none(line: str) -> None:
    """A line of refs has 40 digits and a name, or is none."""
    found = parse_ref(line)
    assert found is None or len(found.oid) == 40
