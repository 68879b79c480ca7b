"""Injectors as the processes they are, with a certificate for localhost, and reviews as the API server sends them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.certificates import Certificates, make_certificates
from tests.support.gates import PATIENCE_S, REPOSITORY, wait_for

Json = dict[str, Any]

IMAGE = "registry.example/holdfast-gate:1"


def make_review(pod: Json, **more: Any) -> Json:
    """An AdmissionReview of a pod's creation; `more` replaces fields of its request."""
    request = {
        "uid": str(uuid.uuid4()),
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
        "requestResource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "default",
        "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "groups": []},
        "object": pod,
        "oldObject": None,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {**request, **more}}


def operations_of(response: Json) -> list[Json]:
    """The patch in a review's response; empty where there is none."""
    found: list[Json] = json.loads(base64.b64decode(response["patch"])) if "patch" in response else []
    return found


@dataclass
class RunningInjector:
    """An injector's process; `certificates` is what clients trust."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    certificates: Certificates

    def said(self) -> str:
        """What it logged so far."""
        return Path(self.log.name).read_text()

    def wait_said(self, text: str, times: int = 1) -> None:
        """Wait until it logged `text` so often; fails at once where it ended without."""
        wait_for(lambda: self.said().count(text) >= times or self.process.poll() is not None, text)
        assert self.said().count(text) >= times, self.said()

    def wait(self) -> int:
        """The exit code, once it ends by itself."""
        return self.process.wait(PATIENCE_S)

    def stop(self) -> None:
        """Ask it to end."""
        self.process.send_signal(signal.SIGTERM)

    def reviews(self) -> http.client.HTTPSConnection:
        """A connection to where it answers reviews."""
        host, port = self._address("https://").removesuffix("/mutate").rsplit(":", 1)
        context = ssl.create_default_context(cafile=str(self.certificates.authority))
        return http.client.HTTPSConnection(host, int(port), context=context, timeout=PATIENCE_S)

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body of a GET at its plain port."""
        connection = http.client.HTTPConnection(self._address("http://"), timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    @property
    def plain_address(self) -> str:
        """`HOST:PORT` of its plain port."""
        return self._address("http://")

    def review(self, review: Json) -> Json:
        """The `response` to a review; fails where there is none."""
        with contextlib.closing(self.reviews()) as connection:
            status, body = post(connection, json.dumps(review).encode())
        assert status == 200, body
        answer = json.loads(body)
        assert (answer["kind"], answer["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
        response: Json = answer["response"]
        return response

    def _address(self, scheme: str) -> str:
        self.wait_said(f" on {scheme}")
        return self.said().partition(f" on {scheme}")[2].split()[0]


def post(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a POST at /mutate."""
    connection.request("POST", "/mutate?timeout=10s", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


class Injectors:
    """Starts injectors in `folder`, and ends those that are left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[RunningInjector] = []

    def start(self, *options: str) -> RunningInjector:
        """An injector with a certificate of `folder`, listening anywhere, that stops without delay."""
        self.certify()
        made = self.start_bare(
            *("--gate-image", IMAGE, "--cert-dir", str(self.folder), "--drain", "0"),
            *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"),
            *options,
        )
        made.wait_said("serving the certificate")
        return made

    def start_bare(self, *options: str, environment: Mapping[str, str] | None = None) -> RunningInjector:
        """An injector with these options and no others."""
        log = tempfile.NamedTemporaryFile(dir=self.folder, prefix="injector-")  # noqa: SIM115
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("HOLDFAST_", "KUBERNETES_"))
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "cached.cli", "inject", *options],
            env={**inherited, **(environment or {})},
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        trusted = Certificates(*(self.folder / name for name in ("authority.pem", "certificate.pem", "key.pem")))
        injector = RunningInjector(process, log, trusted)
        self._started.append(injector)
        return injector

    def certify(self) -> None:
        """Write an authority and another certificate, under the names that a mounted Secret has."""
        made = make_certificates(self.folder)
        for source, name in ((made.key, "tls.key"), (made.certificate, "tls.crt")):
            temporary = self.folder / f".{name}"
            temporary.write_bytes(source.read_bytes())
            temporary.replace(self.folder / name)

    def end(self) -> None:
        """Kill what still runs."""
        for injector in self._started:
            with contextlib.suppress(ProcessLookupError):
                injector.process.kill()
            injector.process.wait()
            injector.log.close()
