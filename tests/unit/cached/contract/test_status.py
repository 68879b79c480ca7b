"""Status files: what the daemon writes, gates of other ages read."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.loadable.findings import Finding
from cached.contract.reference import ModelRef
from cached.contract.status import (
    DaemonStatus,
    LeftOut,
    ModelStatus,
    Stale,
    State,
    StatusError,
    Verdict,
    encode,
    parse_timestamp,
    timestamp,
)
from cached.contract.trust import Trust

STATUS = ModelStatus(
    model="acme/m",
    version="v1",
    state=State.FETCHING,
    digest=None,
    pinned=False,
    source="s3://models/acme/m/v1/",
    bytes_total=10,
    bytes_done=3,
    rate_bytes_per_s=1.5,
    eta_s=4.6,
    since="2026-11-20T18:00:00Z",
    updated="2026-11-20T18:00:01Z",
    error=None,
)
HEARTBEAT = DaemonStatus("node-1", "0.1.0", 7, "2026-11-20T18:00:00Z", "2026-11-20T18:00:05Z")


def test_the_keys_of_the_design() -> None:
    """A status has the keys that section 3 of the design lists, and no others."""
    assert list(STATUS.document()) == [
        *("model", "version", "state", "digest", "pinned", "source", "bytes_total", "bytes_done"),
        *("rate_bytes_per_s", "eta_s", "since", "updated", "error", "held", "stale", "refused_pins"),
        *("refused_namespaces", "bytes_from_peers"),
        *("findings", "left_out", "trust"),
    ]
    assert [state.value for state in State] == [
        *("queued", "resolving", "fetching", "verifying", "publishing", "ready", "failed", "evicting")
    ]
    assert list(HEARTBEAT.document()) == ["node", "version", "pid", "started", "updated"]


@pytest.mark.parametrize("error", [Permanent("forbidden", "403", "grant it"), Transient("no_space", "full", "wait")])
def test_a_status_reads_back(error: HoldfastError) -> None:
    """A status, its error included, reads back what was written."""
    failed = replace(STATUS, state=State.FAILED, error=StatusError.of(error))
    finding = Finding("incomplete", "a.safetensors", "cut short", "fetch it again", fatal=False)
    judged = replace(STATUS, verdict=Verdict((finding,), (LeftOut("ONNX", 2, 30, "onnx/model.onnx"),)))
    for status in (STATUS, failed, judged):
        assert ModelStatus.parse(encode(status.document())) == status
    assert failed.document()["error"] == {
        "code": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "permanent": error.permanent,
    }


def test_a_status_of_a_held_version_is_known_in_every_field() -> None:
    """`is_of_held` is true of what `of_held` makes, and of nothing that differs from it in a field but the times."""
    ref, verdict = ModelRef("acme/m", "v1"), Verdict(trust=Trust.CHECKED)
    held = ModelStatus.of_held(
        ref, "sha256:1", 10, pinned=True, source="s3://b/", since="then", updated="now", verdict=verdict
    )

    def is_known(status: ModelStatus) -> bool:
        return status.is_of_held(ref, "sha256:1", 10, pinned=True, source="s3://b/", verdict=verdict)

    assert is_known(replace(held, since="earlier", updated="later"))
    others = replace(STATUS, model="m", version="v2", pinned=False, stale=Stale("catalog_changed", None, "then"))
    others = replace(others, eta_s=1.0, error=StatusError("code", "message", "remedy", False), bytes_from_peers=1)
    refused = {"sha256:2": StatusError("code", "message", "remedy", True)}
    others = replace(others, held=None, bytes_total=11, refused_pins=refused, refused_namespaces=refused)
    for each in fields(ModelStatus):
        if each.name not in ("since", "updated"):
            assert not is_known(replace(held, **{each.name: getattr(others, each.name)})), each.name


def test_a_heartbeat_reads_back() -> None:
    """A heartbeat reads back what was written."""
    assert DaemonStatus.parse(encode(HEARTBEAT.document())) == HEARTBEAT


def test_unknown_keys_are_ignored() -> None:
    """A newer daemon's keys, at any level, are no error to an older reader."""
    failed = replace(STATUS, error=StatusError("c", "m", "r", True)).document()
    newer = {**failed, "error": {**failed["error"], "new": 1}, "new": {"x": 1}}
    assert ModelStatus.parse(encode(newer)).error == StatusError("c", "m", "r", True)
    assert DaemonStatus.parse(encode({**HEARTBEAT.document(), "new": 1})) == HEARTBEAT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        pytest.param(b"[" * 100_000, id="deep"),
        encode({**STATUS.document(), "state": "dreaming"}),
        encode({**STATUS.document(), "state": []}),
        encode({**STATUS.document(), "error": "text"}),
        encode({**STATUS.document(), "error": {"code": "x"}}),
        encode({key: value for key, value in STATUS.document().items() if key != "bytes_done"}),
    ],
)
def test_what_is_no_status(data: bytes) -> None:
    """A file that is no status is refused as such, never with another exception."""
    with pytest.raises(Permanent) as caught:
        ModelStatus.parse(data)
    assert caught.value.code == "invalid_status"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"node": "a"}'])
def test_what_is_no_heartbeat(data: bytes) -> None:
    """A file that is no heartbeat is refused as such."""
    with pytest.raises(Permanent) as caught:
        DaemonStatus.parse(data)
    assert caught.value.code == "invalid_status"


documents = st.dictionaries(
    st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2), max_size=4
)


@given(documents)
def test_encoding_is_json_in_utf8(document: dict[str, Any]) -> None:
    """Any text, half a surrogate pair included, becomes UTF-8 that JSON readers take for that text."""
    assert json.loads(encode(document).decode("utf-8")) == document


def test_names_that_are_not_utf8_can_be_told() -> None:
    """A file name of other bytes, as Python has it, does not keep a status from being written."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert json.loads(encode({"message": name}).decode("utf-8")) == {"message": name}


@given(st.integers(0, 4_000_000_000))
def test_timestamps_read_back(seconds: int) -> None:
    """A time reads back to the second."""
    assert parse_timestamp(timestamp(seconds)) == seconds


def test_timestamps_are_utc() -> None:
    """A time is written in UTC, as the design shows it, whatever the fraction."""
    assert timestamp(1795197600.9) == "2026-11-20T18:00:00Z"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-20",
        "2026-11-20T18:00:00",
        "2026-11-20T18:00:00+00:00",
        "2026-11-20T20:00:00+02:00",
        "2026-11-20T18:00:00.5Z",
        "20261120T180000Z",
        "2026-W47-5T18:00:00Z",
        "now",
    ],
)
def test_other_timestamps_are_refused(text: str) -> None:
    """A time in another form is a ValueError."""
    with pytest.raises(ValueError, match="expected a time as"):
        parse_timestamp(text)
