"""The gate's flow, as a process: waiting, opening, holding the lease, and each way to end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from cached.contract.status import State, StatusError
from tests.support.gates import FILES, REF, Gates, wait_for
from tests.support.snapshots import link_model, make_snapshot, write_status

UNKNOWN = StatusError("unknown_model", "the catalog has no acme/tiny", "add it to the catalog", permanent=True)


def test_a_version_that_is_there_opens_at_once(public: PublicLayout, gates: Gates) -> None:
    """With the version published, `--once` exits 0."""
    link_model(public, REF, make_snapshot(public, FILES))
    assert gates.start("--once").wait() == 0


def test_it_waits_and_opens_on_publication(public: PublicLayout, gates: Gates) -> None:
    """A gate that waits opens when the symlink appears, though the folder of the model's name did not exist."""
    gate = gates.start("--once")
    gate.wait_said("waiting")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_missing_folders_are_awaited(public: PublicLayout, gates: Gates) -> None:
    """A public folder that is not there at all is told, awaited, and opened when all of it has come."""
    shutil.rmtree(public.path)
    gate = gates.start("--once")
    gate.wait_said(f"{public.path} is not there")
    public.path.mkdir()
    gate.wait_said("neither models/ nor status/")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_a_recreated_folder_is_followed(public: PublicLayout, gates: Gates) -> None:
    """A folder that was removed and made again while the gate watched it still opens the gate."""
    public.model_link(REF).parent.mkdir()
    gate = gates.start("--once")
    gate.wait_said("waiting")
    public.model_link(REF).parent.rmdir()
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_lease_is_held_until_a_signal(public: PublicLayout, gates: Gates, number: signal.Signals) -> None:
    """A gate that stays keeps evictions out until SIGTERM or SIGINT, and then exits 0."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start()
    gate.wait_said("open after")
    assert lease.take_exclusive(public.snapshot(digest).lease) is None
    gate.process.send_signal(number)
    assert gate.wait() == 0
    with_all = lease.take_exclusive(public.snapshot(digest).lease)
    assert with_all is not None
    with_all.close()


def test_a_snapshot_made_anew_is_held_again(public: PublicLayout, gates: Gates) -> None:
    """A snapshot that went bad after the gate had opened, and was made anew under its name, is kept by it too."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start()
    gate.wait_said("open after")
    public.snapshot(digest).path.rename(public.path / "gone bad")
    assert make_snapshot(public, FILES) == digest
    wait_for(lambda: lease.is_held(public.snapshot(digest).lease), "the new lease")
    assert gate.process.poll() is None


