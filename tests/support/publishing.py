"""`holdfast publish` as the program people run, and a look at what it leaves."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.s3 import S3Server


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cached.cli", "publish", *map(str, arguments)]


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's, without what would change what a publish does, and `more`."""
    return {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "HOLDFAST_"))} | dict(more)


def publish(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(env or {}), capture_output=True, text=True, timeout=100, check=False
    )


def published(*arguments: object, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Publish with `--json`, expecting success; returns the JSON object."""
    done = publish(*arguments, "--json", env=env)
    assert done.returncode == 0, done.stderr
    line, digest = done.stdout.splitlines()
    facts: dict[str, Any] = json.loads(line)
    assert facts["digest"] == digest
    return facts


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tensors(size: int = 1000) -> bytes:
    """A whole safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def new_bucket(server: S3Server) -> str:
    bucket = f"models-{uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=bucket)
    return bucket


def objects(server: S3Server, bucket: str) -> dict[str, bytes]:
    client = server.client()
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {o["Key"]: client.get_object(Bucket=bucket, Key=o["Key"])["Body"].read() for o in listed}
