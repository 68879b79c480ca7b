"""What both kinds of attempt promise a download: the one in segments, and the one of a small file in memory.

The workers' part is played here, over the real buffers, journal and committing threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cached.contract.errors import DigestMismatch, Transient
from cached.core.listing import Algorithm, Checksum
from cached.fetch.attempt import Attempt
from cached.fetch.blob import BlobSpec, NoRanges, Segment
from cached.fetch.small_attempt import SmallAttempt
from cached.transport.checksums import new_hasher
from cached.transport.connection.cancel import Cancelled
from tests.support.fetching import DEADLINE_S, Engine, check_committed, noise, open_engine, private_files
from tests.support.fetching import spec_of as spec_with

DATA = noise()[:300_000]
HALF = 128 * 1024  # pieces begin at multiples of a block
TROUBLE = Transient("reset", "the connection broke", "it is tried again")
AnyAttempt = Attempt | SmallAttempt


@dataclass
class Case:
    """One kind of attempt over an engine."""

    kind: type[Attempt] | type[SmallAttempt]
    engine: Engine

    def begin(self, spec: BlobSpec, *, stream: bool = False) -> AnyAttempt:
        return self.kind(spec, self.engine.workers, stream=stream)

    def receive(self, attempt: AnyAttempt, segment: Segment, data: bytes = DATA) -> None:
        """A worker's turn: all of `segment`, then it leaves."""
        self.bring(attempt, segment.start, segment.end or len(data), data)
        attempt.end_segment(None)

    def bring(self, attempt: AnyAttempt, start: int, end: int, data: bytes = DATA) -> None:
        """Pieces as a worker hands them over."""
        buffer = self.engine.workers.buffers.take()
        assert end - start <= len(buffer)
        buffer[: end - start] = data[start:end]
        attempt.accept(buffer, end - start, start, 0.0)

    def fetch(self, attempt: AnyAttempt, data: bytes = DATA) -> None:
        while (segment := attempt.take_segment()) is not None:
            self.receive(attempt, segment, data)


@pytest.fixture(params=[Attempt, SmallAttempt])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with open_engine(tmp_path / "root", 2) as engine:
        yield Case(request.param, engine)


def spec_of(data: bytes = DATA) -> BlobSpec:
    return spec_with(data)


@pytest.mark.parametrize("size", [1, 4096, 4097, len(DATA)])
def test_what_was_received_whole_is_committed(case: Case, size: int) -> None:
    """All bytes in: the outcome is their sha256 and size, the blob has its name, and nothing else stays."""
    data = DATA[:size]
    attempt = case.begin(spec_of(data))
    case.fetch(attempt, data)
    verified = attempt.outcome.result(DEADLINE_S)
    check_committed(case.engine.layout, data, verified)
    assert verified.fresh
    assert private_files(case.engine.layout) == {f"blobs/{verified.sha256[:2]}/{verified.sha256}"}


def test_an_empty_file_needs_no_worker(case: Case) -> None:
    """A blob without bytes is committed without anything being asked for."""
    attempt = case.begin(spec_of(b""))
    check_committed(case.engine.layout, b"", attempt.outcome.result(DEADLINE_S))
    assert attempt.take_segment() is None


def test_it_says_what_there_is_to_do(case: Case) -> None:
    """Work to give out, then bytes under way, then neither; each byte is given out once."""
    attempt = case.begin(spec_of())
    assert (attempt.has_work(), attempt.receiving(), attempt.outcome.done()) == (True, True, False)
    segment = attempt.take_segment()
    assert segment is not None
    assert (segment.start, segment.end) == (0, len(DATA))
    assert attempt.take_segment() is None
    assert (attempt.has_work(), attempt.receiving()) == (False, True)
    assert not attempt.committing
    case.receive(attempt, segment)
    assert (attempt.has_work(), attempt.receiving()) == (False, False)
    attempt.outcome.result(DEADLINE_S)
    assert (attempt.take_segment(), attempt.has_work(), attempt.receiving()) == (None, False, False)
    assert (attempt.resumed_bytes, attempt.left_bytes) == (0, 0)


def test_what_a_worker_gives_back_is_the_next_ones(case: Case) -> None:
    """A worker that leaves early gives back exactly what it did not receive, and another one goes on with that."""
    attempt = case.begin(spec_of())
    segment = attempt.take_segment()
    assert segment is not None
    case.bring(attempt, 0, HALF)
    attempt.end_segment(Segment(HALF, segment.end))
    assert (attempt.has_work(), attempt.receiving(), attempt.outcome.done()) == (True, True, False)
    rest = attempt.take_segment()
    assert rest is not None
    assert (rest.start, rest.end) == (HALF, len(DATA))
    case.receive(attempt, rest)
    check_committed(case.engine.layout, DATA, attempt.outcome.result(DEADLINE_S))


