"""What goes wrong on the way: retried where that helps, ended with a reason where it does not, never a wrong byte."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import weakref
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.core.listing import Algorithm, Checksum
from cached.fetch.attempt import Attempt
from cached.fetch.blob import SEGMENT_BYTES
from cached.fetch.download import Download
from cached.transport.checksums import new_hasher
from cached.transport.connection.cancel import Cancelled
from cached.transport.target import Target
from tests.support.fetching import (
    DEADLINE_S,
    MIB,
    Hold,
    Paused,
    Together,
    check_committed,
    eventually,
    http,
    local,
    noise,
    open_engine,
    private_files,
    ranges_of,
    spec_of,
)
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import (
    Extra,
    Fault,
    FlipBit,
    Hangup,
    Headers,
    Pause,
    ResetAfter,
    Stall,
    Status,
    Truncate,
)


def _codes(download: Download) -> tuple[str, bool]:
    error = download.result.exception(DEADLINE_S)
    assert isinstance(error, HoldfastError)
    return error.code, error.permanent


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (ResetAfter(9 * MIB + 7), "reset"),
        (Truncate(9 * MIB + 7), "bad_response"),
        (Stall(5 * MIB + 1), "stalled"),
        (Hangup(), "reset"),
        (Extra(), "bad_response"),
        (Headers({"Content-Encoding": "gzip"}), "bad_response"),
        (Headers({"Content-Range": f"bytes 1-{32 * MIB}/{70 * MIB}"}), "bad_response"),
        (Headers({"Content-Range": f"bytes 0-{32 * MIB - 1}/{71 * MIB}"}), "bad_response"),
        (Status(503, {"Retry-After": "0"}), "http_503"),
        (Status(429, {"Retry-After": "0"}), "http_429"),
        (Status(408), "http_408"),
    ],
)
def test_one_fault_is_got_over(tmp_path: Path, origin: HostileOrigin, fault: Fault, code: str) -> None:
    """One fault costs one failed attempt, which is counted, and not more than a segment of bytes; these are right."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", fault)
    with open_engine(tmp_path / "root", 2) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
        assert engine.counts.failures == [code]
        assert len(private_files(engine.layout)) == 1
        assert engine.counts.received_bytes <= len(data) + 32 * MIB


def test_too_much_after_the_last_byte_asked_for(tmp_path: Path, origin: HostileOrigin) -> None:
    """Extra bytes behind a range that came whole are a fault, and leave nothing more of it to ask for."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", Extra(), Extra(), Extra())
    with open_engine(tmp_path / "root", 1) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
        assert engine.counts.received_bytes == len(data)


def test_what_came_before_a_reset_is_kept(tmp_path: Path, origin: HostileOrigin) -> None:
    """After a reset the next request begins near where the connection broke off, not at the segment's start."""
    data = noise()[: 30 * MIB]
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", ResetAfter(17 * MIB))
    with open_engine(tmp_path / "root", 1) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
    first, second = ranges_of(origin.requests)
    assert first[0] == 0
    assert 16 * MIB <= second[0] <= 17 * MIB


def test_bytes_are_counted_as_they_come(tmp_path: Path, origin: HostileOrigin) -> None:
    """Bytes of a buffer that is not full count; of those before a reset the ones that are kept; none counts twice."""
    data, let_go = noise()[: 9 * MIB], threading.Event()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", ResetAfter(MIB + 7), Pause(5, let_go))
    with open_engine(tmp_path / "root", 1) as engine:
        download = engine.launch(spec_of(data), http(origin.url("/f")))
        eventually(lambda: download.progress.count_received() == MIB + 5)
        assert download.progress.written == MIB
        let_go.set()
        download.result.result(DEADLINE_S)
        eventually(lambda: download.progress.count_received() == len(data))


def test_three_bad_responses_are_permanent(tmp_path: Path, origin: HostileOrigin) -> None:
    """A third bad response without a byte of progress ends the download, and leaves nothing behind."""
    data = noise()[:MIB]
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", *[Headers({"Content-Encoding": "gzip"})] * 3)
    with open_engine(tmp_path / "root", 2) as engine:
        assert _codes(engine.launch(spec_of(data), http(origin.url("/f")))) == ("bad_response", True)
        assert private_files(engine.layout) == set()
    assert len(origin.requests) == 3


