"""The acts of the demo, in the order a cluster would play them, each measured.

Law: says what it does while it does it; takes its figures from clocks and doors, never from a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cached.commands.tree import held_version
from cached.contract.errors import Permanent
from cached.contract.program.units import format_size
from cached.demo import daemon_client
from cached.demo.components import Cast, Node, ServerStart, embed, fetched_bytes
from cached.demo.processes import Process, Processes
from cached.demo.report import Report, seconds
from cached.demo.workspace import REF, Stage, as_typed


@dataclass(frozen=True, slots=True)
class Settings:
    """What the person chose: the rate of the slow node's network, the preferred port of the inference server."""

    slow_rate: str
    port: int


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a pod, in seconds a step. `fetch_s` is None where nothing had to be fetched."""

    fetch_s: float | None
    gate_s: float
    server: ServerStart
    embedding_s: float
    fetched_bytes: float

    @property
    def total_s(self) -> float:
        """From the moment the weights were wanted to the first embeddings."""
        return (self.fetch_s or 0.0) + self.gate_s + self.server.ready_s + self.embedding_s


class Demo:
    """One run of the demo, on a prepared stage."""

    def __init__(self, stage: Stage, processes: Processes, report: Report, settings: Settings) -> None:
        self._stage, self._report, self._settings = stage, report, settings
        self._cast = Cast(stage, processes, report)
        self._node = Node("demo", stage.node, daemon_client.free_address(9400), daemon_client.free_address(9401))
        self._server_at = daemon_client.free_address(settings.port)

    def play(self) -> None:
        """All acts, up to the closing table; the last pod and everything it needs is left running."""
        report = self._report
        report.text(f"\nD={self._stage.folder}")
        report.act("Publish a real model into a local S3 server")
        endpoint = self._cast.start_s3()
        report.step(f"an S3 server (rclone) on {endpoint}, with fresh keys")
        publish_s, digest = self._cast.publish(endpoint)
        report.step("hashed, uploaded, manifest last; its digest:", publish_s)
        report.step(digest)
        self._stage.write_catalog(digest)
        report.act("A node's daemon starts, on an empty store")
        _, ready_s = self._cast.start_daemon(self._node, endpoint)
        report.step("ready", ready_s)
        gate, server, cold = self._cold(digest)
        warm = self._warm(gate, server)
        self._slow_motion(endpoint)
        self._compare(publish_s, cold, warm)

    def invite(self) -> None:
        """Say what there is to look at."""
        server, daemon, report = self._server_at, self._node.daemon_at, self._report
        report.text("\nEverything runs on. Look at it:\n")
        for what, where in (
            ("the daemon's metrics", daemon_client.url(daemon, "/metrics")),
            ("the daemon's status", daemon_client.url(daemon, "/v1/status")),
            ("the gate", daemon_client.url(self._node.gate_at, "/readyz")),
            ("the server", f"{daemon_client.url(server, '/readyz')}  {daemon_client.url(server, '/v1/models')}"),
            ("the files", str(self._node.layout.public.model_link(REF))),
            ("the logs", str(self._stage.logs)),
        ):
            report.text(f"   {what:<22}{where}")
        report.text("\nTry it:\n")
        body = f'{{"model": "{REF.name}", "input": "kelp"}}'
        report.text(
            f"   curl -s {daemon_client.url(server, '/v1/embeddings')} -H 'Content-Type: application/json' -d '{body}'"
        )
        for command in ("ls", "status", "verify"):
            report.text("   " + as_typed(command, "--root", str(self._node.layout.root)))

    def _cold(self, digest: str) -> tuple[Process, Process, Start]:
        report, node = self._report, self._node
        report.act("A pod starts, cold: its gate waits for weights that are not on this node")
        gate = self._cast.start_gate(node)
        wanted_at = time.monotonic()
        self._cast.pull(node)
        self._cast.until_published(node, gate)
        published_at = time.monotonic()
        self._cast.until_open(node, gate)
        open_at = time.monotonic()
        self._check_digest(digest)
        fetched = fetched_bytes(node)
        report.step(f"asked, listed, fetched, verified, published: {format_size(fetched)}", published_at - wanted_at)
        report.step("the gate saw it, checked it and opened", open_at - published_at)
        report.act("The server loads what the gate holds, and answers")
        server, server_start = self._start_server()
        embedding_s, vectors = embed(self._server_at)
        report.step(f"first embeddings: {len(vectors)} sentences, {len(vectors[0])} dimensions", embedding_s)
        report.text("")
        report.similarities(vectors)
        start = Start(published_at - wanted_at, open_at - published_at, server_start, embedding_s, fetched)
        return gate, server, start

    def _warm(self, gate: Process, server: Process) -> Start:
        report, node = self._report, self._node
        report.act("The same pod again, on the node that is warm now")
        report.step("the first pod's server and gate end (SIGTERM)", self._cast.end(server, gate))
        before = fetched_bytes(node)
        began = time.monotonic()
        self._cast.until_open(node, self._cast.start_gate(node))
        gate_s = time.monotonic() - began
        report.step("the gate opened, from the start of its process", gate_s)
        _, server_start = self._start_server()
        embedding_s, vectors = embed(self._server_at)
        report.step(f"first embeddings: {len(vectors)} sentences", embedding_s)
        after = fetched_bytes(node)
        report.step(f"holdfast_fetch_bytes_total: {before:.0f} before, {after:.0f} after")
        return Start(None, gate_s, server_start, embedding_s, after - before)

    def _slow_motion(self, endpoint: str) -> None:
        rate = self._settings.slow_rate
        self._report.act(
            f"In slow motion: a second node, on a network of {rate}, and what its pod's gate says meanwhile"
        )
        node = Node("demo-2", self._stage.second_node, daemon_client.free_address(0), daemon_client.free_address(0))
        daemon, _ = self._cast.start_daemon(node, endpoint, "--max-bandwidth", rate)
        gate = self._cast.start_gate(node)
        began = time.monotonic()
        self._cast.pull(node)
        self._cast.until_open(node, gate)
        self._report.step("from wanted to open", time.monotonic() - began)
        self._cast.end(gate, daemon)

    def _compare(self, publish_s: float, cold: Start, warm: Start) -> None:
        def both(step: Callable[[Start], float]) -> tuple[str, str]:
            return seconds(step(cold)), seconds(step(warm))

        self._report.act("Cold and warm")
        self._report.comparison(
            [
                ("publish into S3, once for all nodes", seconds(publish_s), "-"),
                ("fetch, verify, publish on the node", seconds(cold.fetch_s or 0.0), "-"),
                ("gate opens (warm: all of its process)", *both(lambda s: s.gate_s)),
                ("server: Python, torch", *both(lambda s: s.server.ready_s - s.server.load_s - s.server.warm_up_s)),
                ("server: model built, weights mapped", *both(lambda s: s.server.load_s)),
                ("server: warmed up and tried", *both(lambda s: s.server.warm_up_s)),
                ("first embeddings", *both(lambda s: s.embedding_s)),
                ("from wanted to answered", *both(lambda s: s.total_s)),
                ("bytes fetched", format_size(cold.fetched_bytes), format_size(warm.fetched_bytes)),
            ]
        )
        self._report.text(
            "\n   The fetch is what a warm node saves, and it grows with the model. The server's rows vary with\n"
            "   the load of this machine, and with what of its libraries is in the page cache."
        )

    def _start_server(self) -> tuple[Process, ServerStart]:
        server, start = self._cast.start_server(self._node, self._server_at)
        self._report.step("ready: imported, weights mapped, model warmed up and tried", start.ready_s)
        return server, start

    def _check_digest(self, published: str) -> None:
        held = held_version(self._node.layout.public, REF)
        if held is None or str(held.digest) != published:
            found = "nothing" if held is None else str(held.digest)
            raise Permanent("demo_digest", f"expected {published} on the node, found {found}", "this is a bug")
