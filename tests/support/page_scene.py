"""A node with something to see: a real daemon in a fake cluster with versions in several states, for its page.

Law: everything is made by what makes it in life: pods' annotations, a catalog, a Hub and a web server that is slow or
lacks a file, gates that hold leases. The web server's name leads to this process through a proxy's variable.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, daemon_process, model, publish_files, write_files
from tests.support.fake_api import FakeApi
from tests.support.fake_hub import FakeHub
from tests.support.gates import Gates
from tests.support.http_server import serve_http
from tests.support.kube_shapes import make_pod

MIB = 1024 * 1024
NODE = "gpu-node-17"
LLAMA = "acme/llama-3.1-8b"
READY = [
    ModelRef(LLAMA, "v2"),
    ModelRef(LLAMA, "v3"),
    ModelRef("mistral-7b", "2026-10"),
    ModelRef("bge-m3", "1"),
    ModelRef("support-lora", "v7"),
    ModelRef("support-lora", "stable"),
]
SLOW = ModelRef(LLAMA, "v4")
FAILED = ModelRef("whisper-large", "v3")
RETRIED = ModelRef("qwen3-14b", "v1")
_PIECE = 64 * 1024
_HOST = "weights.acme.com"


class Scene:
    """The node. `rate`: of the slow origin, in bytes a second, from now on."""

    def __init__(self, api: FakeApi, hub: FakeHub, daemon: DaemonProcess, folder: Path, rate: list[float]) -> None:
        self.api = api
        self.daemon = daemon
        self.gates = Gates(daemon.layout.public, folder / "gates")
        self._folder = folder / "origin"
        self._hub = hub
        self._rate = rate

    @property
    def url(self) -> str:
        host, port = self.daemon.address
        return f"http://{host}:{port}/"

    def set_rate(self, rate: float) -> None:
        """Let the slow origin send so many bytes a second from now on."""
        self._rate[0] = rate

    def pod(self, namespace: str, name: str, ref: ModelRef) -> None:
        """Bind a pod that wants `ref` to the node."""
        asks = {"holdfast.dev/model": ref.name, "holdfast.dev/version": ref.version}
        self.api.create(f"/api/v1/namespaces/{namespace}/pods", make_pod(name, NODE, asks, namespace=namespace))

    def publish(self) -> None:
        """Put every version at the origin, and all of them into the catalog."""
        base, web = _noise("base", 24), f"http://{_HOST}"
        _publish(self._folder / "llama/v3", {"model-1.bin": base, "model-2.bin": _noise("tuned", 14)})
        _publish(self._folder / "llama/v4", {"model-1.bin": base, "model-2.bin": _noise("v4", 48)})
        _publish(self._folder / "lora", {"adapter.bin": _noise("lora", 3)})
        for name, files in {
            "acme/llama-3.1-8b": {"model-1.bin": base, "model-2.bin": _noise("v2", 9)},
            "acme/mistral-7b": {"model.bin": _noise("mistral", 31)},
            "acme/bge-m3": {"model.bin": _noise("bge", 12)},
        }.items():
            write_files(self._folder / name, files)
            self._hub.add(name, self._folder / name)
        self.daemon.write_catalog(
            {
                LLAMA: {
                    "versions": {
                        "v2": {"source": "hf://acme/llama-3.1-8b"},
                        "v3": {"source": f"{web}/llama/v3/"},
                        "v4": {"source": f"{web}/slow/llama/v4/"},
                    }
                },
                "mistral-7b": model("hf://acme/mistral-7b", "2026-10"),
                "bge-m3": {**model("hf://acme/bge-m3", "1"), "prefetch": {"versions": ["1"]}, "pin": True},
                "support-lora": {"versions": {v: {"source": f"{web}/lora/"} for v in ("v7", "stable")}},
                "whisper-large": model(f"{web}/whisper/", "v3"),
                "qwen3-14b": model(f"{web}/busy/qwen3/", "v1"),
            }
        )

    def fill(self) -> None:
        """Fetch what can be fetched, have it used, and ask for the rest."""
        for namespace, name, ref in (
            ("search", "llama-6f7d9c-x2k4p", READY[1]),
            ("search", "llama-6f7d9c-9vq7m", READY[1]),
            ("support", "assistant-0", READY[4]),
        ):
            self.pod(namespace, name, ref)
        for ref in READY:
            self.daemon.pull(str(ref))
        self.daemon.wait_ready(*READY)
        for ref in (READY[1], READY[4]):
            self.gates.start_bare("--model", ref.name, "--version", ref.version)
        self.daemon.wait(lambda: sum(each["leased"] for each in self.daemon.document()["models"]) >= 2, "leases")
        for namespace, name, ref in (
            ("search", "llama-next-0", SLOW),
            ("search", "llama-next-1", SLOW),
            ("audio", "transcribe-5c4b-tt8xn", FAILED),
            ("research", "qwen-eval-1", RETRIED),
        ):
            self.pod(namespace, name, ref)
        self.daemon.wait_state(FAILED, "failed")
        self.daemon.wait(lambda: (self.daemon.status(SLOW) or {}).get("rate_bytes_per_s") is not None, "a slow fetch")
        self.daemon.wait(lambda: bool(self.daemon.error(RETRIED)), "a fetch that is tried again")


@contextlib.contextmanager
def page_scene(folder: Path, *options: str) -> Iterator[Scene]:
    """Yield the node, whose daemon runs; `publish` and `fill` it."""
    rate = [3.0 * MIB]
    origin = folder / "origin"
    origin.mkdir(parents=True)
    (folder / "gates").mkdir()
    with FakeApi() as api, FakeHub() as hub, serve_http(_make_handler(origin, rate)) as address:
        api.create("/api/v1/nodes", {"metadata": {"name": NODE, "labels": {}}})
        kubeconfig = _write_kubeconfig(folder, api.url)
        own = ("--kube", "auto", "--node", NODE, "--quota", "220MiB", *options)
        environment = {
            "KUBECONFIG": str(kubeconfig),
            "HF_ENDPOINT": hub.endpoint,
            "http_proxy": f"http://{address}",
            "no_proxy": "127.0.0.1,localhost",
        }
        with daemon_process(folder / "node", *own, environment=environment) as daemon:
            scene = Scene(api, hub, daemon, folder, rate)
            scene.publish()
            daemon.start()
            try:
                yield scene
            finally:
                scene.gates.end()
                rate[0] = float("inf")


def _noise(seed: str, mib: int) -> bytes:
    return random.Random(seed).randbytes(mib * MIB)


def _publish(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    publish_files(folder, files)


def _write_kubeconfig(folder: Path, server: str) -> Path:
    path = folder / "kubeconfig"
    document: dict[str, Any] = {
        "current-context": "scene",
        "clusters": [{"name": "scene", "cluster": {"server": server}}],
        "users": [{"name": "scene", "user": {}}],
        "contexts": [{"name": "scene", "context": {"cluster": "scene", "user": "scene"}}],
    }
    path.write_text(json.dumps(document))
    return path


def _make_handler(folder: Path, rate: list[float]) -> type[BaseHTTPRequestHandler]:
    """Serve the files of `folder`; below `/slow/` at `rate`; below `/busy/` nothing but 503."""
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            asked = urlsplit(self.path).path  # to a proxy it is a whole URL
            path = folder / asked.removeprefix("/slow").strip("/")
            status = 503 if asked.startswith("/busy/") else 200 if path.is_file() else 404
            data = path.read_bytes() if status == 200 else b""
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if found and status == 200:
                part = data[int(found[1]) : int(found[2]) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(data)}")
            else:
                part = data
                self.send_response(status)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{len(data)}"')
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if with_body:
                self._send(part, slow=asked.startswith("/slow/") and path.suffix == ".bin")

        def _send(self, part: bytes, *, slow: bool) -> None:
            with contextlib.suppress(OSError):
                for at in range(0, len(part), _PIECE):
                    if slow:
                        with turn:
                            time.sleep(_PIECE / rate[0])
                    self.wfile.write(part[at : at + _PIECE])

    return Handler
