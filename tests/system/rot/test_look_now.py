"""A gate that refuses what it finds has the daemon look at it now, and opens once that is put right. Nothing scrubs."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from cached.contract.snapshot.doubt import Doubt
from tests.support.bitrot import flip
from tests.support.daemon import DaemonProcess, daemon_process, prefetched, publish_files
from tests.support.gates import Gates

V1 = ModelRef("tiny", "v1")
FILES = {"a.bin": random.Random(41).randbytes(1_000_001), "b/c.bin": random.Random(42).randbytes(70_000)}
GATE = ("--model", "tiny", "--version", "v1", "--once")


@contextlib.contextmanager
def _daemon(folder: Path) -> Iterator[DaemonProcess]:
    """A daemon that never scrubs, with one version."""
    with daemon_process(folder / "daemon", "--scrub-rate", "0") as process:
        publish_files(folder / "source", FILES)
        process.write_catalog({"tiny": prefetched(f"file://{folder}/source")})
        process.start()
        process.wait_ready(V1)
        yield process


@pytest.fixture
def daemon(tmp_path: Path, source: Path) -> Iterator[DaemonProcess]:
    """A daemon of the test's own; `source` is where its version comes from."""
    assert source == tmp_path / "source"
    with _daemon(tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that lives through one fault after the other."""
    with _daemon(tmp_path_factory.mktemp("lasting")) as process:
        yield process


def _touch(daemon: DaemonProcess) -> None:
    os.utime(daemon.path(V1) / "a.bin", ns=(1, 1))


def _touch_all(daemon: DaemonProcess) -> None:
    for path in FILES:
        os.utime(daemon.path(V1) / path, ns=(1, 1))


def _copy_back(daemon: DaemonProcess) -> None:
    path = daemon.path(V1) / "a.bin"
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def _restore_from_backup(daemon: DaemonProcess) -> None:
    """All files of the snapshot and its records are copies."""
    snapshot = daemon.path(V1).resolve()
    shutil.copytree(snapshot, snapshot.with_name("backup"), symlinks=True)
    shutil.rmtree(snapshot)
    snapshot.with_name("backup").rename(snapshot)


def _flip(daemon: DaemonProcess) -> None:
    flip(daemon.path(V1) / "a.bin")


def _flip_two(daemon: DaemonProcess) -> None:
    for path in FILES:
        flip(daemon.path(V1) / path)


def _overwrite(daemon: DaemonProcess) -> None:
    flip(daemon.path(V1) / "a.bin")
    os.utime(daemon.path(V1) / "a.bin")


def _delete(daemon: DaemonProcess) -> None:
    (daemon.path(V1) / "a.bin").unlink()


def _cut(daemon: DaemonProcess) -> None:
    path = daemon.path(V1) / "a.bin"
    path.chmod(0o644)
    os.truncate(path, 5)


def _link_file(daemon: DaemonProcess) -> None:
    path = daemon.path(V1) / "a.bin"
    path.symlink_to(path.rename(path.with_name("moved")))


def _add_file(daemon: DaemonProcess) -> None:
    (daemon.path(V1) / "model.safetensors").write_bytes(b"of another model")


def _add_below(daemon: DaemonProcess) -> None:
    (daemon.path(V1) / "b" / ("n" * 255)).write_bytes(b"{}")


def _add_folder(daemon: DaemonProcess) -> None:
    (daemon.path(V1) / "1_Pooling").mkdir()
    (daemon.path(V1) / "1_Pooling" / "config.json").write_bytes(b"{}")


def _add_link(daemon: DaemonProcess) -> None:
    (daemon.path(V1) / "b" / "adapter_config.json").symlink_to("../a.bin")


def _add_oddly_named(daemon: DaemonProcess) -> None:
    (Path(os.fsdecode(bytes(daemon.path(V1)) + b"/\xff\n.json"))).write_bytes(b"{}")


def _link_inner_folder(daemon: DaemonProcess) -> None:
    folder = daemon.path(V1).resolve() / "b"
    folder.symlink_to(folder.rename(daemon.layout.root / "elsewhere-again"))


def _spoil_manifest(daemon: DaemonProcess) -> None:
    flip(daemon.path(V1) / ".holdfast" / "manifest.json", 5)


def _delete_manifest(daemon: DaemonProcess) -> None:
    (daemon.path(V1) / ".holdfast" / "manifest.json").unlink()


def _spoil_record(daemon: DaemonProcess) -> None:
    record = daemon.path(V1) / ".holdfast" / "verified.json"
    record.chmod(0o644)
    record.write_text("{")


def _delete_record(daemon: DaemonProcess) -> None:
    (daemon.path(V1) / ".holdfast" / "verified.json").unlink()


def _delete_record_and_flip(daemon: DaemonProcess) -> None:
    _delete_record(daemon)
    _flip(daemon)


def _delete_records_and_flip(daemon: DaemonProcess) -> None:
    shutil.rmtree(daemon.path(V1) / ".holdfast")
    _flip(daemon)


def _delete_snapshot_and_flip(daemon: DaemonProcess) -> None:
    blobs = [blob for blob in daemon.layout.blobs.glob("*/*") if blob.stat().st_size == len(FILES["a.bin"])]
    shutil.rmtree(daemon.path(V1).resolve())
    flip(blobs[0])


def _link_elsewhere(daemon: DaemonProcess) -> None:
    link = daemon.path(V1)
    link.unlink()
    link.symlink_to("../../nowhere")


def _link_absolutely(daemon: DaemonProcess) -> None:
    link = daemon.path(V1)
    snapshot = link.resolve()
    link.unlink()
    link.symlink_to(snapshot)


def _folder_in_place(daemon: DaemonProcess) -> None:
    link = daemon.path(V1)
    link.unlink()
    (link / "some").mkdir(parents=True)


def _link_snapshot(daemon: DaemonProcess) -> None:
    snapshot = daemon.path(V1).resolve()
    snapshot.symlink_to(snapshot.rename(daemon.layout.root / "elsewhere"))


def _link_folder(daemon: DaemonProcess) -> None:
    folder = daemon.path(V1).parent
    folder.symlink_to(folder.rename(daemon.layout.root / "elsewhere-too"))


def _file_in_place(daemon: DaemonProcess) -> None:
    daemon.path(V1).unlink()
    daemon.path(V1).write_text("no symlink")


BY_RECORD = [
    *(_touch, _touch_all, _copy_back, _restore_from_backup, _overwrite, _delete, _cut, _link_file),
    *(_add_file, _add_below, _add_folder, _add_link, _add_oddly_named, _link_inner_folder),
    *(_spoil_manifest, _delete_manifest, _spoil_record, _delete_record),
    *(_link_elsewhere, _link_absolutely, _folder_in_place, _file_in_place, _link_snapshot, _link_folder),
]


@pytest.mark.parametrize("fault", BY_RECORD)
def test_what_a_gate_refuses_is_put_right_at_once(
    lasting: DaemonProcess, tmp_path: Path, fault: Callable[[DaemonProcess], None]
) -> None:
    """Whatever a gate in mode `record` refuses, of files, records, manifest or name: the daemon looks at it at once,
    the same gate opens with the right bytes, and the next one opens without asking the daemon."""
    gates = Gates(lasting.layout.public, tmp_path)
    fault(lasting)
    gate = gates.start_bare(*GATE)
    assert gate.wait() == 0, gate.said() + lasting.log()
    assert lasting.files(V1) == FILES
    again = gates.start_bare(*GATE)
    assert again.wait() == 0
    assert "asked to look" not in again.said()
    lasting.wait_state(V1, "ready")
    gates.end()


@pytest.mark.parametrize(
    ("fault", "is_down"),
    [
        (_delete_record_and_flip, False),
        (_delete_record_and_flip, True),
        (_delete_records_and_flip, False),
        (_delete_records_and_flip, True),
        (_delete_snapshot_and_flip, False),
    ],
)
def test_wrong_bytes_without_their_record_do_not_open_a_gate(
    daemon: DaemonProcess, gates: Gates, fault: Callable[[DaemonProcess], None], is_down: bool
) -> None:
    """Where the record is gone nothing tells whether the bytes are those that were hashed: a gate in mode `record`
    opens on the right ones only, after the daemon hashed them."""
    if is_down:
        daemon.kill()
    fault(daemon)
    if is_down:
        daemon.start()
    daemon.wait(lambda: (daemon.path(V1) / ".holdfast" / "verified.json").exists(), "a record")
    gate = gates.start_bare(*GATE)
    assert gate.wait() == 0, gate.said() + daemon.log()
    assert daemon.files(V1) == FILES
    assert len(list(daemon.layout.quarantine.iterdir())) == 1


def test_a_part_that_was_put_back_is_not_waited_for(daemon: DaemonProcess, gates: Gates) -> None:
    """Where a file or the lease was deleted, and the record fits the rest, the snapshot keeps the times of its hashes:
    a gate opens without a hash of all of it."""
    before = (daemon.path(V1) / ".holdfast" / "verified.json").read_bytes()
    (daemon.path(V1) / ".holdfast" / "lease").unlink()
    daemon.wait(lambda: "is whole again" in daemon.log(), "the repair")
    gate = gates.start_bare(*GATE)
    assert gate.wait() == 0, gate.said() + daemon.log()
    assert "asked to look" not in gate.said()
    assert (daemon.path(V1) / ".holdfast" / "verified.json").read_bytes() == before


@pytest.mark.parametrize("fault", [_add_file, _add_below, _add_folder])
def test_a_gate_sees_each_time_that_what_was_added_is_gone(
    daemon: DaemonProcess, gates: Gates, fault: Callable[[DaemonProcess], None]
) -> None:
    """A gate that refused what was added opens once the daemon deleted it, also right after the bytes were found right
    and claims about them are not looked at for a while: the gate refuses before the daemon looks, each time."""
    for _ in range(2):
        os.kill(daemon.pid, signal.SIGSTOP)
        fault(daemon)
        gate = gates.start_bare(*GATE)
        gate.wait_said("is asked to look at it now")
        os.kill(daemon.pid, signal.SIGCONT)
        assert gate.wait() == 0, gate.said() + daemon.log()
        assert daemon.files(V1) == FILES


@pytest.mark.parametrize("fault", [_flip, _flip_two])
def test_wrong_bytes_under_a_right_record_are_put_right_at_once(
    daemon: DaemonProcess, gates: Gates, fault: Callable[[DaemonProcess], None]
) -> None:
    """What only a hash can find, a gate in mode `full` has the daemon find too: quarantined, fetched again, all of it
    at once; the same gate opens on what comes."""
    fault(daemon)
    gate = gates.start_bare(*GATE, "--verify", "full")
    assert gate.wait() == 0, gate.said() + daemon.log()
    assert daemon.files(V1) == FILES
    assert daemon.log().count("withdrawn") == 1
    assert len(list(daemon.layout.quarantine.iterdir())) == (1 if fault is _flip else 2)


def test_many_gates_cause_one_hash(daemon: DaemonProcess, gates: Gates) -> None:
    """Gates that doubt one snapshot at the same time share one check, and all of them open."""
    _touch(daemon)
    waiting = [gates.start_bare(*GATE) for _ in range(8)]
    assert [gate.wait() for gate in waiting] == [0] * 8
    assert daemon.log().count("hashing it again now") <= 2  # a gate may come between the hash and its record


def test_a_dead_daemon_is_not_waited_for(daemon: DaemonProcess, gates: Gates) -> None:
    """Without a daemon that beats the gate exits 65 within seconds, as ever, and says that the daemon is silent."""
    daemon.kill()
    _touch(daemon)
    gate = gates.start_bare(*GATE)
    assert gate.wait() == 65
    assert "a.bin: mtime" in gate.said() and "is silent" in gate.said()


def test_without_its_source_wrong_bytes_are_withdrawn_and_waited_for(
    daemon: DaemonProcess, source: Path, gates: Gates
) -> None:
    """Where what is wrong cannot be fetched again yet, it has no name, and the gate that found it waits, saying why;
    it opens once the source is back."""
    away = source.rename(source.with_name("away"))
    _flip(daemon)
    gate = gates.start_bare(*GATE, "--verify", "full", "--wait-for-correction")
    daemon.wait(lambda: not os.path.lexists(daemon.path(V1)), "the withdrawal")
    gate.wait_said(daemon.wait_error(V1)["message"])
    away.rename(source)
    daemon.pull("tiny@v1")
    assert gate.wait() == 0, gate.said()
    assert daemon.files(V1) == FILES


def test_a_doubt_of_right_bytes_is_hashed_once(daemon: DaemonProcess) -> None:
    """A reader that doubts for ever what is right, as a hostile pod may, has it hashed once and then not for a minute;
    other doubts are answered in that time."""
    snapshot = daemon.layout.public.snapshot(daemon.digest(V1))
    for _ in range(3):
        doubt = Doubt(daemon.layout.public, snapshot)
        daemon.wait(lambda: "are not looked at for 60 s" in daemon.log(), "the limit")
        doubt.close()
    hostile = Doubt(daemon.layout.public, snapshot)  # on the record as it is now
    assert daemon.log().count("hashing it again now") == 1
    _touch(daemon)  # what every reader can see is no claim
    daemon.wait(lambda: daemon.log().count("hashing it again now") == 2, "the second hash")
    hostile.close()


@pytest.mark.parametrize("fault", [_spoil_manifest, _delete_manifest, _spoil_record, _delete, _copy_back])
def test_what_has_a_copy_here_needs_no_source(
    daemon: DaemonProcess, source: Path, gates: Gates, fault: Callable[[DaemonProcess], None]
) -> None:
    """What the node can put back itself opens the gate with the source away: nothing is asked of it."""
    source.rename(source.with_name("away"))
    fault(daemon)
    gate = gates.start_bare(*GATE)
    assert gate.wait() == 0, gate.said() + daemon.log()
    assert daemon.files(V1) == FILES
    assert "withdrawn" not in daemon.log()
