"""Versions from Google Cloud Storage and Azure Blob Storage, by a real daemon; the stores are stand-ins, written from
the documentation of the services."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, prefetched
from tests.support.fake_azure import ACCOUNT, FakeAzure, fake_azure
from tests.support.fake_gcs import FakeGcs, fake_gcs

V1 = ModelRef("tiny", "v1")
PLACE = "acme-models"
FILES = {
    "config.json": b"{}",
    "model.safetensors": random.Random(2).randbytes(2_500_000),
    "nested/folder/empty.txt": b"",
    "ñ + % # ?.json": b"[1]",
}
LARGE = random.Random(3).randbytes(1_000_003) * 20
RECORDED = LARGE * 4  # more than two segments: what arrived is recorded
ONE_CONNECTION = ("--connections", "1")


@dataclass
class Node:
    """A daemon with the identity of its machine, and the store that it reads."""

    daemon: DaemonProcess
    server: FakeGcs | FakeAzure
    uri: str


def at_google(server: FakeGcs) -> tuple[str, dict[str, str]]:
    return f"gs://{PLACE}/m/?endpoint_url={server.url}", {"GCE_METADATA_HOST": server.host}


def at_azure(server: FakeAzure) -> tuple[str, dict[str, str]]:
    uri = f"az://{ACCOUNT}/{PLACE}/m/?endpoint_url={server.endpoint}"
    return uri, {"AZURE_POD_IDENTITY_AUTHORITY_HOST": server.url}


Serve = Callable[..., AbstractContextManager[FakeGcs | FakeAzure]]
Describe = Callable[..., tuple[str, dict[str, str]]]
STORES: dict[str, tuple[Serve, Describe]] = {"gs": (fake_gcs, at_google), "az": (fake_azure, at_azure)}


@pytest.fixture(params=STORES)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    serve, describe = STORES[request.param]
    with serve(private=True) as server:
        uri, environment = describe(server)
        with daemon_process(tmp_path, "--scrub-rate", "0", environment=environment) as process:
            yield Node(process, server, uri)
            server.released.set()
            process.end()


def put(node: Node, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        node.server.put(PLACE, f"m/{path}", data)


def test_a_private_prefix_comes_whole(node: Node) -> None:
    """By the machine's identity a prefix comes whole, with the digest of the same folder elsewhere; what is vouched for
    is told; no token is in the log."""
    put(node, FILES)
    node.daemon.write_catalog({"tiny": prefetched(node.uri)})
    node.daemon.start()
    node.daemon.wait_ready(V1)
    assert node.daemon.files(V1) == FILES
    entries = [FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in FILES.items()]
    assert node.daemon.digest(V1) == Manifest.build(entries).digest
    trust = "checked" if node.uri.startswith("gs:") else "versioned"
    assert (node.daemon.status(V1) or {})["trust"] == trust
    shown = node.daemon.log() + json.dumps(node.daemon.status(V1)) + node.daemon.get("/metrics")[1]
    assert not any(token in shown for token in node.server.issued)


def test_a_killed_fetch_resumes(node: Node) -> None:
    """After kill -9 in the middle of a file the next start asks for the rest of it, and not for what it has."""
    put(node, {"w.bin": RECORDED})
    node.server.hold_at = 76_000_000
    node.daemon.write_catalog({"tiny": prefetched(node.uri)})
    node.daemon.start(*ONE_CONNECTION)
    node.daemon.wait(lambda: (node.daemon.status(V1) or {}).get("bytes_done", 0) > 70_000_000, "most of the file")
    node.daemon.kill()
    node.server.hold_at = None
    node.server.released.set()
    before = node.server.sent.total()
    node.daemon.start(*ONE_CONNECTION)
    node.daemon.wait_ready(V1)
    assert node.daemon.files(V1) == {"w.bin": RECORDED}
    assert node.server.sent.total() - before < len(RECORDED)


def test_a_token_that_ends_in_the_middle_does_no_harm(node: Node) -> None:
    """A pull goes on with a new token when the service refuses the old one in the middle of a file."""
    put(node, {"w.bin": LARGE * 4})
    node.server.hold_at = len(LARGE)
    node.daemon.write_catalog({"tiny": prefetched(node.uri)})
    node.daemon.start(*ONE_CONNECTION)
    node.daemon.wait(lambda: node.server.sent.total() >= len(LARGE), "the first part")
    node.server.withdrawn = len(node.server.issued)
    node.server.hold_at = None
    node.server.released.set()
    node.daemon.wait_ready(V1)
    assert node.daemon.files(V1) == {"w.bin": LARGE * 4}
    assert len(node.server.issued) == node.server.withdrawn + 1
    assert node.server.sent.total() < len(LARGE) * 5


def test_an_object_that_is_replaced_is_listed_again(node: Node) -> None:
    """An overwrite in the middle of a file gives the new object whole, and never a mixture."""
    put(node, {"w.bin": LARGE})
    node.server.hold_at = len(LARGE) // 2
    node.daemon.write_catalog({"tiny": prefetched(node.uri)})
    node.daemon.start()
    node.daemon.wait(lambda: node.server.sent.total() >= len(LARGE) // 2, "half of the file")
    put(node, {"w.bin": LARGE[::-1]})
    node.server.hold_at = None
    node.server.fail = lambda _method, _path: None
    node.server.released.set()
    node.daemon.wait_ready(V1)
    assert node.daemon.files(V1)["w.bin"] in (LARGE, LARGE[::-1])
