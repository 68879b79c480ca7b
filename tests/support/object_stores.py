"""Google Cloud Storage and Azure Blob Storage for tests: stand-ins in this process, and the real emulators where they
are installed (`fake-gcs-server` and `azurite-blob` on PATH, or named by HOLDFAST_TEST_FAKE_GCS_SERVER and
HOLDFAST_TEST_AZURITE).

Law: each server has its own empty data, in memory; nothing outside loopback is contacted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote
from uuid import uuid4
from xml.etree import ElementTree

import pytest

from cached.sources.azure.access import WRITE, sign_container
from cached.sources.azure.address import AzureAddress
from tests.support.fake_azure import ACCOUNT, KEY, FakeAzure, md5_of
from tests.support.fake_gcs import FakeGcs
from tests.support.ports import free_port

AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_BYTES = "application/octet-stream"
_START_TIMEOUT_S = 120
ENVIRONMENT = (
    *("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "GCE_METADATA_HOST", "CLOUDSDK_CONFIG"),
    *("AZURE_STORAGE_BLOB_ENDPOINT", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_KEY"),
    *("AZURE_STORAGE_ACCOUNT", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
    *("AZURE_CLIENT_SECRET", "AZURE_AUTHORITY_HOST", "AZURE_POD_IDENTITY_AUTHORITY_HOST"),
)


class Store(Protocol):
    """A bucket or container of the test's own: `uri` of a version in it, and what programs need to use it."""

    @property
    def uri(self) -> str: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    def put(self, path: str, data: bytes) -> None:
        """Store a file of the version."""

    def remove(self, path: str) -> None:
        """Delete a file of the version."""

    def files(self) -> dict[str, bytes]:
        """The files of the version, by path."""


