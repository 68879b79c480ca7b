"""The acts of the demo, in the order a cluster would play them, each measured.

Law: says what it does while it does it; takes its figures from clocks and doors, never from a guess.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from cached.commands.tree import held_version, model_status
from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.status import State
from cached.contract.units import format_size
from cached.control_client import ControlClient
from cached.demo import doors
from cached.demo.processes import Process, Processes
from cached.demo.report import SENTENCES, Report, seconds
from cached.demo.stage import REF, URI, Keys, Stage, as_typed, holdfast, model_folder, plain_environment, rclone

_RCLONE_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
_FETCH_BYTES = "holdfast_fetch_bytes_total"
_STAGE_SECONDS = "holdfast_server_load_seconds"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the person chose: a rate limit for the daemon, the preferred port of the inference server."""

    max_bandwidth: str | None
    port: int


@dataclass(frozen=True, slots=True)
class ServerStart:
    """Seconds from the server's start to `/readyz`, and what of them loading and warm-up took by its own metrics."""

    ready_s: float
    load_s: float
    warm_up_s: float


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
        self._stage, self._processes, self._report, self._settings = stage, processes, report, settings
        self._keys = Keys()
        self._daemon_at = doors.free_address(9400)
        self._gate_at = doors.free_address(9401)
        self._server_at = doors.free_address(settings.port)

    def play(self) -> None:
        """All acts, up to the closing table; the pod of the last one is left running."""
        self._report.text(f"\nD={self._stage.folder}")
        endpoint = self._start_s3()
        publish_s, digest = self._publish(endpoint)
        self._start_daemon(endpoint, digest)
        gate, server, cold = self._cold(digest)
        self._report.act("The same pod again, on the node that is warm now")
        self._report.step(
            "the first pod's server and gate end (SIGTERM)", self._processes.end(server) + self._processes.end(gate)
        )
        warm = self._warm()
        self._compare(publish_s, cold, warm)

    def invite(self) -> None:
        """Say what there is to look at."""
        root = str(self._stage.node.root)
        ask = f'{{"model": "{REF.name}", "input": "kelp"}}'
        lines = [
            ("the daemon's metrics", doors.url(self._daemon_at, "/metrics")),
            ("the daemon's status", doors.url(self._daemon_at, "/v1/status")),
            ("the gate", doors.url(self._gate_at, "/readyz")),
            ("the server", f"{doors.url(self._server_at, '/readyz')}  {doors.url(self._server_at, '/v1/models')}"),
            ("the files", str(self._stage.model_path)),
            ("the logs", str(self._stage.logs)),
        ]
        self._report.text("\nEverything runs on. Look at it:\n")
        for what, where in lines:
            self._report.text(f"   {what:<22}{where}")
        self._report.text("\nTry it:\n")
        self._report.text(
            f"   curl -s {doors.url(self._server_at, '/v1/embeddings')} -H 'Content-Type: application/json' -d '{ask}'"
        )
        for command in ("ls", "status", "verify"):
            self._report.text("   " + as_typed(command, "--root", root))

    def _start_s3(self) -> str:
        self._report.act("Publish a real model into a local S3 server")
        bucket_server = self._processes.start(
            "s3",
            [rclone(), "serve", "s3", "--addr", f"{doors.HOST}:0", str(self._stage.s3)],
            self._keys.for_server(),
        )

        def said_where() -> bool:
            return _RCLONE_ADDRESS.search("\n".join(bucket_server.lines())) is not None

        took = self._processes.until(said_where, bucket_server, "its address")
        found = _RCLONE_ADDRESS.search("\n".join(bucket_server.lines()))
        assert found is not None
        self._report.step(f"an S3 server (rclone) on {found[0]}, with fresh keys", took)
        return found[0]

    def _publish(self, endpoint: str) -> tuple[float, str]:
        folder = str(model_folder())
        self._report.command(self._typed("publish", "all-MiniLM-L6-v2/", URI))
        began = time.monotonic()
        publish = self._processes.start("publish", holdfast("publish", folder, URI), self._keys.for_client(endpoint))
        self._processes.finish(publish)
        took = time.monotonic() - began
        digest = str(Digest.parse(next((line for line in reversed(publish.lines()) if line.startswith("sha256:")), "")))
        self._report.step("hashed, uploaded, manifest last; its digest:", took)
        self._report.step(digest)
        return took, digest

    def _start_daemon(self, endpoint: str, digest: str) -> None:
        self._report.act("A node's daemon starts, on an empty store")
        self._stage.write_catalog(digest)
        arguments = ["daemon", "--root", str(self._stage.node.root), "--catalog", str(self._stage.catalog)]
        arguments += ["--listen", doors.spell(self._daemon_at), "--kube", "off", "--node", "demo"]
        if self._settings.max_bandwidth is not None:
            arguments += ["--max-bandwidth", self._settings.max_bandwidth]
            self._report.step(
                f"slowed down to {self._settings.max_bandwidth}, as asked: the fetch below shows that rate"
            )
        self._report.command(self._typed(*arguments))
        daemon = self._processes.start("daemon", holdfast(*arguments), self._keys.for_client(endpoint))
        took = self._processes.until(lambda: doors.answers(self._daemon_at, "/readyz"), daemon, "/readyz answered 200")
        self._report.step("ready", took)

    def _cold(self, digest: str) -> tuple[Process, Process, Start]:
        self._report.act("A pod starts, cold: its gate waits for weights that are not on this node")
        gate = self._start_gate()
        self._processes.until(lambda: bool(gate.lines()), gate, "a first line")
        self._report.command(self._typed("pull", str(REF), "--no-wait", "--root", str(self._stage.node.root)))
        began = time.monotonic()
        ControlClient(self._stage.node).pull(REF, None)
        self._processes.until(self._published, gate, f"{REF} was published")
        fetch_s = time.monotonic() - began
        gate_s = self._until_open(gate)
        self._check_digest(digest)
        fetched = self._fetched_bytes()
        rate = f"{format_size(fetched)}, {format_size(fetched / fetch_s)}/s"
        self._report.step(f"fetched, verified, published: {rate}", fetch_s)
        self._report.step("the gate saw it, checked it and opened", gate_s)
        self._report.act("The server loads what the gate holds, and answers")
        server, server_start = self._start_server()
        embedding_s, vectors = self._embed()
        self._report.step(f"first embeddings: {len(vectors)} sentences, {len(vectors[0])} dimensions", embedding_s)
        self._report.text("")
        self._report.similarities(vectors)
        return gate, server, Start(fetch_s, gate_s, server_start, embedding_s, fetched)

    def _warm(self) -> Start:
        before = self._fetched_bytes()
        began = time.monotonic()
        gate = self._start_gate()
        self._until_open(gate)
        gate_s = time.monotonic() - began
        self._report.step("the gate opened, from the start of its process", gate_s)
        _, server_start = self._start_server()
        embedding_s, vectors = self._embed()
        self._report.step(f"first embeddings: {len(vectors)} sentences", embedding_s)
        after = self._fetched_bytes()
        self._report.step(f"{_FETCH_BYTES}: {before:.0f} before, {after:.0f} after")
        return Start(None, gate_s, server_start, embedding_s, after - before)

    def _compare(self, publish_s: float, cold: Start, warm: Start) -> None:
        def both(step: Callable[[Start], float]) -> tuple[str, str]:
            return seconds(step(cold)), seconds(step(warm))

        self._report.act("Cold and warm")
        self._report.comparison(
            [
                ("publish into S3, once for all nodes", seconds(publish_s), seconds(None)),
                ("fetch, verify, publish on the node", seconds(cold.fetch_s), seconds(warm.fetch_s)),
                ("gate opens", *both(lambda s: s.gate_s)),
                (
                    "server: Python and torch imported",
                    *both(lambda s: s.server.ready_s - s.server.load_s - s.server.warm_up_s),
                ),
                ("server: weights mapped, model built", *both(lambda s: s.server.load_s)),
                ("server: warmed up and tried", *both(lambda s: s.server.warm_up_s)),
                ("first embeddings", *both(lambda s: s.embedding_s)),
                ("from wanted to answered, all told", *both(lambda s: s.total_s)),
                ("bytes fetched", format_size(cold.fetched_bytes), format_size(warm.fetched_bytes)),
            ]
        )

    def _typed(self, *arguments: str) -> str:
        """A command as a person would type it, with the demo's folder as `$D`."""
        return as_typed(*arguments).replace(str(self._stage.folder), "$D")

    def _start_gate(self) -> Process:
        arguments = ["gate", "--root", str(self._stage.node.public.path), "--model", REF.name]
        arguments += ["--version", REF.version, "--listen", doors.spell(self._gate_at)]
        self._report.command(self._typed(*arguments))
        return self._processes.start("gate", holdfast(*arguments), plain_environment(), self._report.lines_of("gate"))

    def _until_open(self, gate: Process) -> float:
        return self._processes.until(lambda: doors.answers(self._gate_at, "/readyz"), gate, "/readyz answered 200")

    def _start_server(self) -> tuple[Process, ServerStart]:
        arguments = ["serve", "--model-path", str(self._stage.model_path), "--listen", doors.spell(self._server_at)]
        arguments += ["--device", "cpu"]
        self._report.command(self._typed(*arguments))
        server = self._processes.start("server", holdfast(*arguments), plain_environment())
        took = self._processes.until(lambda: doors.answers(self._server_at, "/readyz"), server, "/readyz answered 200")
        self._report.step("ready: imported, weights mapped, model warmed up and tried", took)
        own = doors.get_text(self._server_at, "/metrics")
        load_s, warm_up_s = (doors.metric(own, _STAGE_SECONDS, f'stage="{stage}"') for stage in ("load", "warm_up"))
        return server, ServerStart(took, load_s, warm_up_s)

    def _embed(self) -> tuple[float, list[list[float]]]:
        began = time.monotonic()
        body = {"model": REF.name, "input": list(SENTENCES)}
        answer = doors.post_json(self._server_at, "/v1/embeddings", body)
        vectors = [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]
        return time.monotonic() - began, vectors

    def _published(self) -> bool:
        """Raises as soon as the daemon says it never will be."""
        status = model_status(self._stage.node.public, REF)
        if status is not None and status.state is State.FAILED and status.error is not None:
            raise Permanent(status.error.code, f"{REF}: {status.error.message}", status.error.remedy)
        return held_version(self._stage.node.public, REF) is not None

    def _check_digest(self, published: str) -> None:
        held = held_version(self._stage.node.public, REF)
        if held is None or str(held.digest) != published:
            found = "nothing" if held is None else str(held.digest)
            raise Permanent("demo_digest", f"expected {published} on the node, found {found}", "this is a bug")

    def _fetched_bytes(self) -> float:
        return doors.metric(doors.get_text(self._daemon_at, "/metrics"), _FETCH_BYTES)
