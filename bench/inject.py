"""Measure the injector: the time of a review at a steady rate, on one core.

Law: a real `holdfast inject` process pinned to one core gets reviews over TLS, as from an API server, from other cores.
Times count from when a review was due, not sent, so that a slow answer is charged for all it delays. This program's own
delay in sending has its own row: on a machine with other work it is part of the times.

Run `python -m bench.inject --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench import report
from bench.harness import bench_main, workplace
from bench.machine import append_section, describe
from bench.measure import cpu_seconds, failed, peak_memory, wait_until
from cached.contract.annotations import MODEL, VERSION
from sidecar.injector.https.certificates import CertificateKeys, next_keys

_HOST = "localhost"
_START_S = 30.0
_CONNECTIONS = 8
_TARGET_MS = 10
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Server:
    """An injector's process, its port, and the CA of its certificate."""

    process: subprocess.Popen[bytes]
    port: int
    trust: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds after each review was due: until it was sent, and until its answer arrived."""

    late_s: list[float]
    answered_s: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.inject", description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=int, default=200, help="reviews a second (default 200)")
    parser.add_argument("--seconds", type=int, default=20, help="how long (default 20)")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    body = json.dumps(_review()).encode()
    with workplace(None) as place:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[1:] or cores)
        with _server(place.scratch, cores[0]) as server:
            asyncio.run(_ask(server, body, options.rate, options.rate))  # a second to warm up
            before = cpu_seconds(server.process.pid)
            times = asyncio.run(_ask(server, body, options.rate, options.rate * options.seconds))
            cpu_s = cpu_seconds(server.process.pid) - before
            peak = peak_memory(server.process.pid)
        os.sched_setaffinity(0, cores)
        text = _text(times, cpu_s, peak, options.rate, len(body))
        print(text)
        if options.append:
            append_section("The injector", place.folder, text)
        else:
            print(f"\n{describe(place.folder)}")
    return 0


def _text(times: Times, cpu_s: float, peak: int, rate: int, size: int) -> str:
    count = len(times.answered_s)
    body = [_figures("answered", times.answered_s), _figures("sent", times.late_s)]
    table = report.grid(["after it was due", "p50 ms", "p99", "p99.9", "max"], body)
    what = f"one review of {size / 1024:.0f} KiB over TLS, p99 of {count} at {rate} a second, injector on one core"
    p99 = quantiles(times.answered_s, n=100)[98] * 1000
    target = report.Target(what, p99, _TARGET_MS, at_least=False, unit=" ms")
    cost = f"the injector: {cpu_s / count * 1000:.2f} ms of CPU a review, at most {peak / _MIB:.0f} MiB of memory"
    return f"{table}\n\n{report.bullets([target, cost])}"


def _figures(what: str, seconds: Sequence[float]) -> list[str]:
    cuts = quantiles(seconds, n=1000)
    return [what, *(f"{found * 1000:.2f}" for found in (cuts[499], cuts[989], cuts[998], max(seconds)))]


@contextmanager
def _server(folder: Path, core: int) -> Iterator[Server]:
    """Run an injector pinned to `core`, with a new certificate."""
    keys = next_keys(None, [_HOST], datetime.now(UTC))
    if keys is None:
        raise failed("expected keys, found none")
    (folder / "tls.crt").write_bytes(keys.certificate_pem)
    (folder / "tls.key").write_bytes(keys.key_pem)
    log = folder / "injector.log"
    command = [
        *(sys.executable, "-m", "cached.cli", "inject", "--gate-image", "example/gate:1", "--cert-dir", str(folder)),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--drain", "0"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    os.sched_setaffinity(process.pid, [core])
    try:
        port = wait_until(lambda: _port(log), "the injector serves its certificate", _START_S)
        yield Server(process, port, _trusting(keys))
    finally:
        process.terminate()
        process.wait()


def _port(log: Path) -> int | None:
    said = log.read_text()
    if "serving the certificate" not in said or "reviews on https://" not in said:
        return None
    return int(said.partition("reviews on https://127.0.0.1:")[2].partition("/")[0])


def _trusting(keys: CertificateKeys) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=keys.bundle.decode())


async def _ask(server: Server, body: bytes, rate: int, count: int) -> Times:
    """Send `count` reviews at `rate` a second, however slow the answers are."""
    head = f"POST /mutate HTTP/1.1\r\nHost: {_HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body
    idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for _ in range(_CONNECTIONS):
        idle.put_nowait(await Connection.open(server))
    times = Times([], [])

    async def one(due: float) -> None:
        times.late_s.append(time.perf_counter() - due)
        connection = await idle.get()
        await connection.ask(request)
        times.answered_s.append(time.perf_counter() - due)
        idle.put_nowait(connection)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due = began + number / rate
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(one(due))
    while not idle.empty():
        idle.get_nowait().close()
    return times


class Connection:
    """A keep-alive connection, as an API server has."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, server: Server) -> Connection:
        streams = await asyncio.open_connection("127.0.0.1", server.port, ssl=server.trust, server_hostname=_HOST)
        return cls(*streams)

    async def ask(self, request: bytes) -> None:
        """Send a request and read the answer; raises `Permanent` unless it is 200 with a patch."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split()[0]
        body = await self._reader.readexactly(int(length))
        if not head.startswith(b"HTTP/1.1 200") or b'"patch"' not in body:
            raise failed(f"expected 200 and a patch, found {head[:40]!r} {body[:200]!r}")

    def close(self) -> None:
        self._writer.transport.abort()


def _review() -> dict[str, Any]:
    """Return a review of some 11 KiB: the size of a Deployment's pod with a service mesh."""
    environment = [{"name": f"SETTING_{number}", "value": "value-" * 8} for number in range(60)]
    mounts = [{"name": f"volume-{number}", "mountPath": f"/mnt/volume-{number}"} for number in range(8)]
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "failureThreshold": 30}
    container = {
        "image": "registry.example/acme/server:2026-11-20",
        "env": environment,
        "volumeMounts": mounts,
        "resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}},
        "startupProbe": probe,
        "readinessProbe": probe,
        "livenessProbe": probe,
    }
    spec = {
        "containers": [{**container, "name": "server"}, {**container, "name": "proxy", "env": environment[:20]}],
        "initContainers": [{"name": "mesh-init", "image": "mesh:1", "volumeMounts": mounts}],
        "volumes": [{"name": mount["name"], "emptyDir": {}} for mount in mounts],
        "tolerations": [{"key": f"key-{number}", "operator": "Exists", "effect": "NoSchedule"} for number in range(6)],
    }
    annotations = {MODEL: "acme/llama", VERSION: "v1", "mesh.example/config": "x" * 1500}
    pods = {"group": "", "version": "v1", "resource": "pods"}
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "operation": "CREATE",
        "resource": pods,
        "namespace": "default",
        "object": {"metadata": {"generateName": "llama-", "annotations": annotations}, "spec": spec},
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}


if __name__ == "__main__":
    sys.exit(bench_main(main))