@dataclass
class FakeGcsStore:
    """A bucket of the stand-in."""

    server: FakeGcs
    bucket: str = field(default_factory=lambda: f"models-{uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.server.buckets[self.bucket] = {}
        self.uri = f"gs://{self.bucket}/m/"
        self.environment = {"STORAGE_EMULATOR_HOST": self.server.url}

    def put(self, path: str, data: bytes) -> None:
        self.server.put(self.bucket, f"m/{path}", data)

    def remove(self, path: str) -> None:
        del self.server.buckets[self.bucket][f"m/{path}"]

    def files(self) -> dict[str, bytes]:
        with self.server.lock:
            return {name[2:]: each.data for name, each in self.server.buckets[self.bucket].items()}


@dataclass
class FakeAzureStore:
    """A container of the stand-in."""

    server: FakeAzure
    container: str = field(default_factory=lambda: f"models-{uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.server.containers[self.container] = {}
        self.uri = f"az://{ACCOUNT}/{self.container}/m/"
        self.environment = {"AZURE_STORAGE_BLOB_ENDPOINT": self.server.endpoint, "AZURE_STORAGE_KEY": KEY}

    def put(self, path: str, data: bytes) -> None:
        self.server.put(self.container, f"m/{path}", data, md5=md5_of(data))

    def remove(self, path: str) -> None:
        del self.server.containers[self.container][f"m/{path}"]

    def files(self) -> dict[str, bytes]:
        with self.server.lock:
            return {name[2:]: each.data for name, each in self.server.containers[self.container].items()}


@dataclass
class GcsEmulatorStore:
    """A bucket of fake-gcs-server at `url`."""

    url: str
    bucket: str = field(default_factory=lambda: f"models-{uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.uri = f"gs://{self.bucket}/m/"
        self.environment = {"STORAGE_EMULATOR_HOST": self.url}
        _send("POST", f"{self.url}/storage/v1/b?project=p", f'{{"name": "{self.bucket}"}}'.encode(), "application/json")

    def put(self, path: str, data: bytes) -> None:
        name = quote(f"m/{path}", safe="")
        _send("POST", f"{self.url}/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={name}", data)

    def remove(self, path: str) -> None:
        _send("DELETE", f"{self.url}/storage/v1/b/{self.bucket}/o/{quote(f'm/{path}', safe='')}")

    def files(self) -> dict[str, bytes]:
        listed = json.loads(_send("GET", f"{self.url}/storage/v1/b/{self.bucket}/o?prefix=m/"))
        names = [item["name"] for item in listed.get("items", [])]
        at = f"{self.url}/storage/v1/b/{self.bucket}/o"
        return {name[2:]: _send("GET", f"{at}/{quote(name, safe='')}?alt=media") for name in names}


@dataclass
class AzuriteStore:
    """A container of Azurite at `url`."""

    url: str
    container: str = field(default_factory=lambda: f"models-{uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.uri = f"az://{AZURITE_ACCOUNT}/{self.container}/m/"
        endpoint = f"{self.url}/{AZURITE_ACCOUNT}"
        self.environment = {"AZURE_STORAGE_BLOB_ENDPOINT": endpoint, "AZURE_STORAGE_KEY": AZURITE_KEY}
        address = AzureAddress(AZURITE_ACCOUNT, self.container, "", endpoint)
        self._at = f"{endpoint}/{self.container}"
        self._sas = sign_container(address, AZURITE_KEY, WRITE, time.time())
        create_container(endpoint, self.container)

    def put(self, path: str, data: bytes) -> None:
        url = f"{self._at}/{quote(f'm/{path}', safe='/')}?{self._sas}"
        _send("PUT", url, data, **{"x-ms-blob-type": "BlockBlob", "x-ms-version": "2024-11-04"})

    def remove(self, path: str) -> None:
        _send("DELETE", f"{self._at}/{quote(f'm/{path}', safe='/')}?{self._sas}")

    def files(self) -> dict[str, bytes]:
        listed = _send("GET", f"{self._at}?restype=container&comp=list&prefix=m/&{self._sas}", None)
        names = [each.text or "" for each in ElementTree.fromstring(listed).iterfind("Blobs/Blob/Name")]
        return {name[2:]: _send("GET", f"{self._at}/{quote(name, safe='/')}?{self._sas}") for name in names}


def create_container(endpoint: str, container: str) -> None:
    """Create a container of Azurite, by a request that the account's key signs (Authorize with Shared Key)."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2024-11-04"}
    canonical = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    resource = f"/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/{container}\nrestype:container"
    text = f"PUT\n\n\n\n\n{_BYTES}\n\n\n\n\n\n\n{canonical}{resource}"
    signature = hmac.new(base64.b64decode(AZURITE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(signature).decode()}"
    _send("PUT", f"{endpoint}/{container}?restype=container", b"", **headers)


def _send(method: str, url: str, data: bytes | None = None, kind: str = _BYTES, **more: Any) -> bytes:
    headers = {"Content-Type": kind, **more}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as response:
        found: bytes = response.read()
    return found


@contextmanager
def gcs_emulator(folder: Path) -> Iterator[str]:
    """Run fake-gcs-server; yields its URL. It has pages and generations, no preconditions, and unpacks gzip."""
    program, port = _find("fake-gcs-server", "HOLDFAST_TEST_FAKE_GCS_SERVER"), free_port()
    command = [program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with serving([*command, "-log-level", "error"], port, folder / "fake-gcs-server.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Run Azurite's blob service; yields its URL."""
    program, port = _find("azurite-blob", "HOLDFAST_TEST_AZURITE"), free_port()
    command = [program, "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    with serving(command, port, folder / "azurite.log"):
        yield f"http://127.0.0.1:{port}"


def _find(program: str, variable: str) -> str:
    """The program's path; skips the test without one."""
    found = os.environ.get(variable) or shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed: put it on PATH, or name it in {variable}")
    return found


@contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """Run a server for the block, which begins when it accepts connections."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=log.parent
        )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(100)
