"""Eviction by the daemon as a process: what goes, in which order, and what never does."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from cached.contract.snapshot import lease
from tests.support.daemon import REPOSITORY, DaemonProcess, daemon_process, prefetched, publish_files
from tests.support.http_server import serve_http
from tests.support.joined import Joined, Noted, joined, label, ref
from tests.support.mounts import mounted_image

MIB = 1024 * 1024
NAMES = "abcdefgh"
A, B, C, D, E = (ModelRef("m", name) for name in "abcde")
NO_SCRUB = ("--scrub-rate", "0")


pytestmark = pytest.mark.long


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with versions of 4 MiB each."""
    folder = tmp_path / "source"
    for name in NAMES:
        publish_files(folder / name, {"a.bin": random.Random(name).randbytes(4 * MIB)})
    return folder


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that may hold 10 MiB, and evicts only for space."""
    with daemon_process(tmp_path / "daemon", "--quota", "10MiB", *NO_SCRUB) as process:
        yield process


def _catalog(source: Path, names: str = NAMES, **more: object) -> dict[str, object]:
    return {"m": {"versions": {name: {"source": f"file://{source}/{name}"} for name in names}, **more}}


def _pull(daemon: DaemonProcess, names: str) -> None:
    for name in names:
        daemon.pull(f"m@{name}")
        daemon.wait_ready(ModelRef("m", name))


def _here(daemon: DaemonProcess) -> str:
    return "".join(name for name in NAMES if daemon.path(ModelRef("m", name)).exists())


def test_a_lease_that_ended_is_a_use(daemon: DaemonProcess, source: Path) -> None:
    """A version that was held, however shortly, is evicted after those that were used before, also after a kill."""
    daemon.write_catalog(_catalog(source))
    daemon.start()
    _pull(daemon, "ab")
    assert _order(daemon) == [A, B]
    held = lease.take_shared(daemon.path(A) / ".holdfast" / "lease")
    assert held is not None
    daemon.wait(lambda: _order(daemon) == [B], "the lease")
    held.close()
    daemon.wait(lambda: _order(daemon) == [B, A], "its end")
    daemon.wait(lambda: _use(daemon, B) and _order(daemon) == [A, B], "a use of a moment")
    daemon.kill()
    daemon.start()
    assert _order(daemon) == [A, B]


def _use(daemon: DaemonProcess, ref: ModelRef) -> bool:
    """Hold a version for less time than it takes to look at its lease."""
    short = lease.take_shared(daemon.path(ref) / ".holdfast" / "lease")
    if short is not None:  # else the daemon tries it now
        short.close()
    return True


def _order(daemon: DaemonProcess) -> list[ModelRef]:
    """What would be evicted, and in which order."""
    return [each.ref for each in daemon.control.gc(dry_run=True).versions]


def test_the_watermarks_of_a_full_file_system(tmp_path: Path, source: Path) -> None:
    """Without a quota the file system is the capacity: others that fill it beyond the high mark have versions evicted,
    the least recently used first, until it is below the low one, and no more; below the high mark nothing goes."""
    with mounted_image(tmp_path / "disk", "ext4", 64 * MIB) as disk:
        options = ("--high-watermark", "0.8", "--low-watermark", "0.6", "--scrub-rate", "0")
        with daemon_process(disk, *options) as daemon:
            daemon.write_catalog(_catalog(source))
            daemon.start()
            _pull(daemon, "abcdef")  # 24 MiB
            for at, name in enumerate("dbface", 1):
                snapshot = daemon.layout.public.snapshot(daemon.digest(ModelRef("m", name)))
                os.utime(snapshot.lease, (at, at))
                os.utime(daemon.path(ModelRef("m", name)), (at, at), follow_symlinks=False)
            assert daemon.stop() == 0
            daemon.start()
            found = os.statvfs(disk)
            capacity = found.f_blocks * found.f_frsize
            below = int(0.75 * capacity) - (capacity - found.f_bavail * found.f_frsize)
            foreign = disk / "foreign"
            foreign.write_bytes(bytes(below))
            _pull(daemon, "a")  # a plan, and nothing to do
            assert daemon.metric("holdfast_evictions_total") == 0
            with foreign.open("ab") as more:
                more.write(bytes(int(0.07 * capacity)))
            daemon.wait(lambda: daemon.metric("holdfast_evictions_total", reason="watermark") > 0, "an eviction")
            daemon.wait(lambda: _share(disk) <= 0.6, "the low mark")
            gone = [name for name in "dbface" if name not in _here(daemon)]
            assert gone == list("dbface")[: len(gone)], f"least recently used first; found {gone}"
            assert 0.6 - 4 * MIB / capacity - 0.02 < _share(disk), "no more than is needed"


def _share(disk: Path) -> float:
    found = os.statvfs(disk)
    return 1 - found.f_bavail / found.f_blocks


def test_the_last_use_outlives_the_daemon(daemon: DaemonProcess, source: Path) -> None:
    """A lease that was held in an earlier life counts as use in the next: what was used last stays."""
    daemon.write_catalog(_catalog(source))
    daemon.start()
    _pull(daemon, "ab")
    held = lease.take_shared(daemon.layout.public.snapshot(daemon.digest(A)).lease)
    assert held is not None
    with held:
        daemon.wait(lambda: _is_leased(daemon) and _used(daemon)["a"] > _used(daemon)["b"], "that it is seen")
    daemon.wait(lambda: not _is_leased(daemon), "that it ended")
    used = _used(daemon)
    daemon.kill()
    daemon.start()
    again = _used(daemon)
    assert again["a"] >= used["a"] > again["b"]
    _pull(daemon, "c")
    assert _here(daemon) == "ac"


def _is_leased(daemon: DaemonProcess) -> bool:
    return any(item["leased"] for item in daemon.document()["models"])


def _used(daemon: DaemonProcess) -> dict[str, str]:
    return {item["version"]: item["last_used"] for item in daemon.document()["models"]}


def test_pins_outlive_everything_but_unpin(daemon: DaemonProcess, source: Path) -> None:
    """`holdfast pin` and the catalog's `pin: true` keep a version, also after a restart; unpinned, it goes."""
    daemon.write_catalog(_catalog(source))
    daemon.start()
    _pull(daemon, "ab")
    _command(daemon, "pin", "m@a")
    daemon.kill()
    daemon.start()
    os.utime(daemon.layout.public.snapshot(daemon.digest(A)).lease, (1, 1))
    _pull(daemon, "c")
    assert _here(daemon) == "ac"
    _command(daemon, "pin", "m@c")
    daemon.pull("m@d")
    daemon.wait(lambda: daemon.error(D).get("code") == "no_space", "no_space")
    assert _here(daemon) == "ac"
    _command(daemon, "unpin", "m@a")
    daemon.wait_ready(D)
    assert _here(daemon) == "cd"