def test_a_killed_gate_holds_nothing(public: PublicLayout, gates: Gates) -> None:
    """SIGKILL gives the lease back."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    gate = gates.start()
    gate.wait_said("open after")
    gate.process.kill()
    gate.wait()
    assert not lease.is_held(public.snapshot(digest).lease)


def test_a_signal_while_waiting_ends_it(gates: Gates) -> None:
    """SIGTERM before the gate is open ends it with 128 + 15."""
    gate = gates.start()
    gate.wait_said("waiting")
    gate.process.terminate()
    assert gate.wait() == 128 + signal.SIGTERM


def test_the_deadline_ends_it(public: PublicLayout, gates: Gates) -> None:
    """A version that is not there in time ends the gate with 75, and the reason says what it was waiting for."""
    write_status(public, REF, State.FETCHING, done=(1 << 20, 4 << 20))
    assert gates.start("--timeout", "0.3").wait() == 75
    reason = gates.termination_log.read_text()
    assert "0.3 s" in reason and "acme/tiny@v1: fetching 1.0 MiB of 4.0 MiB (25 %)" in reason


def test_what_can_never_be_ends_it(public: PublicLayout, gates: Gates) -> None:
    """A permanent failure ends the gate with 69; reason and remedy are in log and termination log."""
    write_status(public, REF, State.FAILED, UNKNOWN)
    gate = gates.start()
    assert gate.wait() == 69
    for text in (gate.said(), gates.termination_log.read_text()):
        assert UNKNOWN.message in text and UNKNOWN.remedy in text


def test_a_mismatch_at_the_daemon_ends_it_as_one(public: PublicLayout, gates: Gates) -> None:
    """A permanent failure of code `digest_mismatch` ends the gate with 65."""
    error = StatusError("digest_mismatch", "expected sha256:aa, found sha256:bb", "correct the pin", permanent=True)
    write_status(public, REF, State.FAILED, error)
    assert gates.start().wait() == 65


def test_somebody_elses_wrong_pin_is_waited_out(public: PublicLayout, gates: Gates) -> None:
    """Where pods pin what cannot be met, the gate that pins so ends with 65; one that does not waits, and opens."""
    wrong = "sha256:" + "0" * 64
    error = StatusError("digest_mismatch", "expected sha256:00, found sha256:bb", "correct the pin", permanent=True)
    write_status(public, REF, State.FAILED, error, refused_pins={wrong: error})
    assert gates.start("--digest", wrong).wait() == 65
    gate = gates.start("--once")
    gate.wait_said("failed")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_a_passing_failure_is_waited_out(public: PublicLayout, gates: Gates) -> None:
    """A failure that is not permanent is shown, and the gate opens when the version comes all the same."""
    error = StatusError("timeout", "no answer from the bucket", "", permanent=False)
    write_status(public, REF, State.FAILED, error)
    gate = gates.start("--once")
    gate.wait_said("no answer from the bucket")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_a_symlink_outweighs_an_old_failure(public: PublicLayout, gates: Gates) -> None:
    """A status `failed` from an earlier attempt does not stop a version that is there."""
    write_status(public, REF, State.FAILED, UNKNOWN)
    link_model(public, REF, make_snapshot(public, FILES))
    assert gates.start("--once").wait() == 0


def test_several_models_open_together(public: PublicLayout, gates: Gates) -> None:
    """With `--models` the gate opens when the last one is there, and holds the lease of each."""
    first, second = ModelRef("base", "v3"), ModelRef("adapter", "v7")
    digests = [make_snapshot(public, FILES), make_snapshot(public, {"adapter.bin": b"a"})]
    link_model(public, first, digests[0])
    gate = gates.start_bare("--models", "big=base@v3,adapter@v7")
    gate.wait_said("adapter@v7: waiting")
    assert "open after" not in gate.said()
    link_model(public, second, digests[1])
    gate.wait_said("open after")
    assert all(lease.is_held(public.snapshot(digest).lease) for digest in digests)


def test_each_of_several_models_may_be_pinned(public: PublicLayout, gates: Gates) -> None:
    """`--digest` pins by alias or reference; the wrong one is refused with 65, naming its model."""
    digest = make_snapshot(public, FILES)
    link_model(public, ModelRef("base", "v3"), digest)
    link_model(public, ModelRef("adapter", "v7"), digest)
    models = ("--models", "big=base@v3,adapter@v7", "--once", "--digest")
    assert gates.start_bare(*models, f"big={digest},adapter@v7={digest}").wait() == 0
    gate = gates.start_bare(*models, f"big={digest},adapter@v7={Digest.of(b'')}")
    assert gate.wait() == 65
    assert f"adapter@v7: the manifest digest: expected {Digest.of(b'')}" in gate.said()


def test_a_version_replaced_while_another_is_awaited_is_taken_anew(public: PublicLayout, gates: Gates) -> None:
    """What the gate holds when it opens is what the symlinks name then."""
    first, second = ModelRef("base", "v3"), ModelRef("adapter", "v7")
    old, new = make_snapshot(public, FILES), make_snapshot(public, {"other": b"o"})
    link_model(public, first, old)
    gate = gates.start_bare("--models", "base@v3,adapter@v7")
    gate.wait_said("base@v3: 3 files")
    link_model(public, first, new)
    gate.wait_said("base@v3: 1 file,")
    link_model(public, second, old)
    gate.wait_said("open after")
    assert lease.is_held(public.snapshot(new).lease)


def test_a_snapshot_under_eviction_is_awaited(public: PublicLayout, gates: Gates) -> None:
    """While an eviction holds the lease alone the gate waits, and it opens when the eviction gave up."""
    digest = make_snapshot(public, FILES)
    link_model(public, REF, digest)
    eviction = lease.take_exclusive(public.snapshot(digest).lease)
    assert eviction is not None
    with eviction:
        gate = gates.start("--once")
        gate.wait_said("its lease is not to be had")
    assert gate.wait() == 0


@pytest.mark.parametrize("target", ["/etc", "../../../outside", "../../snapshots/../../outside", "../../snapshots/x"])
def test_a_symlink_that_names_no_snapshot_is_refused(public: PublicLayout, gates: Gates, target: str) -> None:
    """A symlink out of the public folder, or to anything but a snapshot, is never followed: exit 1, naming both."""
    (public.path.parent / "outside").mkdir()
    link = public.model_link(REF)
    link.parent.mkdir()
    link.symlink_to(target)
    gate = gates.start("--once")
    assert gate.wait() == 1
    assert str(link) in gate.said() and target in gate.said()


def test_a_folder_in_place_of_the_symlink_is_refused(public: PublicLayout, gates: Gates) -> None:
    """Only the daemon's symlink counts: a plain folder under the version's name ends the gate with 1."""
    public.model_link(REF).mkdir(parents=True)
    assert gates.start("--once").wait() == 1


def test_a_symlink_in_place_of_a_snapshot_is_refused(public: PublicLayout, gates: Gates) -> None:
    """A snapshot that is itself a symlink is not looked into."""
    digest = make_snapshot(public, FILES)
    path = public.snapshot(digest).path
    moved = path.rename(public.path.parent / path.name)
    path.symlink_to(moved)
    link_model(public, REF, digest)
    assert gates.start("--once").wait() == 1


def test_without_watchdog_it_polls(public: PublicLayout, gates: Gates, tmp_path: Path) -> None:
    """A gate without the package watchdog says so and still opens."""
    (tmp_path / "watchdog.py").write_text("raise ImportError")
    gate = gates.start("--once", environment={"PYTHONPATH": str(tmp_path)})
    gate.wait_said("the package watchdog is missing; looking every 1 s")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_without_inotify_it_polls(public: PublicLayout, gates: Gates) -> None:
    """A gate whom the kernel gives no inotify says so and still opens."""
    limited = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'  # of a user namespace of its own
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c", limited, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs unshare and user namespaces")
    gate = gates.start("--once", through=inside)
    gate.wait_said("inotify: ")
    link_model(public, REF, make_snapshot(public, FILES))
    assert gate.wait() == 0


def test_it_idles_while_it_stays(public: PublicLayout, gates: Gates) -> None:
    """A gate that is open watches nothing any more: no inotify descriptor is left."""
    gate = gates.start()
    gate.wait_said("waiting")
    link_model(public, REF, make_snapshot(public, FILES))
    gate.wait_said("open after")
    folder = f"/proc/{gate.process.pid}/fd"
    wait_for(lambda: all("inotify" not in os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)), "no inotify")