def test_connections_cut_together_are_one_bad_response(tmp_path: Path, origin: HostileOrigin) -> None:
    """A server that closes all its connections at once has answered badly once, not once a connection."""
    data = noise()
    cut = Together(3, Truncate(0))
    origin.script("/f", cut, cut, cut)
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 3) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
        assert engine.counts.failures == ["bad_response"] * 3


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "unauthorized"), (403, "forbidden"), (404, "not_found"), (410, "gone"), (418, "http_418")],
)
def test_refusals_are_permanent(tmp_path: Path, origin: HostileOrigin, status: int, code: str) -> None:
    """What a person must mend ends the download at once, and takes no disk."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", *[Status(status)] * 20)
    with open_engine(tmp_path / "root", 2) as engine:
        assert _codes(engine.launch(spec_of(data), http(origin.url("/f")))) == (code, True)
        assert os.listdir(engine.layout.ingest) == []


def test_a_wrong_digest_is_fetched_once_more(tmp_path: Path, origin: HostileOrigin) -> None:
    """Wrong bytes are deleted and fetched again from the start; right the second time, no version fails."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", *[FlipBit(41 * MIB)] * 3)
    with open_engine(tmp_path / "root", 1) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), http(origin.url("/f"))))
        assert (engine.counts.mismatches, engine.counts.failures) == (1, ["digest_mismatch"])
        assert engine.counts.received_bytes == 2 * len(data)


def test_a_wrong_digest_twice_is_permanent(tmp_path: Path, origin: HostileOrigin) -> None:
    """Bytes that are wrong twice are a permanent error that says both digests; nothing of them is kept or published."""
    data, other = noise()[: 5 * MIB], noise()[1 : 5 * MIB + 1]
    origin.put("/f", other, etag='"v1"')
    with open_engine(tmp_path / "root", 2) as engine:
        error = engine.error_of(spec_of(data), http(origin.url("/f")))
        assert isinstance(error, DigestMismatch)
        assert hashlib.sha256(data).hexdigest() in error.message
        assert hashlib.sha256(other).hexdigest() in error.message
        assert engine.counts.mismatches == 2
        assert private_files(engine.layout) == set()
        assert os.listdir(engine.layout.ingest) == []
    assert len(origin.requests) == 2


@pytest.mark.parametrize("size", [5000, None])
def test_a_git_blob_id_is_checked(tmp_path: Path, origin: HostileOrigin, size: int | None) -> None:
    """A file that the source names by its Git blob id alone is committed only if that is its id, also where its size is
    not known before its last byte."""
    data = noise()[:5000]
    origin.put("/f", data, etag='"v1"')
    right = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    with open_engine(tmp_path / "root", 1) as engine:
        error = engine.error_of(spec_of(data, sha256=None, git_oid="0" * 40, size=size), http(origin.url("/f")))
        assert isinstance(error, DigestMismatch)
        assert (error.expected, error.found) == ("0" * 40, right)
        assert private_files(engine.layout) == set()
        verified = engine.fetch(spec_of(data, sha256=None, git_oid=right, size=size), http(origin.url("/f")))
        check_committed(engine.layout, data, verified)


@pytest.mark.parametrize("size", [MIB, 70 * MIB])
def test_a_weaker_sum_is_checked_as_a_digest_is(tmp_path: Path, origin: HostileOrigin, size: int) -> None:
    """A damaged byte is found by the crc32c that the source promises: fetched once more, and then right, or failed with
    nothing kept."""
    data = noise()[:size]
    hasher = new_hasher(Algorithm.CRC32C)
    hasher.update(memoryview(data))
    checksum = Checksum(Algorithm.CRC32C, hasher.hexdigest())
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        for name, faults in (("once", 1), ("twice", 2)):
            ranges = -(-size // SEGMENT_BYTES)
            origin.script("/f", *[FlipBit(size - 1)] * (ranges * faults))
            download = engine.launch(
                replace(spec_of(data, name=name, sha256=None), checksum=checksum), http(origin.url("/f"))
            )
            if faults == 1:
                check_committed(engine.layout, data, download.result.result(DEADLINE_S))
            else:
                error = download.result.exception(DEADLINE_S)
                assert isinstance(error, DigestMismatch) and "crc32c" in error.message
        assert engine.counts.failures == ["digest_mismatch"] * 3
        assert [path for path in private_files(engine.layout) if path.startswith("ingest/")] == []


def test_an_object_that_changed_ends_the_download(tmp_path: Path, origin: HostileOrigin) -> None:
    """Another object under the same name ends the download for a new listing; none of the old one's bytes are kept."""
    data = noise()
    origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        paused, spec = Paused(40 * MIB), spec_of(data)
        download = engine.launch(spec, http(origin.url("/f")), space=paused)
        assert paused.reached.wait(DEADLINE_S)
        origin.put("/f", noise()[::-1], etag='"v2"')
        origin.drop_connections()
        paused.let_go.set()
        code = _codes(download)
        assert code == ("source_changed", False)
        assert os.listdir(engine.layout.ingest) == []


@pytest.mark.parametrize(
    "refusal",
    [Status(403), Status(403, body=b"<Code>ExpiredToken</Code>"), Status(400, body=b"<Code>ExpiredToken</Code>")],
)
def test_an_expired_address_is_asked_for_again(tmp_path: Path, origin: HostileOrigin, refusal: Fault) -> None:
    """Every connection may find its signed address expired at the same moment: a fresh one is asked for, and used."""
    data, together = noise(), Together(3, refusal)
    origin.put("/old", data, etag='"v1"')
    origin.put("/new", data, etag='"v1"')
    origin.script("/old", together, together, together)
    old, new = http(origin.url("/old")), http(origin.url("/new"))

    def locate() -> Target:
        return new if any(seen.path == "/old" for seen in origin.requests) else old

    with open_engine(tmp_path / "root", 3) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), locate))
    assert sum(seen.path == "/old" for seen in origin.requests) == 3


