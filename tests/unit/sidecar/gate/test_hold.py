"""`holdfast gate --hold`: the process that holds a lease beside a pod that runs already."""

from __future__ import annotations

import signal

import pytest

from cached.contract import lease
from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from tests.support.gates import FILES, REF, Gates, wait_for
from tests.support.snapshots import link_model, make_snapshot, write_status

OTHER_FILES = {"config.json": b"{}", "model.safetensors": b"other"}


def is_held(public: PublicLayout, digest: Digest) -> bool:
    return lease.is_held(public.snapshot(digest).lease)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_holds_until_a_signal(public: PublicLayout, gates: Gates, number: signal.Signals) -> None:
    """The lease of a version that is here is held from the start until a signal, and the exit code is 0."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start("--hold")
    gate.wait_said("lease held")
    assert is_held(public, digest)
    assert gates.stop(gate, number) == 0
    assert not is_held(public, digest)


def test_it_says_one_line(public: PublicLayout, gates: Gates) -> None:
    """Beside a version that is here the log has one line: the lease, with the digest."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start("--hold")
    gate.wait_said("lease held")
    gate.process.terminate()
    assert gate.wait() == 0
    assert gate.said() == f"holdfast gate: {REF}: lease held, {digest}\n"


def test_a_version_that_is_gone_is_waited_for(public: PublicLayout, gates: Gates) -> None:
    """What is not here, whatever the daemon says of it, is waited for: the process neither fails nor ends."""
    write_status(public, REF, State.FAILED, StatusError("unknown_model", "no", "add it", permanent=True))
    gate = gates.start("--hold")
    gate.wait_said("not on this node now")
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    wait_for(lambda: is_held(public, digest), "the lease")
    assert gates.stop(gate) == 0


def test_a_signal_before_the_lease_ends_it_well(public: PublicLayout, gates: Gates) -> None:
    """A pod that ends before its weights came back ends this process with 0."""
    gate = gates.start("--hold")
    gate.wait_said("not on this node now")
    assert gates.stop(gate) == 0


def test_what_no_gate_would_open_does_not_end_it(public: PublicLayout, gates: Gates) -> None:
    """A name that leads to no snapshot is said and waited out, as the pod has its verdict from the other gate."""
    link = public.model_link(REF)
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc")
    gate = gates.start("--hold")
    gate.wait_said("its lease cannot be taken")
    link.unlink()
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    wait_for(lambda: is_held(public, digest), "the lease")


def test_a_pinned_version_is_held_by_its_content(public: PublicLayout, gates: Gates) -> None:
    """Where the name leads to other content by now, the pinned content is held: the pod may be reading it."""
    verified = make_snapshot(public, FILES)
    link_model(public, REF, make_snapshot(public, OTHER_FILES))
    gate = gates.start("--hold", "--digest", str(verified))
    gate.wait_said("lease held")
    assert is_held(public, verified)


def test_several_versions_are_held_as_they_come(public: PublicLayout, gates: Gates) -> None:
    """Of several versions each is held as soon as it is here, whatever the others do."""
    other = ModelRef("lora", "v7")
    first = make_snapshot(public, FILES)
    link_model(public, REF, first)
    gate = gates.start_bare("--hold", "--models", f"base={REF},adapter={other}")
    wait_for(lambda: is_held(public, first), "the first lease")
    second = make_snapshot(public, OTHER_FILES)
    link_model(public, other, second)
    wait_for(lambda: is_held(public, second), "the second lease")
    assert is_held(public, first)
    assert gates.stop(gate) == 0


def test_a_snapshot_made_anew_is_held_again(public: PublicLayout, gates: Gates) -> None:
    """A snapshot that went bad and was made anew under its name is held too."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start("--hold")
    gate.wait_said("lease held")
    public.snapshot(digest).path.rename(public.path / "gone bad")
    assert make_snapshot(public, FILES) == digest
    wait_for(lambda: is_held(public, digest), "the new lease")


def test_it_listens_where_it_is_told_to(public: PublicLayout, gates: Gates) -> None:
    """With `--listen` it answers probes: ready once every lease is held."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start("--hold", "--listen", "127.0.0.1:0")
    assert gate.address().startswith("http://127.0.0.1:")
    gate.wait_said("lease held")
