"""Start each of the demo's processes as a person would type it, and wait until it is ready.

Law: shows the command it runs, returns what it measured; tells no story.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from cached.commands.control_client import ControlClient
from cached.commands.tree import held_version, model_status
from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.contract.status import State
from cached.demo import daemon_client
from cached.demo.daemon_client import Address
from cached.demo.processes import Process, Processes
from cached.demo.report import SENTENCES, Report
from cached.demo.workspace import REF, URI, Keys, Stage, as_typed, holdfast, model_folder, plain_environment, rclone

_RCLONE_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
_FETCH_BYTES = "holdfast_fetch_bytes_total"
_STAGE_SECONDS = "holdfast_server_load_seconds"
_READY = "/readyz answered 200"


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its root, and where its daemon and its pod's gate listen."""

    name: str
    layout: Layout
    daemon_at: Address
    gate_at: Address


@dataclass(frozen=True, slots=True)
class ServerStart:
    """Seconds from the server's start to `/readyz`, and what of them loading and warm-up took by its own metrics."""

    ready_s: float
    load_s: float
    warm_up_s: float


class Cast:
    """Everything that can be started on one stage."""

    def __init__(self, stage: Stage, processes: Processes, report: Report) -> None:
        self._stage, self._processes, self._report = stage, processes, report
        self._keys = Keys()

    def start_s3(self) -> str:
        """An S3 server over a folder; returns its endpoint."""
        argv = [rclone(), "serve", "s3", "--addr", f"{daemon_client.HOST}:0", str(self._stage.s3)]
        server = self._processes.start("s3", argv, self._keys.for_server())
        self._processes.until(lambda: _said_where(server) is not None, server, "its address")
        endpoint = _said_where(server)
        assert endpoint is not None
        return endpoint

    def publish(self, endpoint: str) -> tuple[float, str]:
        """Publish the model; returns seconds and manifest digest."""
        folder = str(model_folder())
        self._report.command(self._typed("publish", "all-MiniLM-L6-v2/", URI))
        began = time.monotonic()
        publish = self._processes.start("publish", holdfast("publish", folder, URI), self._keys.for_client(endpoint))
        self._processes.finish(publish)
        took = time.monotonic() - began
        digest = next((line for line in reversed(publish.lines()) if line.startswith("sha256:")), "")
        return took, str(Digest.parse(digest))

    def start_daemon(self, node: Node, endpoint: str, *options: str) -> tuple[Process, float]:
        """The daemon of `node`; returns it with the seconds until it was ready."""
        arguments = ["daemon", "--root", str(node.layout.root), "--catalog", str(self._stage.catalog)]
        arguments += ["--listen", daemon_client.spell(node.daemon_at), "--kube", "off", "--node", node.name, *options]
        self._report.command(self._typed(*arguments))
        daemon = self._processes.start("daemon", holdfast(*arguments), self._keys.for_client(endpoint))
        return daemon, self._processes.until(lambda: daemon_client.answers(node.daemon_at, "/readyz"), daemon, _READY)

    def start_gate(self, node: Node) -> Process:
        """A pod's gate on `node`, until its first line."""
        arguments = ["gate", "--root", str(node.layout.public.path), "--model", REF.name]
        arguments += ["--version", REF.version, "--listen", daemon_client.spell(node.gate_at)]
        self._report.command(self._typed(*arguments))
        show = self._report.lines_of("gate")
        gate = self._processes.start("gate", holdfast(*arguments), plain_environment(), show)
        self._processes.until(lambda: bool(gate.lines()), gate, "a first line")
        return gate

    def pull(self, node: Node) -> None:
        """Want the version on `node`; returns when its daemon knows."""
        self._report.command(self._typed("pull", str(REF), "--no-wait", "--root", str(node.layout.root)))
        ControlClient(node.layout).pull(REF, None, refresh=False)

    def until_published(self, node: Node, gate: Process) -> None:
        """Wait for the version's symlink; raises as soon as the daemon says that there will be none."""

        def published() -> bool:
            status = model_status(node.layout.public, REF)
            if status is not None and status.state is State.FAILED and status.error is not None:
                raise Permanent(status.error.code, status.error.message, status.error.remedy)
            return held_version(node.layout.public, REF) is not None

        self._processes.until(published, gate, f"{REF} was published")

    def until_open(self, node: Node, gate: Process) -> None:
        """Wait until the gate opens."""
        self._processes.until(lambda: daemon_client.answers(node.gate_at, "/readyz"), gate, _READY)

    def start_server(self, node: Node, at: Address) -> tuple[Process, ServerStart]:
        """The pod's server on `node`, until it is ready."""
        folder = str(node.layout.public.model_link(REF))
        arguments = ["serve", "--model-path", folder, "--listen", daemon_client.spell(at), "--device", "cpu"]
        self._report.command(self._typed(*arguments))
        server = self._processes.start("server", holdfast(*arguments), plain_environment())
        took = self._processes.until(lambda: daemon_client.answers(at, "/readyz"), server, _READY)
        own = daemon_client.get_text(at, "/metrics")
        load_s, warm_up_s = (
            daemon_client.metric(own, _STAGE_SECONDS, f'stage="{stage}"') for stage in ("load", "warm_up")
        )
        return server, ServerStart(took, load_s, warm_up_s)

    def end(self, *processes: Process) -> float:
        """End processes in the order given; returns the seconds that took."""
        return sum(self._processes.end(process) for process in processes)

    def _typed(self, *arguments: str) -> str:
        """A command as a person would type it, with the demo's folder as `$D`."""
        return as_typed(*arguments).replace(str(self._stage.folder), "$D")


def embed(at: Address) -> tuple[float, list[list[float]]]:
    """The vectors of the demo's sentences, and the seconds they took."""
    began = time.monotonic()
    answer = daemon_client.post_json(at, "/v1/embeddings", {"model": REF.name, "input": list(SENTENCES)})
    vectors = [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]
    return time.monotonic() - began, vectors


def fetched_bytes(node: Node) -> float:
    """What the node's daemon has received from sources since it started."""
    return daemon_client.metric(daemon_client.get_text(node.daemon_at, "/metrics"), _FETCH_BYTES)


def _said_where(server: Process) -> str | None:
    found = _RCLONE_ADDRESS.search("\n".join(server.lines()))
    return found and found[0]