def test_a_lasting_refusal_is_asked_about_once(tmp_path: Path, origin: HostileOrigin) -> None:
    """Forbidden with a fresh address too is permanent."""
    data = noise()[:MIB]
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", *[Status(403)] * 10)
    given: list[Target] = []

    def locate() -> Target:
        given.append(http(origin.url("/f")))
        return given[-1]

    with open_engine(tmp_path / "root", 2) as engine:
        assert _codes(engine.launch(spec_of(data), locate)) == ("forbidden", True)
    assert (len(given), len(origin.requests)) == (2, 2)


@pytest.mark.parametrize("status", [401, 403])
def test_addresses_that_end_in_the_middle_are_renewed(tmp_path: Path, origin: HostileOrigin, status: int) -> None:
    """A blob outlasts its addresses: each is refused after one range, and the next is asked for once, however many
    there must be."""
    data, given = noise(), list[str]()

    def locate() -> Target:
        given.append(f"/{len(given)}")
        origin.put(given[-1], data, etag='"v1"')
        origin.script(given[-1], Headers({}))
        origin.always(given[-1], Status(status))
        return http(origin.url(given[-1]))

    with open_engine(tmp_path / "root", 1) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), locate))
    assert len(given) == 3  # ranges of 32 MiB
    assert len(origin.requests) == 5


def test_an_address_is_renewed_before_it_ends(tmp_path: Path, origin: HostileOrigin) -> None:
    """With a lifetime that is over at once every range has an address of its own, and none is refused."""
    data, given = noise(), list[str]()

    def locate() -> Target:
        given.append(f"/{len(given)}")
        url = origin.put(given[-1], data, etag='"v1"')
        origin.script(given[-1], Headers({}))
        origin.always(given[-1], Status(401))
        return replace(http(url), lifetime_s=0.0)

    with open_engine(tmp_path / "root", 3) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), locate))
        assert engine.counts.failures == []
    assert len(given) == len(origin.requests) == 3


def test_an_unauthorized_fresh_address_is_permanent(tmp_path: Path, origin: HostileOrigin) -> None:
    """401 to an address that was just given, and never worked, is the answer."""
    data, given = noise()[:MIB], list[Target]()
    origin.put("/f", data)
    origin.always("/f", Status(401))

    def locate() -> Target:
        given.append(http(origin.url("/f")))
        return given[-1]

    with open_engine(tmp_path / "root", 2) as engine:
        assert _codes(engine.launch(spec_of(data), locate)) == ("unauthorized", True)
    assert len(given) == 1


def test_after_one_that_ran_out_a_fresh_address_is_permanent(tmp_path: Path, origin: HostileOrigin) -> None:
    """Access that is withdrawn in the middle ends the download: the address that replaces the refused one was fresh."""
    data, given = noise(), list[Target]()
    origin.put("/f", data, etag='"v1"')
    origin.script("/f", Headers({}))
    origin.always("/f", Status(403))

    def locate() -> Target:
        given.append(http(origin.url("/f")))
        return given[-1]

    with open_engine(tmp_path / "root", 1) as engine:
        assert _codes(engine.launch(spec_of(data), locate)) == ("forbidden", True)
    assert (len(given), len(origin.requests)) == (2, 3)


