"""Real S3 servers for tests: rclone's for bytes, moto's for semantics, each a process of its own on a free port.

Law: each server has its own empty data; nothing outside loopback is contacted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCESS_KEY = "HOLDFASTTESTKEY"
SECRET_KEY = "holdfast-test-secret-0123456789"
REGION = "us-east-1"
_START_TIMEOUT_S = 120
_LISTENS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server: `url` is its endpoint, `log` what it prints."""

    url: str
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use this server, and no file of the user's."""
        return {**isolated_environment(), "AWS_ENDPOINT_URL_S3": self.url, **key_environment()}

    def client(self) -> Any:
        """A boto3 client, to arrange and look at what the code under test does."""
        import boto3  # here: every run of pytest imports this file, also the one in the machine of tests/system/verity
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def isolated_environment() -> dict[str, str]:
    """Keep botocore away from the user's files and the instance's metadata service."""
    return {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": REGION,
        "NO_PROXY": "127.0.0.1,localhost",
    }


def key_environment() -> dict[str, str]:
    """The servers' key, as environment variables."""
    return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """Serve `folder/data` (whose folders are the buckets) with `rclone serve s3`, which checks signatures.

    It caches folders: write through the server, or into `folder/data` before it starts. (`--dir-cache-time 0s` would
    make every removal take seconds.) It answers a range with 200 and ignores If-Match.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    rclone = Path(sys.executable).parent / "rclone"
    command = [str(rclone), "serve", "s3", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    command += ["--addr", "127.0.0.1:0", "--config", str(folder / "rclone.conf"), str(data)]
    with _serving(command, folder / "rclone.log") as server:
        yield server


@contextmanager
def moto_server(folder: Path) -> Iterator[S3Server]:
    """Run moto's server: S3, STS and the rest of AWS in memory; it accepts every key."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _serving(command, folder / "moto.log") as server:
        yield server


@contextmanager
def _serving(command: Sequence[str], log: Path) -> Iterator[S3Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield S3Server(f"http://127.0.0.1:{_port(process, log)}", log)
    finally:
        process.terminate()
        try:
            process.wait(100)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port the server says it listens on: it chose a free one itself, so no two can race for it."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = _LISTENS.search(log.read_text(errors="replace"))
        if found is not None:
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")
