"""Whole daemons and a version that is pinned: what other nodes have of it is not asked of its origin."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cached.contract.digest import Digest
from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.peers.members import trackers_of
from cached.peers.messages import encode_holders
from tests.support.daemon import REPOSITORY, DaemonProcess, daemon_process, prefetched
from tests.support.origin import HostileOrigin
from tests.support.ports import free_ports

MIB = 1024 * 1024
REF = ModelRef("m", "v1")
KEY = "0" * 64
_PATIENT = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY / "tests" / "support" / "patient"), str(REPOSITORY)))}


@cache
def version_files() -> dict[str, bytes]:
    """The files of the version, made when the first test asks for them."""
    return {
        "a.safetensors": random.Random(1).randbytes(70 * MIB),
        "config.json": b"{}",
        "empty.txt": b"",
        "tokenizer.json": random.Random(2).randbytes(300_000),
    }


@cache
def manifest() -> Manifest:
    """The manifest of these files."""
    files = version_files().items()
    return Manifest.build(FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in files)


@pytest.fixture
def origin() -> Iterator[HostileOrigin]:
    """The origin of the version, with its manifest."""
    with HostileOrigin(host="127.0.0.1") as served:
        for name, data in version_files().items():
            served.put(f"/m/{name}", data)
        served.put(f"/m/{MANIFEST_NAME}", manifest().canonical())
        yield served


class Pool:
    """Daemons of one pool, each with its root and this environment."""

    def __init__(self, stack: ExitStack, folder: Path, count: int, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._stack = stack
        self._folder = folder
        self.ports = free_ports(count)
        self.strangers: list[str] = []

    def make(self, number: int, source: str, pin: Digest | None) -> DaemonProcess:
        """Make a daemon that wants the version, pinned or not."""
        folder = self._folder / f"node{number}"
        folder.mkdir()
        (folder / "key").write_text(KEY)
        peers = ",".join([*(f"127.0.0.1:{port}" for port in self.ports), *self.strangers])
        options = (
            *("--peers", peers, "--peer-listen", f"127.0.0.1:{self.ports[number]}"),
            *("--peer-key-file", str(folder / "key")),
        )
        daemon = self._stack.enter_context(daemon_process(folder, *options, environment=self._environment))
        daemon.write_catalog({"m": prefetched(source, "v1", digest=pin)})
        return daemon


def record_of(daemon: DaemonProcess) -> dict[str, Any]:
    """The fetch record of the version."""
    document: dict[str, Any] = json.loads(daemon.layout.fetch_record(REF).read_bytes())
    return document


def check(daemon: DaemonProcess) -> None:
    """Wait until the version is there, and compare every byte."""
    daemon.wait_ready(REF)
    assert daemon.files(REF) == version_files()
    assert daemon.digest(REF) == manifest().digest


def test_a_pinned_version_needs_no_origin(tmp_path: Path, origin: HostileOrigin) -> None:
    """A node that joins a pool that has its pinned version sends its origin no request, not even for small files; it
    still says the origin is its source. Killed in the middle and started again while the origin is gone, it goes on
    from its neighbour."""
    with ExitStack() as stack:
        pool = Pool(stack, tmp_path, 2, _PATIENT)
        source = origin.url("/m/")
        first = pool.make(0, source, None)
        first.start()
        check(first)
        asked = len(origin.requests)
        second = pool.make(1, source, manifest().digest)
        second.start()
        second.wait(lambda: second.metric("holdfast_fetch_bytes_total", source="peer") > 0, "bytes of the neighbour")
        second.kill()
        assert len(origin.requests) == asked
        origin.close()
        second.start()
        check(second)
        assert second.metric("holdfast_fetch_bytes_total") == second.metric("holdfast_fetch_bytes_total", source="peer")
        assert second.metric("holdfast_fetch_errors_total") == 0
        status = second.status(REF) or {}
        assert (status["source"], status["trust"], status["error"]) == (source, None, None)  # it was not asked
        assert (record_of(second)["source"], record_of(second)["manifest_from"]) == (source, "peers")


def open_first_tracker(stack: ExitStack, ports: list[int]) -> HostileOrigin:
    """A scripted node that is asked before these others who has the version."""
    others = [f"127.0.0.1:{port}" for port in ports]
    while True:
        node = stack.enter_context(HostileOrigin(host="127.0.0.1"))
        address = node.url("").removeprefix("http://")
        if trackers_of(manifest().digest.hex, [*others, address])[0] == address:
            return node


def test_a_lying_neighbour_is_left(tmp_path: Path, origin: HostileOrigin) -> None:
    """A neighbour that says it alone has a pinned version, and sends another manifest and other small files, is refused
    and counted; while the origin is gone all members are asked, and the version comes from the one that has it."""
    with ExitStack() as stack:
        pool = Pool(stack, tmp_path, 2, {})
        liar = open_first_tracker(stack, pool.ports)
        address = liar.url("").removeprefix("http://")
        hex_ = manifest().digest.hex
        liar.put(f"/v1/holders/sha256/{hex_}", encode_holders([address]))
        liar.put(f"/v1/snapshots/sha256/{hex_}", b"")
        liar.put(f"/v1/manifests/sha256/{hex_}", manifest().canonical() + b" ")
        pool.strangers.append(address)
        first = pool.make(0, origin.url("/m/"), None)
        first.start()
        check(first)
        origin.close()
        second = pool.make(1, origin.url("/m/"), manifest().digest)
        second.start()
        check(second)
        assert second.metric("holdfast_verify_failures_total", where="peer") >= 1
        assert second.metric("holdfast_fetch_bytes_total", source="peer") >= sum(map(len, version_files().values()))
        assert second.metric("holdfast_peer_manifests_total") == 1