def test_a_locator_that_fails_is_tried_again(tmp_path: Path, origin: HostileOrigin) -> None:
    """A source that cannot say where the bytes are just now is asked again; one that never can ends the download."""
    data = noise()[:MIB]
    origin.put("/f", data, etag='"v1"')
    left = [Transient("http_503", "busy", "", retry_after_s=0.0)]

    def locate() -> Target:
        if left:
            raise left.pop()
        return http(origin.url("/f"))

    def never() -> Target:
        raise Permanent("gated", "ask for access", "on its page")

    with open_engine(tmp_path / "root", 2) as engine:
        check_committed(engine.layout, data, engine.fetch(spec_of(data), locate))
        assert _codes(engine.launch(spec_of(b"x", name="x"), never)) == ("gated", True)


def test_cancel_wakes_a_download_that_waits(tmp_path: Path, origin: HostileOrigin) -> None:
    """Cancelled while it stalls, backs off, or has not begun: a download ends at once, and gives everything back."""
    data, hold = noise()[:MIB], Hold()
    for path in ("/held", "/later", "/queued"):
        origin.put(path, data, etag='"v1"')
    origin.script("/held", hold)
    origin.script("/later", Status(503, {"Retry-After": "3000"}))
    with open_engine(tmp_path / "root", 1) as engine:
        later = engine.launch(spec_of(data[1:], name="later"), http(origin.url("/later")))
        eventually(lambda: later.last_error is not None)
        held = engine.launch(spec_of(data, name="held"), http(origin.url("/held")))
        assert hold.reached.wait(DEADLINE_S)
        queued = engine.launch(spec_of(data[2:], name="queued"), http(origin.url("/queued")))
        try:
            for download in (queued, later, held):
                download.cancel()
                assert isinstance(download.result.exception(DEADLINE_S), Cancelled)
                download.cancel()
        finally:
            hold.let_go.set()
        assert os.listdir(engine.layout.ingest) == []


def test_a_local_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """A file written to between its first and its last byte is noticed, though no source promised its digest."""
    path = tmp_path / "file"
    path.write_bytes(noise()[: 20 * MIB])
    with open_engine(tmp_path / "root", 1) as engine:
        paused = Paused(8 * MIB)
        spec = spec_of(noise()[: 20 * MIB], sha256=None)
        download = engine.launch(spec, local(path), space=paused)
        assert paused.reached.wait(DEADLINE_S)
        with path.open("r+b") as file:
            file.seek(19 * MIB)
            file.write(b"changed")
        os.utime(path, ns=(1, 1))
        paused.let_go.set()
        assert _codes(download) == ("source_changed", False)
        assert private_files(engine.layout) == set()


def test_local_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A local file that is not there is permanent; one that is another than was listed asks for a new listing."""
    path = tmp_path / "file"
    path.write_bytes(b"one")
    before = local(path)
    path.write_bytes(b"other")
    with open_engine(tmp_path / "root", 1) as engine:
        assert _codes(engine.launch(spec_of(b"one"), before)) == ("source_changed", False)
        path.unlink()
        assert _codes(engine.launch(spec_of(b"two"), before)) == ("not_found", True)


def test_an_attempt_that_is_over_before_anybody_looks(
    tmp_path: Path, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download whose attempt ends as soon as it is open, as that at an empty file may, ends with it."""

    class AtOnce(Attempt):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            wait([self.outcome], DEADLINE_S)

    monkeypatch.setattr("cached.fetch.download.Attempt", AtOnce)
    url = origin.put("/f", b"", etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        download = engine.launch(spec_of(b""), http(url))
        check_committed(engine.layout, b"", download.result.result(DEADLINE_S))
        download.cancel()


@pytest.mark.parametrize("size", [5000, 5 * MIB])
def test_a_download_that_ended_is_no_garbage_in_cycles(tmp_path: Path, origin: HostileOrigin, size: int) -> None:
    """A download goes with its last reference: thousands of them never wait for a look through all that there is."""
    data = noise()[:size]
    url = origin.put("/f", data, etag='"v1"')
    with open_engine(tmp_path / "root", 1) as engine:
        gc.disable()
        try:
            download = engine.launch(spec_of(data), http(url))
            download.result.result(DEADLINE_S)
            ended = weakref.ref(download)
            del download
            eventually(lambda: ended() is None)
        finally:
            gc.enable()
