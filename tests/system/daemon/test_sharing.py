"""What versions share: blobs, snapshots, downloads."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, model, prefetched, publish_files, write_files
from tests.support.fetching import Hold
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Both, Pause, Status

A1, B1 = ModelRef("a", "v1"), ModelRef("b", "v1")
SHARD = random.Random(1).randbytes(3_000_000)


def test_a_shared_shard_is_fetched_once(daemon: DaemonProcess, source: Path) -> None:
    """Two versions that list the same shard fetch it once and link one inode."""
    publish_files(source / "a", {"shard.bin": SHARD, "own.bin": b"a"})
    publish_files(source / "b", {"part/shard.bin": SHARD, "own.bin": b"b"})
    daemon.write_catalog({"a": prefetched(f"file://{source}/a"), "b": prefetched(f"file://{source}/b")})
    daemon.start("--max-bandwidth", "4MiB/s")
    daemon.wait_ready(A1, B1)
    assert daemon.metric("holdfast_fetch_bytes_total") == len(SHARD) + 2
    one, other = daemon.path(A1) / "shard.bin", daemon.path(B1) / "part" / "shard.bin"
    assert os.stat(one).st_ino == os.stat(other).st_ino
    assert daemon.metric("holdfast_store_bytes", state="committed") == len(SHARD) + 2


def test_the_same_content_under_two_names_is_one_snapshot(daemon: DaemonProcess, source: Path) -> None:
    """Two names of the same content point at one snapshot, also where no source promises any digest."""
    write_files(source / "a", {"shard.bin": SHARD})
    write_files(source / "b", {"shard.bin": SHARD})
    daemon.write_catalog({"a": prefetched(f"file://{source}/a"), "b": prefetched(f"file://{source}/b")})
    daemon.start()
    daemon.wait_ready(A1, B1)
    assert daemon.digest(A1) == daemon.digest(B1)
    assert len(list(daemon.layout.public.snapshots.iterdir())) == 1
    assert daemon.metric("holdfast_store_bytes", state="committed") == len(SHARD)


def test_pulls_of_one_version_are_one_download(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """However many pull a version at once, it is downloaded once; they count as one miss and the rest as joined."""
    origin.put("/shard.bin", SHARD, etag='"1"')
    origin.always("/shard.bin", hold := Hold())
    daemon.write_catalog({"a": model(origin.url("/shard.bin"))})
    daemon.start()
    with ThreadPoolExecutor(8) as people:
        answers = list(people.map(lambda _: daemon.pull("a@v1"), range(8)))
    assert set(answers) <= {"queued", "resolving", "fetching"}
    hold.let_go.set()
    daemon.wait_ready(A1)
    daemon.pull("a@v1")
    assert daemon.metric("holdfast_fetch_bytes_total") == len(SHARD)
    counted = {result: daemon.metric("holdfast_requests_total", result=result) for result in ("miss", "joined", "hit")}
    assert counted == {"miss": 1, "joined": 7, "hit": 1}


def test_a_download_outlives_the_version_that_began_it(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """A shard that two versions wait for arrives for the second, though the first, which began it, is called off."""
    let_go = threading.Event()
    for name, files in {"a": {"shard.bin": SHARD}, "b": {"shard.bin": SHARD, "own.bin": b"b"}}.items():
        both = origin.publish(f"/{name}/", files)
        origin.always(f"/{name}/shard.bin", Pause(1_000_000, let_go))
    daemon.write_catalog({"a": prefetched(origin.url("/a/")), "b": model(origin.url("/b/"))})
    daemon.start()
    daemon.wait_state(A1, "fetching")
    daemon.pull("b@v1")
    daemon.wait_state(B1, "fetching")
    daemon.write_catalog({"b": model(origin.url("/b/"))})
    threading.Timer(2.0, let_go.set).start()
    daemon.wait_state(A1, None)
    daemon.wait_ready(B1)
    assert daemon.digest(B1) == both.digest
    assert daemon.metric("holdfast_fetch_bytes_total") < 1.2 * len(SHARD)  # not from its beginning again


def test_versions_of_one_place_do_not_disturb_each_other(daemon: DaemonProcess, source: Path) -> None:
    """Many versions that come from the same files at the same time all arrive, without a single error on the way."""
    write_files(source, {"shard.bin": SHARD, "small.json": b"{}"})
    versions = [f"v{number}" for number in range(24)]
    daemon.write_catalog({"a": model(f"file://{source}", *versions)})
    daemon.start()
    for version in versions:
        daemon.pull(f"a@{version}")
    daemon.wait_ready(*(ModelRef("a", version) for version in versions))
    assert daemon.samples("holdfast_fetch_errors_total") == {}
    assert "WARNING" not in daemon.log()


def test_another_versions_source_fails_that_version_alone(daemon: DaemonProcess, source: Path) -> None:
    """A version that joined the fetch of a shard from a source that turns out not to have it takes its own source."""
    published = publish_files(source, {"shard.bin": SHARD})
    with HostileOrigin(host="127.0.0.1") as origin:
        for folder in ("bad", "good"):
            origin.put(f"/{folder}/holdfast.json", published.canonical())
            origin.put(f"/{folder}/shard.bin", SHARD)
        hold = Hold()
        origin.script("/bad/shard.bin", Both(hold, Status(404)))
        daemon.write_catalog({"a": prefetched(origin.url("/bad/")), "b": model(origin.url("/good/"))})
        daemon.start()
        assert hold.reached.wait(60)
        daemon.pull("b@v1")
        daemon.wait_state(B1, "fetching")
        daemon.wait(lambda: daemon.metric("holdfast_fetch_in_progress") == 1, "both wait for one fetch")
        hold.let_go.set()
        daemon.wait_ready(B1)
        assert daemon.wait_state(A1, "failed")["error"]["code"] == "not_found"