def test_what_fits_is_not_kept_waiting_by_what_does_not(daemon: DaemonProcess, source: Path) -> None:
    """While one version waits for space that cannot be made, another one that can have it gets it."""
    publish_files(source / "huge", {"a.bin": bytes(9 * MIB)})
    versions = {name: {"source": f"file://{source}/{name}"} for name in (*NAMES, "huge")}
    daemon.write_catalog({"m": {"versions": versions}})
    daemon.start()
    _pull(daemon, "ab")
    daemon.control.pin(A)
    daemon.pull("m@huge")
    daemon.wait(lambda: daemon.error(ModelRef("m", "huge")).get("code") == "no_space", "no_space")
    _pull(daemon, "c")
    assert _here(daemon) == "ac"
    daemon.wait(lambda: daemon.error(ModelRef("m", "huge")).get("permanent") is False, "that the other one waits on")


def test_what_can_never_fit_with_what_it_shares(daemon: DaemonProcess, source: Path) -> None:
    """A version larger than the quota is refused for good though a part of it is here already, and evicts nothing."""
    shared = (source / "a" / "a.bin").read_bytes()
    publish_files(source / "huge", {"a.bin": shared, "b.bin": bytes(7 * MIB)})
    daemon.write_catalog({**_catalog(source), "huge": {"versions": {"v1": {"source": f"file://{source}/huge"}}}})
    daemon.start()
    _pull(daemon, "ab")
    daemon.pull("huge@v1")
    error = daemon.wait_state(ModelRef("huge", "v1"), "failed")["error"]
    assert (error["code"], error["permanent"]) == ("too_large", True)
    assert "11.0 MiB" in error["message"]
    assert "quota" in error["remedy"]
    assert _here(daemon) == "ab"
    assert daemon.metric("holdfast_evictions_total") == 0


