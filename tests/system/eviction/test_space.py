"""Space: the quota, who goes to make room and who never does, and an account that agrees with the disk."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from tests.support.daemon import DaemonProcess, daemon_process, model, prefetched, publish_files, write_files

MIB = 1024 * 1024
QUOTA = 10 * MIB
A, B, C, D = (ModelRef("m", name) for name in "abcd")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that may hold 10 MiB, and evicts only for space."""
    options = ("--quota", "10MiB", "--scrub-rate", "0")
    with daemon_process(tmp_path, *options) as process:
        yield process


def _place(source: Path, name: str, mebibytes: int) -> dict[str, object]:
    """A version of that size at its own place; returns its catalog entry."""
    publish_files(source / name, {"a.bin": random.Random(name).randbytes(mebibytes * MIB)})
    return {"source": f"file://{source}/{name}"}


def _blob_bytes(daemon: DaemonProcess) -> int:
    held = 0
    for path in daemon.layout.blobs.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # evicted since
            held += path.stat().st_size
    return held


def _agrees(daemon: DaemonProcess) -> bool:
    """Whether the ledger says what the disk says, and nothing is set aside."""
    disk = daemon.document()["disk"]
    held = _blob_bytes(daemon)
    return (
        disk["used"] == held
        and disk["reserved"] == 0
        and daemon.metric("holdfast_store_bytes", state="committed") == held
        and daemon.metric("holdfast_store_bytes", state="dying") == 0
        and disk["free"] == disk["capacity"] - held
        and daemon.metric("holdfast_store_capacity_bytes") == QUOTA
    )


def _empty(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"")


def test_the_account_follows_what_people_do_to_the_files(daemon: DaemonProcess, source: Path) -> None:
    """Whatever a person deletes, cuts or adds to in the store while the daemon runs is in its account soon after,
    without a restart."""
    daemon.write_catalog({"m": {"versions": {name: _place(source, name, 2) for name in "abc"}}})
    daemon.start()
    for name in "abc":
        daemon.pull(f"m@{name}")
        daemon.wait_ready(ModelRef("m", name))
    blobs = [(daemon.path(ref) / "a.bin").stat().st_ino for ref in (A, B, C)]
    cut, grown, gone = (
        next(path for path in daemon.layout.blobs.glob("*/*") if path.stat().st_ino == inode) for inode in blobs
    )
    _empty(cut)
    with grown.open("ab") as file:
        file.truncate(3 * MIB)
    shutil.rmtree(daemon.path(C).resolve())
    gone.unlink()
    shutil.rmtree(source)
    (daemon.layout.quarantine / ("f" * 64)).write_bytes(bytes(MIB))
    partial = daemon.layout.ingest / "partial-of-others"
    partial.mkdir()
    (partial / "data").write_bytes(bytes(MIB))
    dying = 2 * MIB
    daemon.wait(lambda: _accounts(daemon) == (3 * MIB, dying), f"the account that the disk gives: {_accounts(daemon)}")
    shutil.rmtree(partial)
    (daemon.layout.quarantine / ("f" * 64)).unlink()
    daemon.wait(lambda: _accounts(daemon) == (3 * MIB, 0), f"the account that the disk gives: {_accounts(daemon)}")


def _accounts(daemon: DaemonProcess) -> tuple[float, float]:
    """What the daemon says is committed and dying."""
    committed, dying = (daemon.metric("holdfast_store_bytes", state=state) for state in ("committed", "dying"))
    return committed, dying


def test_what_can_never_fit_is_refused(daemon: DaemonProcess, source: Path) -> None:
    """A version larger than the quota fails for good, with both sizes; nothing of it is fetched."""
    daemon.write_catalog({"m": {"versions": {"a": _place(source, "a", 11)}}})
    daemon.start()
    daemon.pull("m@a")
    error = daemon.wait_state(A, "failed")["error"]
    assert (error["code"], error["permanent"]) == ("too_large", True)
    assert "11.0 MiB" in error["message"]
    assert "10.0 MiB" in error["message"]
    assert daemon.metric("holdfast_fetch_bytes_total") == 0


def test_the_least_recently_used_goes_first(daemon: DaemonProcess, source: Path) -> None:
    """Room is made by evicting what was used longest ago, and no more than is needed, also later on."""
    daemon.write_catalog({"m": {"versions": {name: _place(source, name, 4) for name in "abcd"}}})
    daemon.start()
    for name in "ab":
        daemon.pull(f"m@{name}")
        daemon.wait_ready(ModelRef("m", name))
    os.utime(daemon.layout.public.snapshot(daemon.digest(A)).lease, (1, 1))
    daemon.pull("m@c")
    daemon.wait_ready(C)
    assert daemon.state(A) is None
    assert not daemon.path(A).exists()
    assert daemon.state(B) == "ready"
    assert daemon.metric("holdfast_evictions_total") == 1
    daemon.wait(lambda: _agrees(daemon), "an account that agrees with the disk")