@pytest.mark.parametrize("promise", ["sha256", "git_oid"])
def test_other_bytes_than_promised_are_never_committed(case: Case, promise: str) -> None:
    """Bytes that do not have the promised digest end it with `DigestMismatch`, and no byte of them stays."""
    wrong = DATA[:-1] + b"?"
    oid = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    spec = spec_of() if promise == "sha256" else spec_with(DATA, sha256=None, git_oid=oid)
    attempt = case.begin(spec)
    case.fetch(attempt, wrong)
    assert isinstance(attempt.outcome.exception(DEADLINE_S), DigestMismatch)
    assert attempt.placed is None
    assert private_files(case.engine.layout) == set()
    again = case.begin(spec)
    case.fetch(again)
    check_committed(case.engine.layout, DATA, again.outcome.result(DEADLINE_S))


def test_a_promised_git_id_is_checked(case: Case) -> None:
    """A blob of Git's id is committed under its sha256, which no source promised, and that is noted durably."""
    oid = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    spec = spec_with(DATA, sha256=None, git_oid=oid)
    attempt = case.begin(spec)
    case.fetch(attempt)
    verified = attempt.outcome.result(DEADLINE_S)
    check_committed(case.engine.layout, DATA, verified)
    assert case.engine.journal.find(spec.key.id) == verified.sha256


@pytest.mark.parametrize("algorithm", [Algorithm.CRC32C, Algorithm.CRC32, Algorithm.SHA1, Algorithm.MD5])
def test_a_promised_sum_is_checked(case: Case, algorithm: Algorithm) -> None:
    """A weaker sum of the source must be that of the bytes: then they are committed under their sha256, else not."""
    hasher = new_hasher(algorithm)
    hasher.update(memoryview(DATA))
    right = Checksum(algorithm, hasher.hexdigest())
    attempt = case.begin(replace(spec_with(DATA, sha256=None), checksum=right))
    case.fetch(attempt)
    check_committed(case.engine.layout, DATA, attempt.outcome.result(DEADLINE_S))
    wrong = Checksum(algorithm, "0" * len(right.hex))
    attempt = case.begin(replace(spec_with(DATA[:-1], sha256=None, name="other"), checksum=wrong))
    case.fetch(attempt, DATA[:-1])
    with pytest.raises(DigestMismatch, match=f"other: {algorithm}: expected {wrong.hex}"):
        attempt.outcome.result(DEADLINE_S)


@pytest.mark.parametrize("received", [0, HALF])
def test_a_failure_is_the_outcome_once_nobody_is_inside(case: Case, received: int) -> None:
    """A failed attempt gives out nothing, calls off its receivers, and tells its first error when they have left."""
    attempt = case.begin(spec_of())
    assert attempt.take_segment() is not None
    if received:
        case.bring(attempt, 0, received)
    attempt.fail(TROUBLE)
    attempt.fail(Transient("stalled", "later", "no"))
    with pytest.raises(Cancelled):
        attempt.cancellation.check()
    assert (attempt.take_segment(), attempt.has_work(), attempt.receiving()) == (None, False, False)
    attempt.end_segment(Segment(received, len(DATA)))
    assert attempt.outcome.exception(DEADLINE_S) is TROUBLE
    assert attempt.placed is None


def test_a_failure_before_any_worker_came(case: Case) -> None:
    """An attempt may be called off before anything was asked for."""
    attempt = case.begin(spec_of())
    attempt.fail(TROUBLE)
    assert attempt.outcome.exception(DEADLINE_S) is TROUBLE


def test_a_failure_after_the_end_changes_nothing(case: Case) -> None:
    """What was committed stays the outcome."""
    attempt = case.begin(spec_of())
    case.fetch(attempt)
    verified = attempt.outcome.result(DEADLINE_S)
    attempt.fail(TROUBLE)
    assert attempt.outcome.result(0) is verified
    check_committed(case.engine.layout, DATA, verified)


def test_an_origin_without_ranges_is_read_from_the_start(case: Case) -> None:
    """The first answer may bring everything: the attempt is a stream from there on, and is right."""
    attempt = case.begin(spec_of())
    segment = attempt.take_segment()
    assert segment is not None
    assert not attempt.stream
    attempt.become_stream(segment)
    assert attempt.stream
    case.receive(attempt, segment)
    check_committed(case.engine.layout, DATA, attempt.outcome.result(DEADLINE_S))


def test_what_has_bytes_already_becomes_no_stream(case: Case) -> None:
    """An answer from the start in the place of a later range is `NoRanges`: no byte is ever written twice."""
    attempt = case.begin(spec_of())
    segment = attempt.take_segment()
    assert segment is not None
    case.bring(attempt, 0, HALF)
    attempt.end_segment(Segment(HALF, segment.end))
    rest = attempt.take_segment()
    assert rest is not None
    with pytest.raises(NoRanges):
        attempt.become_stream(rest)
    case.receive(attempt, rest)
    check_committed(case.engine.layout, DATA, attempt.outcome.result(DEADLINE_S))


def test_a_blob_that_is_there_is_not_made_anew(case: Case) -> None:
    """A second attempt at what was committed since comes to the same blob, and says that it was there."""
    outcomes = []
    for attempt in [case.begin(spec_with(DATA, sha256=None, name=name)) for name in ("a", "b")]:
        case.fetch(attempt)
        outcomes.append(attempt.outcome.result(DEADLINE_S))
    assert [each.fresh for each in outcomes] == [True, False]
    check_committed(case.engine.layout, DATA, outcomes[1])
