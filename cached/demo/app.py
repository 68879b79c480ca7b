"""The command `holdfast demo`: its options, its folder, its steps in the order of a cluster, its output.

Law: every exit ends the processes and removes the folder, unless `--keep`. Figures come from clocks and metrics only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cached.commands.shared.common import print_error
from cached.commands.shared.control_client import ControlClient
from cached.commands.shared.tree import find_held_version
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED, OptionParser, whole_number
from cached.contract.program.units import format_size, parse_rate
from cached.contract.reference import ModelRef
from cached.demo import processes

say = functools.partial(print, flush=True)
_OPENING = """Holdfast, from end to end on this machine: a real sentence encoder (all-MiniLM-L6-v2) goes into a real S3
server; a node's daemon caches it by digest; a gate holds a pod until it is there; a server embeds sentences with it.
Each is a process of its own, as in a cluster. Nothing is faked, and nothing leaves this machine."""
_REF = ModelRef("minilm", "1")
CATALOG = """defaults: {source: "s3://models/{name}/{version}/"}
models: {minilm: {versions: {"1": {digest: "%s"}}}}\n"""
# By the name of the log: the commands as a person would type them, where `$D` is the demo's folder.
_COMMANDS = {
    "publish": "publish all-MiniLM-L6-v2/ s3://models/minilm/1/",
    "daemon": "daemon --root $D/node --catalog $D/catalog.yaml --listen {daemon} --kube off --node demo",
    "gate": "gate --root $D/node/public --model minilm --version 1 --listen {gate}",
    "server": "serve --model-path $D/node/public/models/minilm/1 --listen {server} --device cpu --drain-linger 0",
    "daemon-2": "daemon --root $D/node-2 --catalog $D/catalog.yaml --listen {daemon-2} --kube off --node demo-2"
    " --max-bandwidth {rate}",
    "gate-2": "gate --root $D/node-2/public --model minilm --version 1 --listen {gate-2}",
}
_SENTENCES = (
    "The holdfast anchors the kelp to the rock.",
    "Seaweed clings to stones at the bottom of the sea.",
    "The pod starts once the weights are on its node.",
    "Kubernetes runs the container when its files have arrived.",
    "I would like a cup of coffee with milk, please.",
)
_NOTE = """
   The fetch is what a warm node saves, and it grows with the model. The server's rows vary with
   the load of this machine, and with what of its libraries is in the page cache."""
_INVITATION = """
Everything runs on. Look at it:

   the daemon's metrics  http://{daemon}/metrics
   the daemon's status   http://{daemon}/v1/status
   the gate              http://{gate}/readyz
   the server            http://{server}/readyz  http://{server}/v1/models
   the files             {folder}/node/public/models/minilm/1
   the logs              {folder}/logs

Try it:

   curl -s http://{server}/v1/embeddings -H 'Content-Type: application/json' -d '{{"model": "minilm", "input": "kelp"}}'
   {holdfast} ls --root {quoted}/node
   {holdfast} status --root {quoted}/node
   {holdfast} verify --root {quoted}/node

Ctrl-C ends it all."""


def _styled(style: int, text: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


_bold, _dim = functools.partial(_styled, 1), functools.partial(_styled, 2)


def main(argv: Sequence[str]) -> int:
    """Run `holdfast demo [--exit] [--keep] [--root DIR] [--port P] [--max-bandwidth RATE]`; return the exit code."""
    parser = OptionParser(prog="holdfast demo", description="Run the whole path on this machine with a real model.")
    parser.switch("--exit", help="end after the last table instead of staying until Ctrl-C")
    parser.switch("--keep", help="keep the demo's folder: store, catalog, logs")
    folder_help = "an empty or new folder for it all"
    parser.option("--root", type=Path, otherwise="a temporary one", metavar="DIR", help=folder_help)
    port_help = "the inference server's port, if free"
    parser.option("--port", type=whole_number(0, 65535), default="8080", metavar="PORT", help=port_help)
    rate_help = "the network of the second, slow node"
    parser.option("--max-bandwidth", type=_rate, default="16MiB/s", metavar="RATE", help=rate_help)
    options = parser.parse_args(argv)
    say(_OPENING)
    try:
        with _folder(options.root, keep=options.keep) as folder, processes.Processes(folder / "logs", 10.0) as running:
            demo = Demo(folder, running, port=options.port, rate=options.max_bandwidth)
            demo.play()
            if not options.exit:
                demo.invite()
                running.wait_for_signal()
                say("\nending…")
        return EXIT_DONE
    except KeyboardInterrupt:
        say("\nstopped before the end; everything was cleaned up")
    except HoldfastError as error:
        print_error("demo", error.message, error.remedy)
    return EXIT_FAILED


@contextlib.contextmanager
def _folder(root: Path | None, *, keep: bool) -> Iterator[Path]:
    """Make the demo's folder, and remove it on the way out unless `keep`; refuse one with content."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-")) if root is None else root.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        found = f"{folder} is not empty: the demo would have to remove what it did not make"
        raise Permanent("not_empty", found, "name an empty or a new folder with --root, or none at all")
    try:
        yield folder
    finally:
        if keep:
            say(f"\nkept: {folder}")
        else:
            shutil.rmtree(folder)


