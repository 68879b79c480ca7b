"""Resolve a version of many files at each kind of source, beside one listing by the vendor's own client, in turns.

Law: each side runs in a process of its own that has imported its modules, made its client and listed once; a turn is
one more listing by each. Ours opens the source anew, as the daemon does for each resolve. Servers are the emulators and
registries that run here; the Hub, MLflow and the Git host are the tests' stand-ins, in this process. `--python` names
the interpreter that has the vendors' clients: google-cloud-storage, azure-storage-blob, oras, mlflow-skinny.

Run `python -m bench.listings --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import report, stores
from bench.harness import Workplace, bench_main, workplace
from bench.measure import failed, stop, tail
from bench.origins import BUCKET, loopback_environment, s3_environment, s3_server
from bench.registry import REPOSITORY, push_artifact, registry
from cached.contract.errors import HoldfastError
from tests.support.fake_hub import FakeHub
from tests.support.fake_mlflow import fake_mlflow
from tests.support.git_host import git_host

_TARGET = 1.2
_HERE = Path(__file__).resolve().parent.parent
_LOOP = """
import resource, sys, time
def spent():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
call()
print("ready", flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), spent()
    count = call()
    print(time.perf_counter() - wall, spent() - cpu, count, flush=True)
"""
_OURS = """
import asyncio
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
client, loop = HttpClient(HttpSettings()), asyncio.new_event_loop()
async def resolve():
    source = open_source({source!r}, client)
    try:
        return await source.resolve()
    finally:
        await source.aclose()
def call():
    return len(loop.run_until_complete(resolve()).files)
"""
_ORAS = """
from oras.client import OrasClient
client = OrasClient(insecure=True)
def call():
    return len(client.get_manifest({reference!r})["layers"])
"""
_BOTO3 = """
import boto3
client = boto3.client("s3")
def call():
    pages = client.get_paginator("list_objects_v2").paginate(Bucket={bucket!r}, Prefix="many/")
    return sum(len(page["Contents"]) for page in pages)
"""
_HUB = """
from huggingface_hub import HfApi
client = HfApi()
def call():
    return len(client.model_info({repository!r}, revision="main", files_metadata=True).siblings)
"""
_MLFLOW = """
from mlflow.artifacts import list_artifacts
def call():
    return len(list_artifacts({uri!r}))
