"""The compared tools: how each fetches the corpus into plain files and makes it durable.

Law: each runs with its fastest options here: files and parts in parallel, space allocated first where possible. None
of them verifies the files, except the bare sum, which is no tool but the least that a verified fetch costs. `sync
FILE…` afterwards calls fsync(2) on each, and its cost counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.measure import Usage, failed, run_program
from bench.origins import BUCKET, Corpus, tool

_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Job:
    """A fetch of `corpus` from the server at `url` into the empty folder `destination`; logs go to `scratch`."""

    corpus: Corpus
    url: str
    environment: Mapping[str, str]
    destination: Path
    scratch: Path
    timeout_s: float

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.corpus.paths]

    @property
    def prefix(self) -> str:
        """Bucket and version, as in a URL."""
        return f"{BUCKET}/{self.corpus.version}"


@dataclass(frozen=True, slots=True)
class Peer:
    """One tool: its row's name, the program, its arguments for a `Job`, and the package that a Python program needs."""

    name: str
    program: str
    arguments: Callable[[Job], list[str]]
    package: str | None = None

    def missing(self) -> str | None:
        """Return why this tool cannot run here; None where it can."""
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None if tool(self.program) else f"{self.program} is not installed"

    def run(self, job: Job) -> Usage:
        """Fetch and sync; return the cost. Raises `Permanent` for an incomplete file."""
        program = tool(self.program) or self.program
        fetched = run_program([program, *self.arguments(job)], job.environment, job.scratch / "peer.log", job.timeout_s)
        arrived = [str(job.destination / name) for name in job.names]
        synced = run_program(["sync", *arrived], job.environment, job.scratch / "sync.log", job.timeout_s)
        for entry in job.corpus.manifest.files:
            found = (job.destination / entry.path).stat().st_size
            if found != entry.size:
                raise failed(f"{self.name}: {entry.path}: expected {entry.size} bytes, found {found}")
        return fetched.then(synced)


def _curl(job: Job) -> list[str]:
    transfers = [
        argument
        for name in job.names
        for argument in ("-o", str(job.destination / name), f"{job.url}/{job.prefix}/{name}")
    ]
    return ["-q", "-sS", "--fail", "--parallel", "--parallel-max", str(_AT_ONCE), *transfers]


def _aria2c(job: Job) -> list[str]:
    listed = job.scratch / "aria2.list"
    listed.write_text("".join(f"{job.url}/{job.prefix}/{name}\n" for name in job.names))
    return [
        *("--no-conf", "--quiet", f"-x{_AT_ONCE}", f"-s{_AT_ONCE}", f"-j{_AT_ONCE}", "--file-allocation=falloc"),
        *("-d", str(job.destination), "-i", str(listed)),
    ]


def _s5cmd(job: Job) -> list[str]:
    return ["--endpoint-url", job.url, "cp", f"s3://{job.prefix}/*.safetensors", f"{job.destination}/"]


def _rclone(job: Job) -> list[str]:
    # Without --ignore-checksum it would read every file again for its MD5, as no other tool here does.
    return [
        *("copy", f":s3,provider=Rclone,env_auth=true,endpoint='{job.url}':{job.prefix}", str(job.destination)),
        *("--config", "/dev/null", "--include", "*.safetensors", "--ignore-checksum"),
        *("--transfers", str(_AT_ONCE), "--multi-thread-streams", str(_AT_ONCE)),
    ]


def _bare(job: Job) -> list[str]:
    program = str(Path(__file__).with_name("bare_fetch.py"))
    files = [word for e in job.corpus.manifest.files for word in (f"{job.url}/{job.prefix}/{e.path}", e.sha256)]
    return ["-I", "-S", program, str(job.destination), *files]


def _boto3(job: Job) -> list[str]:
    program = Path(__file__).with_name("boto3_download.py")
    return ["-P", str(program), job.url, BUCKET, job.corpus.version, str(job.destination), *job.names]


BARE = Peer("bare sum", sys.executable, _bare)
CURL = Peer("curl + sync", "curl", _curl)
HTTP_PEERS = (BARE, CURL, Peer("aria2c + sync", "aria2c", _aria2c))
S3_PEERS = (
    Peer("s5cmd + sync", "s5cmd", _s5cmd),
    Peer("boto3 + sync", sys.executable, _boto3, "boto3"),
    Peer("rclone copy + sync", "rclone", _rclone),
)
