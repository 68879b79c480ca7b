"""A gate's doubts: what ends the wait for the daemon's verdict."""

from __future__ import annotations

import os

import pytest

from cached.contract.errors import DigestMismatch
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.reference import ModelRequest
from cached.contract.snapshot import doubt
from cached.contract.status import State
from sidecar.gate.doubts import BEAT_S, MOST_DOUBTS, SIGN_S, GateDoubts
from sidecar.gate.exit_codes import MISMATCH, Confirmed, code_of
from tests.support.clocks import ManualClock
from tests.support.gates import FILES, REF, Gates
from tests.support.snapshots import link_model, make_snapshot, write_heartbeat, write_status

WANT = ModelRequest(REF)


@pytest.fixture
def snapshot(public: PublicLayout) -> SnapshotLayout:
    """A version, of a daemon that has just beaten."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    write_heartbeat(public)
    return public.snapshot(digest)


def _mismatch(number: int = 1) -> DigestMismatch:
    return DigestMismatch("a.bin: inode", "1", str(number), "verify it")


def _renew(snapshot: SnapshotLayout) -> None:
    """As the daemon does when the bytes are right."""
    fresh = snapshot.verified.with_name("fresh")
    fresh.write_bytes(snapshot.verified.read_bytes())
    fresh.replace(snapshot.verified)


def test_the_daemon_sees_a_doubt_until_its_verdict(public: PublicLayout, snapshot: SnapshotLayout) -> None:
    """A doubt rings the bell and is seen on its snapshot alone; a record that is renewed ends it, and nothing rings."""
    other = public.snapshot(make_snapshot(public, {"x": b"x"}))
    doubts = GateDoubts(public, ManualClock())
    doubts.add(WANT, snapshot, _mismatch())
    assert doubt.is_bell_held(public) and doubt.is_doubted(snapshot) and not doubt.is_doubted(other)
    assert doubts.check(WANT) is not None
    _renew(snapshot)
    assert doubts.check(WANT) is None
    assert not doubt.is_bell_held(public) and not doubt.is_doubted(snapshot)


@pytest.mark.parametrize("change", ["name gone", "name moved", "snapshot replaced"])
def test_another_snapshot_is_a_verdict(public: PublicLayout, snapshot: SnapshotLayout, change: str) -> None:
    """A name that went or moved, or a snapshot that was made anew under its name, ends the wait."""
    doubts = GateDoubts(public, ManualClock())
    doubts.add(WANT, snapshot, _mismatch())
    if change == "name gone":
        public.model_link(REF).unlink()
    elif change == "name moved":
        link_model(public, REF, make_snapshot(public, {"x": b"x"}))
    else:
        snapshot.path.rename(public.path / "old")
        make_snapshot(public, FILES)
    assert doubts.check(WANT) is None


def test_without_a_daemon_nobody_is_asked(public: PublicLayout, snapshot: SnapshotLayout) -> None:
    """Where no daemon ever beat, the mismatch is what it is, at once."""
    public.daemon_status.unlink()
    error = _mismatch()
    with pytest.raises(DigestMismatch) as caught:
        GateDoubts(public, ManualClock()).add(WANT, snapshot, error)
    assert caught.value is error
    assert not doubt.is_bell_held(public)


def test_a_silent_daemon_is_given_up(public: PublicLayout, snapshot: SnapshotLayout) -> None:
    """A heartbeat that stands still ends the wait with the mismatch and the reason."""
    clock = ManualClock()
    doubts = GateDoubts(public, clock)
    doubts.add(WANT, snapshot, _mismatch())
    clock.now_s += BEAT_S + 1
    with pytest.raises(Confirmed, match=r"a\.bin: inode.*silent") as caught:
        doubts.check(WANT)
    assert code_of(caught.value) == MISMATCH
    assert not doubt.is_bell_held(public)


def test_a_daemon_that_never_looks_is_given_up(public: PublicLayout, snapshot: SnapshotLayout) -> None:
    """A daemon that beats and does not look is waited for as long as it takes to begin; one that hashes, longer."""
    clock = ManualClock()
    doubts = GateDoubts(public, clock)
    doubts.add(WANT, snapshot, _mismatch())
    for second in range(3 * int(SIGN_S)):
        clock.now_s += 1
        write_heartbeat(public, age_s=-second)
        write_status(public, REF, State.VERIFYING, done=(second, 100))
        assert doubts.check(WANT) is not None
    write_status(public, REF, State.READY)
    with pytest.raises(Confirmed, match="did not for"):
        for second in range(2 * int(SIGN_S)):
            clock.now_s += 1
            write_heartbeat(public, age_s=-second)
            doubts.check(WANT)


def test_the_same_found_again_is_no_new_doubt(public: PublicLayout, snapshot: SnapshotLayout) -> None:
    """What the gate finds again after the daemon has looked ends it; what it finds anew is doubted, so many times."""
    doubts = GateDoubts(public, ManualClock())
    for number in range(MOST_DOUBTS):
        doubts.add(WANT, snapshot, _mismatch(number))
        _renew(snapshot)
        assert doubts.check(WANT) is None
    with pytest.raises(Confirmed, match="the same again"):
        doubts.add(WANT, snapshot, _mismatch(0))
    with pytest.raises(Confirmed, match="3 times"):
        doubts.add(WANT, snapshot, _mismatch(MOST_DOUBTS))


def test_a_gate_whose_mismatch_stays_says_that_the_daemon_looked(
    public: PublicLayout, snapshot: SnapshotLayout, gates: Gates
) -> None:
    """The process ends with 65 where the record was renewed and still does not fit, and tells why in its log."""
    os.utime(snapshot.path / "model.safetensors", ns=(1, 1))
    gate = gates.start("--once")
    gate.wait_said("asked to look at it now")
    _renew(snapshot)
    assert gate.wait() == 65
    assert "the daemon of this node looked at it, and the gate finds the same again" in gate.said()
    assert "mtime" in gates.termination_log.read_text()


def test_a_wrong_pin_asks_nobody(public: PublicLayout, snapshot: SnapshotLayout, gates: Gates) -> None:
    """A pin that the version does not meet ends the gate at once: no hash on the node could help."""
    gate = gates.start("--once", "--digest", "sha256:" + "0" * 64)
    assert gate.wait() == 65
    assert snapshot.path.is_dir() and "asked to look" not in gate.said()


def test_what_changed_meanwhile_is_looked_at_again_first(public: PublicLayout, snapshot: SnapshotLayout) -> None:
    """A record that was renewed while the gate checked by the old one is no reason to have all of it hashed again."""
    doubts = GateDoubts(public, ManualClock())
    seen = doubts.identify(WANT, snapshot)
    _renew(snapshot)
    assert not doubts.add(WANT, snapshot, _mismatch(), seen)
    assert not doubt.is_bell_held(public) and doubts.check(WANT) is None
    assert doubts.add(WANT, snapshot, _mismatch(), doubts.identify(WANT, snapshot))


def test_a_check_that_goes_on_is_no_verdict_yet(public: PublicLayout, snapshot: SnapshotLayout) -> None:
    """A record that was written in the middle of a check, which began before the doubt, does not end the gate; what
    stays when the check is over does."""
    doubts = GateDoubts(public, ManualClock())
    doubts.add(WANT, snapshot, _mismatch())
    write_status(public, REF, State.VERIFYING, done=(1, 2), held=f"sha256:{snapshot.path.name}")
    for _ in range(MOST_DOUBTS + 1):
        _renew(snapshot)
        assert doubts.check(WANT) is None
        assert doubts.add(WANT, snapshot, _mismatch())
    write_status(public, REF, State.READY)
    _renew(snapshot)
    assert doubts.check(WANT) is None
    with pytest.raises(Confirmed, match="the same again"):
        doubts.add(WANT, snapshot, _mismatch())
