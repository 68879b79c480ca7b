"""Whole daemons with a Dragonfly: the origin sends a version about once, and everything is there without Dragonfly."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched
from tests.support.dragonfly import Cluster, serve_dfdaemon
from tests.support.origin import HostileOrigin

REF = ModelRef("m", "v1")
FILES = {"a.safetensors": bytes(range(256)) * 8192, "config.json": b"{}"}


def publish(origin: HostileOrigin) -> str:
    """Serve the version with its manifest."""
    entries = []
    for name, data in FILES.items():
        origin.put(f"/m/{name}", data)
        entries.append(FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)))
    origin.put(f"/m/{MANIFEST_NAME}", Manifest.build(entries).canonical())
    return origin.url("/m/")


def check(daemon: DaemonProcess) -> None:
    daemon.wait_ready(REF)
    found = daemon.files(REF)
    assert {name: found[name] for name in FILES} == FILES


def test_two_nodes_fetch_one_copy(tmp_path: Path) -> None:
    """Two nodes, each with its dfdaemon, have the version, of which the origin sent each file once; a third one whose
    dfdaemon is gone has it from the origin."""
    cluster = Cluster()
    with ExitStack() as stack:
        origin = stack.enter_context(HostileOrigin(host="127.0.0.1"))
        source = publish(origin)

        def make(number: int, url: str) -> DaemonProcess:
            folder = tmp_path / f"node{number}"
            folder.mkdir()
            daemon = stack.enter_context(daemon_process(folder, "--origin-proxy", f"dragonfly={url}"))
            daemon.write_catalog({"m": prefetched(source, "v1")})
            daemon.start()
            return daemon

        with serve_dfdaemon(cluster) as gone:
            nodes = [make(0, gone), make(1, stack.enter_context(serve_dfdaemon(cluster)))]
            for node in nodes:
                check(node)
                assert node.metric("holdfast_fetch_bytes_total", source="dragonfly") == sum(map(len, FILES.values()))
            assert sorted(cluster.fetched) == [f"{source}{name}" for name in sorted(FILES)]
        third = make(2, gone)
        check(third)
        assert third.metric("holdfast_fetch_bytes_total", source="http") == sum(map(len, FILES.values()))
        assert third.log().count("does not help") == 1