def test_room_is_made_once(daemon: DaemonProcess, source: Path) -> None:
    """While a version is fetched into the room that was made for it, nothing more is evicted for it."""
    daemon.write_catalog({"m": {"versions": {name: _place(source, name, 4) for name in "abcd"}}})
    daemon.start()
    for name in "ab":
        daemon.pull(f"m@{name}")
        daemon.wait_ready(ModelRef("m", name))
    assert daemon.stop() == 0
    daemon.start("--max-bandwidth", "1MiB/s")
    daemon.pull("m@c")
    daemon.wait_state(C, "fetching")
    daemon.write_catalog({"m": {"versions": {name: _place(source, name, 4) for name in "abc"}}})
    daemon.wait_ready(C)
    assert daemon.metric("holdfast_evictions_total") == 1


def test_what_is_kept_or_wanted_or_in_use_stays(daemon: DaemonProcess, source: Path) -> None:
    """A pin, the catalog's `pin: true`, the demand and a lease each keep a version from eviction; who needs the
    space waits, says so, and goes on as soon as a lease is given back."""
    daemon.write_catalog(
        {
            "kept": {"versions": {"v1": _place(source, "kept", 2)}, "pin": True},
            "m": {"versions": {name: _place(source, name, 2) for name in "abcd"}, "prefetch": {"versions": ["b"]}},
        }
    )
    daemon.start()
    for text in ("kept@v1", "m@a", "m@c"):
        daemon.pull(text)
    daemon.wait_ready(ModelRef("kept", "v1"), A, B, C)
    daemon.control.pin(A)
    leased = lease.take_shared(daemon.path(C) / ".holdfast" / "lease")
    assert leased is not None
    with leased:
        write_files(source / "d", {"a.bin": bytes(4 * MIB)})
        (source / "d" / "holdfast.json").unlink()
        daemon.pull("m@d")
        assert daemon.wait_error(D, "no_space")["permanent"] is False
        assert daemon.state(D) in ("queued", "resolving")
        assert daemon.control.gc(dry_run=True).versions == ()
        daemon.wait(
            lambda: any(item["leased"] for item in daemon.document()["models"] if item["version"] == "c"), "leased"
        )
        assert all(daemon.state(ref) == "ready" for ref in (ModelRef("kept", "v1"), A, B, C))
    daemon.wait_ready(D)
    assert daemon.state(C) is None
    assert all(daemon.state(ref) == "ready" for ref in (ModelRef("kept", "v1"), A, B))
    daemon.wait(lambda: _agrees(daemon), "an account that agrees with the disk")


def test_leftovers_of_a_fetch_make_room(daemon: DaemonProcess, source: Path) -> None:
    """What a version that was called off left behind, whole blobs and half ones, gives way to one that is wanted."""
    publish_files(source / "a", {"1.bin": bytes(3 * MIB), "2.bin": random.Random(1).randbytes(6 * MIB)})
    daemon.write_catalog({"m": {"versions": {"a": {"source": f"file://{source}/a"}}, "prefetch": {"versions": ["a"]}}})
    daemon.start("--max-bandwidth", "3MiB/s", "--connections", "1")
    daemon.wait(lambda: _blob_bytes(daemon) > 0, "one whole blob")
    daemon.write_catalog({"m": {"versions": {"b": _place(source, "b", 8)}, "prefetch": {"versions": ["b"]}}})
    daemon.wait_ready(B)
    daemon.wait(lambda: _agrees(daemon), "an account that agrees with the disk")


def test_leftovers_of_an_earlier_life_make_room(daemon: DaemonProcess, source: Path) -> None:
    """The same, when the daemon was killed in between."""
    publish_files(source / "a", {"1.bin": bytes(3 * MIB), "2.bin": random.Random(1).randbytes(6 * MIB)})
    daemon.write_catalog({"m": {"versions": {"a": {"source": f"file://{source}/a"}}, "prefetch": {"versions": ["a"]}}})
    daemon.start("--max-bandwidth", "3MiB/s", "--connections", "1")
    daemon.wait(lambda: _blob_bytes(daemon) > 0, "one whole blob")
    daemon.kill()
    daemon.layout.public.model_status(A).unlink()
    daemon.write_catalog({"m": {"versions": {"b": _place(source, "b", 8)}, "prefetch": {"versions": ["b"]}}})
    daemon.start()
    daemon.wait_ready(B)
    daemon.wait(lambda: _agrees(daemon), "an account that agrees with the disk")


