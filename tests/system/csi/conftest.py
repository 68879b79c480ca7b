"""A kubelet's node, and a daemon on it in a container of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, model, publish_files
from tests.support.kubelet import Kubelet, kubelet_node

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 64, "sub/tokenizer.json": b"[1]"}


@dataclass
class Node:
    """The kubelet, the daemon, and a folder to fetch from."""

    kubelet: Kubelet
    daemon: DaemonProcess
    source: Path

    def publish(self, name: str, files: dict[str, bytes] | None = None) -> Manifest:
        """Put a version at the source."""
        return publish_files(self.source / name, files or {**FILES, "name.txt": name.encode()})

    def entry(self, name: str, **more: Any) -> dict[str, Any]:
        """A catalog entry whose version `v1` is `name` at the source, published now."""
        self.publish(name)
        return model(f"file://{self.source}/{name}", **more)

    def hold(self, *names: str, **more: Any) -> None:
        """Have `name@v1` on the node for each of these, from a catalog that has them only."""
        self.daemon.write_catalog({name: self.entry(name, **more) for name in names})
        for name in names:
            self.daemon.pull(f"{name}@v1")
        self.daemon.wait_ready(*(ModelRef(name, "v1") for name in names))


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    with kubelet_node() as made:
        yield made


@pytest.fixture
def node(kubelet: Kubelet, tmp_path: Path) -> Iterator[Node]:
    with running_node(kubelet, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with kubelet_node() as kubelet, running_node(kubelet, tmp_path_factory.mktemp("node")) as made:
        made.hold("llama", "lora", "secret")
        yield made


@pytest.fixture
def held(_shared: Node) -> Iterator[Node]:
    """A node that has `llama@v1`, `lora@v1` and `secret@v1`, for all tests of a module; they leave no volume."""
    yield _shared
    for point in _shared.kubelet.mounts():
        if point.endswith("/mount"):
            _shared.kubelet.unpublish_at(Path(point))


@contextlib.contextmanager
def running_node(kubelet: Kubelet, folder: Path) -> Iterator[Node]:
    """A node whose daemon runs, with an empty catalog."""
    options = (*kubelet.options, "--scrub-rate", "0")
    with daemon_process(folder / "daemon", *options, under=kubelet.container) as daemon:
        made = Node(kubelet, daemon, folder / "source")
        daemon.write_catalog({})
        daemon.start()
        yield made