def test_gc_does_what_the_dry_run_says(daemon: DaemonProcess, source: Path) -> None:
    """`holdfast gc --dry-run` names what goes, in order, how much that frees, and what keeps the others; `holdfast gc`
    does just that."""
    publish_files(source / "b", {"a.bin": (source / "a" / "a.bin").read_bytes(), "own.bin": bytes(MIB)})
    daemon.write_catalog(_catalog(source))
    daemon.start()
    _pull(daemon, "abc")
    daemon.control.pin(C)
    planned = _command(daemon, "gc", "--dry-run")
    (staying,) = json.loads(_command(daemon, "gc", "--dry-run", "--json"))["staying"]
    assert (staying["version"], staying["because"]) == ("c", ["pinned by holdfast pin"])
    assert _here(daemon) == "abc"
    done = _command(daemon, "gc")
    assert done == planned.replace("would be evicted", "evicted")
    assert "5.0 MiB in all" in done
    assert _here(daemon) == "c"
    assert "nothing to evict" in _command(daemon, "gc", "--dry-run")


def _command(daemon: DaemonProcess, *arguments: str) -> str:
    """Run a `holdfast` command on this node; returns its stdout."""
    command = [sys.executable, "-m", "cached.cli", *arguments, "--root", str(daemon.layout.root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- with pods -------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    """A daemon of a cluster's node that may hold 10 MiB, and evicts only for space."""
    with joined(tmp_path, "--quota", "10MiB", *NO_SCRUB) as made:
        yield made


def test_a_prefetched_version_yields_to_a_pod(node: Joined) -> None:
    """A pod that waits gets the space of a version that is only prefetched; when the pod is gone, the prefetch comes
    back, and until then nothing goes to and fro."""
    versions = {name: node.entry(name, 6 * MIB) for name in "ab"}
    node.daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": ["a"]}}})
    node.daemon.start()
    node.daemon.wait_ready(A)
    node.wait_told(node.pod("p", "b"), "WeightsReady")
    node.daemon.wait(lambda: node.daemon.error(A).get("code") == "no_space", "the prefetch waits")
    fetched = node.daemon.metric("holdfast_fetch_bytes_total")
    assert node.daemon.metric("holdfast_evictions_total") == 1
    assert fetched == 12 * MIB
    node.end("p")
    node.daemon.wait_ready(A)
    assert node.daemon.state(B) is None
    assert node.daemon.metric("holdfast_evictions_total") == 2


def test_a_prefetch_under_way_gives_way_to_a_pod(tmp_path: Path) -> None:
    """A prefetch that has reserved what a waiting pod needs is called off, and goes on when there is room again."""
    options = ("--quota", "10MiB", "--max-bandwidth", "2MiB/s", *NO_SCRUB)
    with joined(tmp_path, *options) as node:
        versions = {"a": node.entry("a", 8 * MIB), "b": node.entry("b", 3 * MIB)}
        node.daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": ["a"]}}})
        node.daemon.start()
        node.daemon.wait_state(A, "fetching")
        node.wait_told(node.pod("p", "b"), "WeightsReady")
        assert not node.daemon.path(A).exists()
        node.daemon.wait(lambda: node.daemon.error(A).get("code") == "no_space", "the prefetch waits")
        node.end("p")
        node.daemon.wait_ready(A)


class _SlowListing(SimpleHTTPRequestHandler):
    """A source that takes its time to say what it has."""

    def do_GET(self) -> None:
        if self.path.endswith("/holdfast.json"):
            time.sleep(1)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        return


def test_a_wrong_pin_does_not_have_a_prefetch_fetched_again_and_again(tmp_path: Path) -> None:
    """Above the high watermark, a version that is prefetched stays and is fetched once, though a pod pins it wrong."""
    options = ("--quota", "10MiB", "--high-watermark", "0.5", "--low-watermark", "0.4", "--scrub-rate", "0")
    with joined(tmp_path, *options) as node, serve_http(partial(_SlowListing, directory=str(node.source))) as host:
        versions = {"a": node.entry("a", 8 * MIB), "b": node.entry("b", 1 * MIB)}
        versions["a"]["source"] = f"http://{host}/a/"
        node.daemon.write_catalog({"m": {"versions": versions, "prefetch": {"versions": ["a"]}}})
        wrong = node.pod("wrong", "a", digest="sha256:" + "f" * 64)
        node.daemon.start()
        node.wait_told(wrong, "WeightsFailed")
        node.daemon.wait_ready(A)
        time.sleep(3)  # more than it takes to list the source once more
        node.wait_told(node.pod("good", "b"), "WeightsReady")
        assert node.daemon.state(A) == "ready"
        assert node.daemon.metric("holdfast_evictions_total") == 0
        assert node.daemon.metric("holdfast_fetch_bytes_total") == 9 * MIB


def test_one_pods_wrong_pin_is_told_to_that_pod_alone(node: Joined) -> None:
    """A pod that pins another digest than an unpinned version has, which another pod uses, hears that it fails; the
    version stays ready for the other one, who hears nothing of it."""
    node.catalog(a=node.entry("a"))
    node.daemon.start()
    good = node.pod("good", "a")
    node.wait_told(good, "WeightsReady")
    wrong = node.pod("wrong", "a", digest="sha256:" + "f" * 64)
    said = node.wait_told(wrong, "WeightsFailed")
    assert "f" * 64 in said
    assert str(node.daemon.digest(A)) in said
    node.daemon.wait_ready(A)  # the Event does not wait for the status file
    late = node.pod("late", "a")
    node.wait_told(late, "WeightsReady")
    assert "WeightsFailed" not in node.reasons(good) + node.reasons(late)
    assert node.reasons(wrong) == ["WeightsFailed"]
    assert node.daemon.metric("holdfast_model_pinned") == 0


def test_whoever_pins_right_makes_it_pinned(node: Joined) -> None:
    """`holdfast_model_pinned` is 1 while the catalog or a pod promises the digest that is here, and 0 again after."""
    digest = node.publish("a").digest
    node.daemon.write_catalog({"m": prefetched(f"file://{node.source}/a", "a", digest=digest)})
    node.daemon.start()
    node.daemon.wait_ready(A)
    assert node.daemon.metric("holdfast_model_pinned") == 1
    node.daemon.write_catalog({"m": prefetched(f"file://{node.source}/a", "a")})
    node.daemon.wait(lambda: node.daemon.metric("holdfast_model_pinned") == 0, "no promise")
    node.daemon.wait(lambda: (node.daemon.status(A) or {})["pinned"] is False, "a status that says so")
    node.pod("p", "a", digest=str(digest))
    node.daemon.wait(lambda: node.daemon.metric("holdfast_model_pinned") == 1, "a pod's promise")
    node.end("p")
    node.daemon.wait(lambda: node.daemon.metric("holdfast_model_pinned") == 0, "its end")


def test_an_api_that_says_nothing_delays_an_eviction_by_seconds(node: Joined) -> None:
    """Where the API accepts the withdrawal of a label and never answers, the version stays for five seconds and goes
    then; its label goes as soon as the API answers again."""
    node.catalog(a=node.entry("a", 6 * MIB), b=node.entry("b", 6 * MIB))
    daemon = node.daemon
    daemon.start()
    daemon.pull("m@a")
    daemon.wait_ready(A)
    name = label(daemon.digest(A))
    daemon.wait(lambda: name in node.labels(), "the label")
    node.api.asked = noted = Noted(daemon.path(A))
    node.api.hang("PATCH", "/api/v1/nodes/node1")
    daemon.pull("m@b")
    daemon.wait(lambda: bool(noted.labelling(name, None)), "the withdrawal")
    assert daemon.path(A).exists()
    daemon.wait_state(ref("a"), "evicting")
    daemon.wait_ready(B)
    assert not daemon.path(A).exists()
    assert noted.labelling(name, None)[0] is True
    assert "the API does not answer" in daemon.log()
    node.api.heal()
    node.api.drop_hanging()
    daemon.wait(lambda: name not in node.labels(), "the label's end")