def test_shared_content_goes_with_its_last_name(daemon: DaemonProcess, source: Path) -> None:
    """Evicting one of two names of the same content leaves the other, whole."""
    entry = _place(source, "a", 4)
    other = {"versions": {"v1": entry}, "prefetch": {"versions": ["v1"]}}
    daemon.write_catalog({"m": {"versions": {"a": entry}}, "other": other})
    daemon.start()
    daemon.pull("m@a")
    daemon.wait_ready(A, ModelRef("other", "v1"))
    assert set(daemon.samples("holdfast_model_shared_bytes").values()) == {4 * MIB}
    assert set(daemon.samples("holdfast_model_exclusive_bytes").values()) == {0}
    report = daemon.control.gc(dry_run=False)
    assert [(item.ref, item.freed_bytes) for item in report.versions] == [(A, 0)]
    assert daemon.metric("holdfast_model_exclusive_bytes", model="other") == 4 * MIB
    assert daemon.files(ModelRef("other", "v1"))["a.bin"] == (source / "a" / "a.bin").read_bytes()
    daemon.write_catalog({})
    daemon.wait(lambda: bool(daemon.control.gc(dry_run=True).versions), "something to evict")
    report = daemon.control.gc(dry_run=False)
    assert [(item.ref.name, item.freed_bytes) for item in report.versions] == [("other", 4 * MIB)]
    assert _blob_bytes(daemon) == 0
    daemon.wait(lambda: _agrees(daemon), "an account that agrees with the disk")


def test_gc_says_what_it_would_do_and_then_does_it(daemon: DaemonProcess, source: Path) -> None:
    """`gc` with dry_run removes nothing; without, it removes exactly that, right after the pulls were met."""
    daemon.write_catalog({"m": {"versions": {name: _place(source, name, 2) for name in "abc"}}})
    daemon.start()
    for name in "abc":
        daemon.pull(f"m@{name}")
        daemon.wait_ready(ModelRef("m", name))
    daemon.control.pin(B)
    planned = daemon.control.gc(dry_run=True)
    assert {item.ref for item in planned.versions} == {A, C}
    assert planned.freed_bytes == 4 * MIB
    assert all(daemon.path(ref).exists() for ref in (A, B, C))
    done = daemon.control.gc(dry_run=False)
    assert (done.versions, done.freed_bytes) == (planned.versions, planned.freed_bytes)
    assert not daemon.path(A).exists()
    assert not daemon.path(C).exists()
    assert daemon.path(B).exists()
    assert daemon.metric("holdfast_evictions_total", reason="gc") == 2
    assert daemon.samples("holdfast_model_ready").keys() >= {frozenset({("model", "m"), ("version", "b")})}
    daemon.control.unpin(B)
    assert {item.ref for item in daemon.control.gc(dry_run=False).versions} == {B}
    daemon.wait(lambda: _agrees(daemon), "an account that agrees with the disk")


def test_an_old_digest_may_go_while_its_successor_is_fetched(daemon: DaemonProcess, source: Path) -> None:
    """A name whose pin changed is fetched anew although its old content must be evicted to make room for that."""
    old = publish_files(source / "old", {"a.bin": random.Random(1).randbytes(6 * MIB)})
    new = publish_files(source / "new", {"a.bin": random.Random(2).randbytes(6 * MIB)})
    daemon.write_catalog({"m": prefetched(f"file://{source}/old", "a", digest=old.digest)})
    daemon.start("--max-bandwidth", "4MiB/s")
    daemon.wait_ready(A)
    daemon.write_catalog({"m": prefetched(f"file://{source}/new", "a", digest=new.digest)})
    daemon.wait(lambda: (daemon.status(A) or {}).get("digest") == str(new.digest), "the new pin")
    daemon.wait_state(A, "ready")
    assert daemon.digest(A) == new.digest
    assert daemon.files(A)["a.bin"] == (source / "new" / "a.bin").read_bytes()
    daemon.wait(lambda: _agrees(daemon), "an account that agrees with the disk")


def test_watermarks_evict_on_their_own(tmp_path: Path, source: Path) -> None:
    """Above the high watermark the least recently used go until the low one is reached, without a request."""
    options = ("--quota", "10MiB", "--high-watermark", "0.7", "--low-watermark", "0.5", "--scrub-rate", "0")
    with daemon_process(tmp_path / "daemon", *options) as daemon:
        daemon.write_catalog({"m": {"versions": {name: _place(source, name, 2) for name in "abcd"}}})
        daemon.start()
        for name in "abcd":
            daemon.pull(f"m@{name}")
            daemon.wait(daemon.path(ModelRef("m", name)).exists, name)
        daemon.wait(lambda: daemon.metric("holdfast_evictions_total", reason="watermark") == 2, "the low watermark")
        assert daemon.document()["disk"]["used"] <= 5 * MIB
        assert daemon.path(D).exists()


def test_a_dry_run_is_true_or_false(daemon: DaemonProcess, source: Path) -> None:
    """A `dry_run` that is neither is refused: taken for false it would delete."""
    daemon.write_catalog({"m": model(f"file://{source}", "a")})
    write_files(source, {"a.bin": b"a"})
    daemon.start()
    daemon.pull("m@a")
    daemon.wait_ready(A)
    status, body = daemon.command("/v1/gc", {"dry_run": "yes"})
    assert status == 400
    assert "dry_run" in body["error"]["message"]
    assert daemon.path(A).exists()
