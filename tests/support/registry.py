"""A real registry for tests (the Distribution project's), a process of its own on a free port, and what to put there.

Law: its files are the test's own; nothing outside loopback is contacted. Debian's package `docker-registry` has the
program; a test that needs it is skipped by name where there is none.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from cached.sources.oci.manifest import OCI_IMAGE_CONFIG, OCI_MANIFEST
from tests.support.certificates import Certificates

PROGRAM_VARIABLE = "HOLDFAST_TEST_REGISTRY"  # the path of the program, where it is not on PATH
_START_TIMEOUT_S = 120
_LISTENS = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
_CONFIG = """
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}, formatter: text}}
storage:
{storage}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
  redirect: {{disable: false}}
http: {{addr: "127.0.0.1:0", secret: x, draintimeout: 1s{tls}}}
{more}
"""
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1"
ORAS_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class RunningRegistry:
    """A registry at `host` (`127.0.0.1:port`); `folder`: its files; `auth`: a user and password that its API takes."""

    host: str
    folder: Path
    log: Path

    def put_blob(self, repository: str, data: bytes) -> str:
        """Store a blob; return its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        begun = requests.post(f"http://{self.host}/v2/{repository}/blobs/uploads/", timeout=120)
        begun.raise_for_status()
        location = begun.headers["Location"]
        url = location if location.startswith("http") else f"http://{self.host}{location}"
        done = requests.put(url, params={"digest": digest}, data=data, timeout=120)
        assert done.status_code == 201, done.text
        return digest

    def put_manifest(self, repository: str, reference: str, document: Mapping[str, Any]) -> str:
        """Store a manifest or an index under a tag; return its digest."""
        data = json.dumps(document).encode()
        kind = document["mediaType"]
        url = f"http://{self.host}/v2/{repository}/manifests/{reference}"
        done = requests.put(url, data=data, headers={"Content-Type": kind}, timeout=120)
        assert done.status_code == 201, done.text
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def layer(self, repository: str, data: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
        """Store a blob; return its descriptor. `annotations`: `title` and `filepath`, or full names by `note`."""
        names = {"title": "org.opencontainers.image.title", "filepath": "org.cncf.model.filepath"}
        notes = {names.get(name, name): value for name, value in annotations.items()}
        found: dict[str, Any] = {
            "mediaType": media_type,
            "digest": self.put_blob(repository, data),
            "size": len(data),
        }
        return {**found, "annotations": notes} if notes else found

    def put_artifact(
        self,
        repository: str,
        tag: str,
        layers: Sequence[Mapping[str, Any]],
        config_type: str = "application/vnd.oci.empty.v1+json",
        config: bytes = b"{}",
    ) -> str:
        """Store a manifest of these layers; return its digest."""
        described = {"mediaType": config_type, "digest": self.put_blob(repository, config), "size": len(config)}
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": list(layers)}
        return self.put_manifest(repository, tag, document)

    def put_raw(self, repository: str, tag: str, files: Mapping[str, bytes]) -> str:
        """Store files as a ModelPack artifact with raw layers."""
        layers = [self.layer(repository, data, f"{WEIGHT}.raw", filepath=path) for path, data in files.items()]
        return self.put_artifact(repository, tag, layers, MODEL_CONFIG)

    def put_image(self, repository: str, tag: str, layers: Sequence[bytes], media_type: str = ORAS_LAYER) -> str:
        """Store an image whose layers are these plain or gzipped archives."""
        described = [self.layer(repository, data, media_type) for data in layers]
        plain = [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in layers]
        config = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in plain]},
        }
        return self.put_artifact(repository, tag, described, OCI_IMAGE_CONFIG, json.dumps(config).encode())


def archive(files: Mapping[str, bytes | None], *links: tarfile.TarInfo) -> bytes:
    """Return a plain tar of files (None: a folder), then `links`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, data in files.items():
            header = tarfile.TarInfo(path)
            header.size = len(data or b"")
            header.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            tar.addfile(header, io.BytesIO(data or b""))
        for link in links:
            tar.addfile(link)
    return packed.getvalue()


@contextmanager
def docker_registry(
    folder: Path, *, storage: str = "", more: str = "", certificates: Certificates | None = None
) -> Iterator[RunningRegistry]:
    """Run a registry over `folder/data`. `storage`: another driver's YAML; `more`: further YAML (auth, proxy);
    `certificates`: for TLS."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    driver = storage or f"  filesystem: {{rootdirectory: {json.dumps(str(data))}, maxthreads: 100}}"
    config, log = folder / "config.yml", folder / "registry.log"
    tls = ""
    if certificates is not None:
        tls = f", tls: {{certificate: {certificates.certificate}, key: {certificates.key}}}"
    config.write_text(_CONFIG.format(storage=driver, more=more, tls=tls))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_CA", "REGISTRY_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_program(), "serve", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=inherited,
        )
    try:
        yield RunningRegistry(f"127.0.0.1:{_port(process, log)}", data, log)
    finally:
        process.terminate()
        try:
            process.wait(100)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _program() -> str:
    found = os.environ.get(PROGRAM_VARIABLE) or shutil.which("docker-registry")
    if found is None:
        pytest.skip(f"no registry here: install Debian's docker-registry, or name the program in {PROGRAM_VARIABLE}")
    return found


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = _LISTENS.search(log.read_text(errors="replace"))
        if found is not None:
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise RuntimeError(f"the registry did not start:\n{log.read_text(errors='replace')[-2000:]}")