"""
_GIT = """
import shutil, subprocess
def call():
    shutil.rmtree({folder!r}, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", "--depth=1", {url!r}, {folder!r}], check=True)
    return len(subprocess.check_output(["git", "ls-tree", "-r", "-l", "HEAD"], cwd={folder!r}).splitlines())
"""
_STORE = """
def call():
    return sum(1 for _ in {listing})
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A version at a running server: `source` is its URI, `client` defines `call`, which lists it with the client that
    `row` names and returns how many files there are."""

    row: str
    source: str
    client: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of source. `needs`: the module of the vendor's client in the interpreter of `--python`, if it is one;
    `serve` gets a folder with the version's files, below the origin as `many`, and runs the server."""

    name: str
    needs: str
    serve: Callable[[Path, Workplace], AbstractContextManager[Place]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.listings", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=1000, help="files of the version (default 1000)")
    parser.add_argument("--turns", type=int, default=15, help="listings by each side (default 15)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter with the vendors' clients")
    parser.add_argument("--only", default="", help=f"some of {','.join(kind.name for kind in _KINDS)}")
    options = parser.parse_args(argv)
    only = [word for word in options.only.split(",") if word]
    rows, targets = [], []
    for kind in _KINDS:
        if only and kind.name not in only:
            continue
        python = _find_interpreter(kind, options)
        if python is None:
            print(f"skipped, {kind.name}: {options.python} has no {kind.needs}: name one that has it with --python")
            continue
        with workplace(None) as place:
            try:
                row, ratio = _measure(kind, python, place, options)
            except HoldfastError as error:
                print(f"skipped, {kind.name}: {error}", flush=True)
                continue
        rows.append(row)
        targets.append(report.Target(f"{kind.name}, wall against {row[1]}", ratio, _TARGET, False, " x"))
        print(f"{kind.name}: {ratio:.2f} x", flush=True)
    head = ["source", "client", "ours, ms", "client, ms", "wall x", "ours, CPU ms", "client, CPU ms", "CPU x"]
    print(f"\n{options.files} files, medians of {options.turns}:\n\n{report.grid(head, rows)}\n")
    print(report.bullets(targets))
    return 0


def _find_interpreter(kind: Kind, options: argparse.Namespace) -> str | None:
    """Return the interpreter with the vendor's client, None without one."""
    for python in (options.python, sys.executable):
        if not kind.needs or not subprocess.run([python, "-c", f"import {kind.needs}"], capture_output=True).returncode:
            return str(python)
    return None


def _measure(kind: Kind, python: str, place: Workplace, options: argparse.Namespace) -> tuple[list[str], float]:
    """Return the row of a table and the ratio of the walls."""
    files = place.origin / BUCKET / "many"
    files.mkdir(parents=True)
    for number in range(options.files):
        (files / f"layer-{number:05}.json").write_text(json.dumps({"layer": number}))
    with kind.serve(files, place) as served, ExitStack() as sides:
        ours = sides.enter_context(_side(sys.executable, _OURS.format(source=served.source), served, place))
        theirs = sides.enter_context(_side(python, served.client, served, place))
        samples = [(ours.list(options.files), theirs.list(options.files)) for _ in range(options.turns)]
    walls = [statistics.median(each[side][0] for each in samples) for side in (0, 1)]
    cpus = [statistics.median(each[side][1] for each in samples) for side in (0, 1)]
    figures = [f"{1000 * walls[0]:.1f}", f"{1000 * walls[1]:.1f}", f"{walls[0] / walls[1]:.2f}"]
    figures += [f"{1000 * cpus[0]:.1f}", f"{1000 * cpus[1]:.1f}", f"{cpus[0] / max(cpus[1], 1e-4):.2f}"]
    return [kind.name, served.row, *figures], walls[0] / walls[1]


class _Side:
    """A process that lists once for each line that it gets."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._read()

    def list(self, expected: int) -> tuple[float, float]:
        """Return the wall and CPU seconds of one listing."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        wall, cpu, count = self._read().split()
        if int(count) != expected:
            raise failed(f"expected {expected} files, found {count}: {tail(self._log)}")
        return float(wall), float(cpu)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line:
            raise failed(f"a process that lists has ended: {tail(self._log)}")
        return line


@contextmanager
def _side(python: str, program: str, served: Place, place: Workplace) -> Iterator[_Side]:
    log = place.scratch / f"side-{len(list(place.scratch.glob('side-*')))}.log"
    environment = {**loopback_environment(), **served.environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-c", program + _LOOP],
            env=environment,
            cwd=_HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        )
    try:
        yield _Side(process, log)
    finally:
        stop(process)


@contextmanager
def _oci(files: Path, place: Workplace) -> Iterator[Place]:
    with registry(place.scratch) as host:
        push_artifact(host, "v1", [(path.name, path) for path in sorted(files.iterdir())])
        reference = f"{host}/{REPOSITORY}:v1"
        yield Place("oras-py get_manifest", f"oci://{reference}", _ORAS.format(reference=reference), {})


@contextmanager
def _s3(files: Path, place: Workplace) -> Iterator[Place]:
    with s3_server(place.origin, place.scratch) as url:
        client, source = _BOTO3.format(bucket=BUCKET), f"s3://{BUCKET}/{files.name}/"
        yield Place("boto3 list_objects_v2", source, client, s3_environment(url))


@contextmanager
def _hub(files: Path, _place: Workplace) -> Iterator[Place]:
    with FakeHub() as hub:
        hub.add("bench/many", files)
        client = _HUB.format(repository="bench/many")
        yield Place("huggingface_hub model_info", "hf://bench/many@main", client, {"HF_ENDPOINT": hub.endpoint})


@contextmanager
def _mlflow(files: Path, _place: Workplace) -> Iterator[Place]:
    with fake_mlflow(files.parent) as server:
        uri = f"models:/bench/{server.add_version('bench', f'mlflow-artifacts:/{files.name}')}"
        environment = {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        yield Place("mlflow list_artifacts", uri, _MLFLOW.format(uri=uri), environment)


@contextmanager
def _git(files: Path, place: Workplace) -> Iterator[Place]:
    if shutil.which("git") is None:
        raise failed("git is not on PATH", "install git")
    with git_host(place.scratch / "repositories") as host:
        host.create("bench/many").commit({path.name: path.read_bytes() for path in files.iterdir()})
        url = f"{host.url}/bench/many.git"
        client = _GIT.format(url=url, folder=str(place.scratch / "clone"))
        yield Place("git clone --depth 1, ls-tree", f"git+{url}@main", client, {})


def _store(
    serve: Callable[[Workplace, int], AbstractContextManager[stores.Store]],
) -> Callable[[Path, Workplace], AbstractContextManager[Place]]:
    @contextmanager
    def served(files: Path, place: Workplace) -> Iterator[Place]:
        with serve(place, 1) as store:
            for path in files.iterdir():
                store.upload(f"many/{path.name}", path)
            client = store.client + _STORE.format(listing=store.listing)
            yield Place(f"{store.name} list_blobs", f"{store.source}many/", client, store.environment)

    return served


_KINDS = (
    Kind("s3", "boto3", _s3),
    Kind("gs", "google.cloud.storage", _store(stores.google)),
    Kind("az", "azure.storage.blob", _store(stores.azure)),
    Kind("oci", "oras.client", _oci),
    Kind("hf", "huggingface_hub", _hub),
    Kind("mlflow", "mlflow", _mlflow),
    Kind("git", "", _git),
)


if __name__ == "__main__":
    sys.exit(bench_main(main))