def _rate(text: str) -> str:
    parse_rate(text)
    return text


class Demo:
    """One run in an empty folder. `port` is the server's if it is free, `rate` the bandwidth of the second node."""

    def __init__(self, folder: Path, running: processes.Processes, *, port: int, rate: str) -> None:
        self._folder, self._running, self._rate = folder, running, rate
        self._ports = {"daemon": 9400, "gate": 9401, "server": port}
        self._at = {"s3": processes.free_address(0)}
        self._s3_environment = processes.s3_environment(self._at["s3"])
        for made in ("logs", "s3/models", "node", "node-2"):  # rclone: a bucket is a folder
            (folder / made).mkdir(parents=True)

    def play(self) -> None:
        """Run all steps and print the closing table; the last pod, the daemon and S3 stay up."""
        say(f"\nD={self._folder}")
        say(_bold("\n1. Publish a real model into a local S3 server"))
        publish_s = self._publish()
        say(_bold("\n2. A node's daemon starts, on an empty store"))
        _say_times("ready", self._wait_ready(self._start("daemon")))
        say(_bold("\n3. A pod starts, cold: its gate waits for weights that are not on this node"))
        gate, fetch_s, open_s = self._open_cold_gate("gate", "node")
        fetched = self._fetched_bytes()
        _say_times(f"asked, listed, fetched, verified, published: {format_size(fetched)}", fetch_s)
        _say_times("the gate saw it, checked it and opened", open_s)
        say(_bold("\n4. The server loads what the gate holds, and answers"))
        server, cold, vectors = self._serve()
        _say_times(f"first embeddings: {len(vectors)} sentences, {len(vectors[0])} dimensions", cold[-1])
        _say_similarities(vectors)
        say(_bold("\n5. The same pod again, on the node that is warm now"))
        began = time.monotonic()
        self._running.end(server, gate)
        _say_times("the first pod's server and gate end (SIGTERM)", time.monotonic() - began)
        warm_open_s = self._wait_ready(self._start("gate"))
        _say_times("the gate opened, from the start of its process", warm_open_s)
        _, warm, vectors = self._serve()
        _say_times(f"first embeddings: {len(vectors)} sentences", warm[-1])
        after = self._fetched_bytes()
        say(f"   holdfast_fetch_bytes_total: {fetched:.0f} before, {after:.0f} after")
        say(_bold(f"\n6. In slow motion: a second node, on a network of {self._rate}, and its pod's gate"))
        slow_daemon = self._start("daemon-2")
        self._wait_ready(slow_daemon)
        slow_gate, slow_fetch_s, slow_open_s = self._open_cold_gate("gate-2", "node-2")
        _say_times("from wanted to open", slow_fetch_s + slow_open_s)
        self._running.end(slow_gate, slow_daemon)
        say(_bold("\n7. Cold and warm"))
        say(f"   {'':<50}{'cold':>12}{'warm':>12}")
        _say_times("publish into S3, once for all nodes", publish_s, None)
        _say_times("fetch, verify, publish on the node", fetch_s, None)
        _say_times("gate opens (warm: all of its process)", open_s, warm_open_s)
        _say_times("server: Python, torch", cold[0], warm[0])
        _say_times("server: model built, weights mapped", cold[1], warm[1])
        _say_times("server: warmed up and tried", cold[2], warm[2])
        _say_times("first embeddings", cold[3], warm[3])
        _say_times("from wanted to answered", fetch_s + open_s + sum(cold), warm_open_s + sum(warm))
        say(f"   {'bytes fetched':<50}{format_size(fetched):>12}{format_size(after - fetched):>12}")
        say(_NOTE)

    def invite(self) -> None:
        """Print the addresses, files and commands to look at."""
        quoted, program = shlex.quote(str(self._folder)), processes.holdfast()
        say(_INVITATION.format(**self._at, folder=self._folder, quoted=quoted, holdfast=program))

    def _publish(self) -> float:
        argv = [processes.rclone(), "serve", "s3", "--addr", self._at["s3"], str(self._folder / "s3")]
        s3 = self._running.start("s3", argv, self._s3_environment)
        self._running.wait(lambda: self._at["s3"] in "".join(s3.lines), s3, "its address")
        say(f"   an S3 server (rclone) on http://{self._at['s3']}, with fresh keys")
        publish = self._start("publish")
        took_s = self._running.wait(lambda: publish.poll() == 0, publish, "all was uploaded", timeout_s=600.0)
        self._running.end(publish)
        _say_times("hashed, uploaded, manifest last; its digest:", took_s)
        digest = next(line for line in reversed(publish.lines) if line.startswith("sha256:"))
        say(f"   {digest}")
        (self._folder / "catalog.yaml").write_text(CATALOG % digest)
        return took_s

    def _open_cold_gate(self, name: str, node: str) -> tuple[processes.DemoProcess, float, float]:
        """Start a gate and pull its version; return the gate, the seconds to the version's symlink, and on to open."""
        layout, gate = Layout(self._folder / node), self._start(name)
        self._running.wait(lambda: bool(gate.lines), gate, "a first line")
        began = time.monotonic()
        say(f"   {_dim(f'$ {processes.holdfast()} pull {_REF} --no-wait --root $D/{node}')}")
        ControlClient(layout).pull(_REF, None, refresh=False)
        self._running.wait(lambda: find_held_version(layout.public, _REF) is not None, gate, f"{_REF} was published")
        return gate, time.monotonic() - began, self._wait_ready(gate)

    def _serve(self) -> tuple[processes.DemoProcess, list[float], list[list[float]]]:
        """Start the server and embed; return the seconds of imports, load, warm-up and embedding, and the vectors."""
        server = self._start("server")
        ready_s, at = self._wait_ready(server), self._at["server"]
        figures, name = processes.ask(at, "/metrics"), "holdfast_server_load_seconds"
        load_s, warm_up_s = (processes.metric(figures, name, f'stage="{stage}"') for stage in ("load", "warm_up"))
        _say_times("ready: imported, weights mapped, model warmed up and tried", ready_s)
        began = time.monotonic()
        answer = json.loads(processes.ask(at, "/v1/embeddings", {"model": _REF.name, "input": _SENTENCES}))
        vectors = [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]
        return server, [ready_s - load_s - warm_up_s, load_s, warm_up_s, time.monotonic() - began], vectors

    def _start(self, name: str) -> processes.DemoProcess:
        self._at.setdefault(name, processes.free_address(self._ports.get(name, 0)))
        command = _COMMANDS[name].format(**self._at, rate=self._rate)
        say(f"   {_dim(f'$ {processes.holdfast()} {command}')}")
        places = {"all-MiniLM-L6-v2/": processes.model_folder()}
        words = [places.get(word, word).replace("$D", str(self._folder)) for word in command.split()]
        env = self._s3_environment if words[0] in ("publish", "daemon") else processes.plain_environment()
        prefix = f"   {_dim('gate │')} "
        show = (lambda line: say(prefix + line.removeprefix("holdfast gate: "))) if words[0] == "gate" else str
        return self._running.start(name, [sys.executable, "-m", "cached", *words], env, show)

    def _wait_ready(self, process: processes.DemoProcess) -> float:
        at = self._at[process.log.stem]
        return self._running.wait(lambda: bool(processes.ask(at, "/readyz")), process, "/readyz answered 200")

    def _fetched_bytes(self) -> float:
        return processes.metric(processes.ask(self._at["daemon"], "/metrics"), "holdfast_fetch_bytes_total")


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors of one length."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def _say_times(what: str, *times_s: float | None) -> None:
    cells = ("-" if time_s is None else _format_seconds(time_s) for time_s in times_s)
    say(f"   {what:<{74 - 12 * len(times_s)}}" + "".join(f"{cell:>12}" for cell in cells))


def _say_similarities(vectors: Sequence[Sequence[float]]) -> None:
    """Print the sentences and the cosines between them: 1 is the same meaning, 0 an unrelated one."""
    width = max(map(len, _SENTENCES))
    say(f"\n   {'cosine similarity':<{width + 3}}" + "".join(f"{row:>6}" for row in range(1, len(vectors) + 1)))
    for row, (sentence, vector) in enumerate(zip(_SENTENCES, vectors, strict=True), start=1):
        say(f"   {row}  {sentence:<{width}}" + "".join(f"{cosine(vector, other):>6.2f}" for other in vectors))


def _format_seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2f} s"
