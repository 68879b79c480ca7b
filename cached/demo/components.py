"""The demo's acts, in the order of a cluster: publish, daemon, a cold pod, the same pod warm, a slow node.

Law: each process is a command that the report shows; figures come from clocks and metrics, never from a guess.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping

from cached.commands.control_client import ControlClient
from cached.commands.tree import held_version
from cached.contract.layout import Layout
from cached.contract.program.units import format_size
from cached.demo.daemon_client import HOST, Address, answers, ask, free_address, metric
from cached.demo.processes import Process, Processes
from cached.demo.report import SENTENCES, Report, seconds
from cached.demo.workspace import REF, URI, Keys, Stage, as_typed, model_folder, plain_environment, rclone

_ROWS = (
    "fetch, verify, publish on the node",
    "gate opens (warm: all of its process)",
    "server: Python, torch",
    "server: model built, weights mapped",
    "server: warmed up and tried",
    "first embeddings",
    "from wanted to answered",
)
_NOTE = """
   The fetch is what a warm node saves, and it grows with the model. The server's rows vary with
   the load of this machine, and with what of its libraries is in the page cache."""


class Demo:
    """One run. `port` is the preferred one of the inference server, `slow_rate` the bandwidth of the second node."""

    def __init__(self, stage: Stage, processes: Processes, report: Report, *, port: int, slow_rate: str) -> None:
        self._stage, self._processes, self._report, self._slow_rate = stage, processes, report, slow_rate
        self._daemon_at, self._gate_at, self._server_at = map(free_address, (9400, 9401, port))
        self._client = dict[str, str]()

    def play(self) -> None:
        """Run all acts and print the closing table; the last pod, the daemon and S3 stay up."""
        report, node = self._report, self._stage.node
        report.text(f"\nD={self._stage.folder}")
        report.act("Publish a real model into a local S3 server")
        self._start_s3()
        publish_s = self._publish()
        report.act("A node's daemon starts, on an empty store")
        report.step("ready", self._start_daemon("demo", node, self._daemon_at)[1])
        report.act("A pod starts, cold: its gate waits for weights that are not on this node")
        gate = self._start_gate(node, self._gate_at)
        fetch_s, open_s = self._pull(node, gate), self._until_ready(gate, self._gate_at)
        fetched = self._fetched_bytes()
        report.step(f"asked, listed, fetched, verified, published: {format_size(fetched)}", fetch_s)
        report.step("the gate saw it, checked it and opened", open_s)
        report.act("The server loads what the gate holds, and answers")
        server, cold, vectors = self._serve()
        report.step(f"first embeddings: {len(vectors)} sentences, {len(vectors[0])} dimensions", cold[-1])
        report.text("")
        report.similarities(vectors)
        report.act("The same pod again, on the node that is warm now")
        began = time.monotonic()
        self._processes.end(server, gate)
        report.step("the first pod's server and gate end (SIGTERM)", time.monotonic() - began)
        began = time.monotonic()
        self._until_ready(self._start_gate(node, self._gate_at), self._gate_at)
        warm_open_s = time.monotonic() - began
        report.step("the gate opened, from the start of its process", warm_open_s)
        _, warm, vectors = self._serve()
        report.step(f"first embeddings: {len(vectors)} sentences", warm[-1])
        after = self._fetched_bytes()
        report.step(f"holdfast_fetch_bytes_total: {fetched:.0f} before, {after:.0f} after")
        self._show_slow_node()
        report.act("Cold and warm")
        steps = [(fetch_s, None), (open_s, warm_open_s), *zip(cold, warm, strict=True)]
        totals = tuple(sum(each or 0.0 for each in column) for column in zip(*steps, strict=True))
        report.row("", "cold", "warm")
        report.row("publish into S3, once for all nodes", seconds(publish_s), "-")
        for what, both in zip(_ROWS, (*steps, totals), strict=True):
            report.row(what, *map(seconds, both))
        report.row("bytes fetched", format_size(fetched), format_size(after - fetched))
        report.text(_NOTE)

    def invite(self) -> None:
        """Print the addresses, files and commands to look at."""
        daemon, gate, server = (f"http://{_spell(at)}" for at in (self._daemon_at, self._gate_at, self._server_at))
        self._report.text(
            "\nEverything runs on. Look at it:\n\n"
            f"   the daemon's metrics  {daemon}/metrics\n"
            f"   the daemon's status   {daemon}/v1/status\n"
            f"   the gate              {gate}/readyz\n"
            f"   the server            {server}/readyz  {server}/v1/models\n"
            f"   the files             {self._stage.node.public.model_link(REF)}\n"
            f"   the logs              {self._stage.logs}\n\nTry it:\n\n"
            f"   curl -s {server}/v1/embeddings -H 'Content-Type: application/json' "
            f"""-d '{{"model": "{REF.name}", "input": "kelp"}}'"""
        )
        for command in ("ls", "status", "verify"):
            self._report.text("   " + as_typed(command, "--root", str(self._stage.node.root)))

    def _start_s3(self) -> None:
        keys, argv = Keys(), [rclone(), "serve", "s3", "--addr", f"{HOST}:0", str(self._stage.s3)]
        server = self._processes.start("s3", argv, keys.for_server())
        self._processes.until(lambda: bool(_addresses(server)), server, "its address")
        endpoint = _addresses(server)[0]
        self._client = keys.for_client(endpoint)
        self._report.step(f"an S3 server (rclone) on {endpoint}, with fresh keys")

    def _publish(self) -> float:
        began = time.monotonic()
        self._show_command("publish", "all-MiniLM-L6-v2/", URI)
        process = self._processes.start("publish", _argv("publish", str(model_folder()), URI), self._client)
        self._processes.finish(process)
        took_s = time.monotonic() - began
        digest = next(line for line in reversed(process.lines()) if line.startswith("sha256:"))
        self._report.step("hashed, uploaded, manifest last; its digest:", took_s)
        self._report.step(digest)
        self._stage.write_catalog(digest)
        return took_s

    def _start_daemon(self, name: str, node: Layout, at: Address, *options: str) -> tuple[Process, float]:
        where = ("--root", str(node.root), "--catalog", str(self._stage.catalog), "--listen", _spell(at))
        daemon = self._start("daemon", *where, "--kube", "off", "--node", name, *options, env=self._client)
        return daemon, self._until_ready(daemon, at)

    def _start_gate(self, node: Layout, at: Address) -> Process:
        where = ("--root", str(node.public.path), "--model", REF.name, "--version", REF.version, "--listen", _spell(at))
        gate = self._start("gate", *where, show=self._report.lines_of("gate"))
        self._processes.until(lambda: bool(gate.lines()), gate, "a first line")
        return gate

    def _pull(self, node: Layout, gate: Process) -> float:
        """Pull the version and wait for its symlink; return the seconds. The gate ends where the version fails."""
        began = time.monotonic()
        self._show_command("pull", str(REF), "--no-wait", "--root", str(node.root))
        ControlClient(node).pull(REF, None, refresh=False)
        self._processes.until(lambda: held_version(node.public, REF) is not None, gate, f"{REF} was published")
        return time.monotonic() - began

    def _serve(self) -> tuple[Process, list[float], list[list[float]]]:
        """Start the server and embed; return the seconds of imports, load, warm-up and embedding, and the vectors."""
        at, folder = self._server_at, str(self._stage.node.public.model_link(REF))
        server = self._start("serve", "--model-path", folder, "--listen", _spell(at), "--device", "cpu")
        ready_s = self._until_ready(server, at)
        figures, name = ask(at, "/metrics"), "holdfast_server_load_seconds"
        load_s, warm_up_s = (metric(figures, name, f'stage="{stage}"') for stage in ("load", "warm_up"))
        self._report.step("ready: imported, weights mapped, model warmed up and tried", ready_s)
        began = time.monotonic()
        answer = json.loads(ask(at, "/v1/embeddings", {"model": REF.name, "input": SENTENCES}))
        vectors = [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]
        return server, [ready_s - load_s - warm_up_s, load_s, warm_up_s, time.monotonic() - began], vectors

    def _show_slow_node(self) -> None:
        rate, node, daemon_at, gate_at = self._slow_rate, self._stage.second_node, free_address(0), free_address(0)
        story = f"a second node, on a network of {rate}, and what its pod's gate says meanwhile"
        self._report.act(f"In slow motion: {story}")
        daemon, _ = self._start_daemon("demo-2", node, daemon_at, "--max-bandwidth", rate)
        gate = self._start_gate(node, gate_at)
        self._report.step("from wanted to open", self._pull(node, gate) + self._until_ready(gate, gate_at))
        self._processes.end(gate, daemon)

    def _start(
        self, *arguments: str, env: Mapping[str, str] | None = None, show: Callable[[str], None] = lambda _line: None
    ) -> Process:
        self._show_command(*arguments)
        name = "server" if arguments[0] == "serve" else arguments[0]
        return self._processes.start(name, _argv(*arguments), env or plain_environment(), show)

    def _show_command(self, *arguments: str) -> None:
        self._report.command(as_typed(*arguments).replace(str(self._stage.folder), "$D"))

    def _until_ready(self, process: Process, at: Address) -> float:
        return self._processes.until(lambda: answers(at, "/readyz"), process, "/readyz answered 200")

    def _fetched_bytes(self) -> float:
        return metric(ask(self._daemon_at, "/metrics"), "holdfast_fetch_bytes_total")


def _argv(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cached", *arguments]


def _spell(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _addresses(server: Process) -> list[str]:
    return re.findall(r"http://127\.0\.0\.1:\d+", "\n".join(server.lines()))
