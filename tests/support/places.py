"""The places that sources read in tests: real servers (nginx, moto, rclone), a folder, and a Hub's stub, each behind a
proxy that answers badly when a case of the conformance suite says so.

Law: a source of this repository has its place here, a class with the Protocol `cached.conformance.place.Place`, and its
line in `PLACES`.
"""

from __future__ import annotations

import base64
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.contract.trust import Trust
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from tests.support.fake_hub import FakeHub
from tests.support.hub_cases import NAME, TOKEN, write
from tests.support.nginx import nginx
from tests.support.s3 import SECRET_KEY, S3Server

PASSWORD = "verySecretPassword"
SESSION_TOKEN = "verySecretSessionToken" + "A1b2" * 20
NO_SERVER = "a folder has no server in between"
NO_CREDENTIALS = "a folder has no credentials"
FIXED = "a password of a netrc file or a URI does not end"


class Opening(ABC):
    """What every place here has: sources that are opened as the daemon opens them."""

    uri = gone = ""
    secrets: Sequence[str] = ()
    trust = Trust.VERSIONED
    page = 20
    fronts: Sequence[Front] = ()
    refused: Mapping[str, str] = {}

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def open(self, uri: str) -> Source:
        return open_source(uri, self._client)

    def is_bytes(self, request: ProxiedRequest) -> bool:
        return request.method == "GET" and ".bin" in request.path

    @abstractmethod
    def expire(self) -> None:
        """As in `Place`."""


class Folder(Opening):
    """A folder of this machine."""

    refused: Mapping[str, str] = {
        **dict.fromkeys(("truncated", "throttled", "bad_answers"), NO_SERVER),
        **dict.fromkeys(("unauthorised", "expired_in_the_middle", "credentials_stay"), NO_CREDENTIALS),
    }

    def __init__(self, client: HttpClient, folder: Path) -> None:
        super().__init__(client)
        self._folder = folder / "m"
        self._folder.mkdir(parents=True)
        self.uri, self.gone = self._folder.as_uri(), (folder / "gone").as_uri()

    def put(self, files: Mapping[str, bytes]) -> None:
        write(self._folder, dict(files))

    def remove(self, path: str) -> None:
        (self._folder / path).unlink()

    def expire(self) -> None:
        """A folder has no credentials and no addresses that end: the cases that need one are in `refused`."""


class Web(Folder):
    """A folder that nginx serves with an index; the URI has a password."""

    secrets = (PASSWORD, base64.b64encode(f"reader:{PASSWORD}".encode()).decode())
    refused: Mapping[str, str] = {
        "expired_in_the_middle": FIXED,
        "dot_files": "nginx's index does not show them",
    }

    def __init__(self, client: HttpClient, folder: Path, front: Front) -> None:
        super().__init__(client, folder)
        self.fronts = (front,)
        host = front.url.removeprefix("http://")
        self.uri, self.gone = (f"http://reader:{PASSWORD}@{host}/{name}/" for name in ("m", "gone"))
        self._puts = itertools.count()

    def put(self, files: Mapping[str, bytes]) -> None:
        super().put(files)
        written = time.time() - 3600 + next(self._puts)  # nginx's ETag is the mtime in seconds, and the size
        for path in files:
            os.utime(self._folder / path, (written, written))


class Bucket(Opening):
    """A bucket at a real S3 server."""

    secrets: Sequence[str] = (SECRET_KEY,)

    def __init__(self, client: HttpClient, s3: Any, front: Front) -> None:
        super().__init__(client)
        self._s3, self._bucket = s3, f"models-{uuid4().hex[:12]}"
        s3.create_bucket(Bucket=self._bucket)
        self.fronts = (front,)
        self.uri, self.gone = (f"s3://{self._bucket}/{name}/" for name in ("m", "gone"))

    def put(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            self._s3.put_object(Bucket=self._bucket, Key=f"m/{path}", Body=data)

    def remove(self, path: str) -> None:
        self._s3.delete_object(Bucket=self._bucket, Key=f"m/{path}")

    def expire(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
        self.fronts[0].answer(403, body, {"Content-Type": "application/xml"}, choose=self.is_bytes)


class Moto(Bucket):
    """moto takes every key, so that a session token may be sent; its pages are made small on the way."""

    secrets = (SECRET_KEY, SESSION_TOKEN)


class Rclone(Bucket):
    """rclone checks signatures."""

    refused: Mapping[str, str] = {
        "pagination": "its pages have 1,000 keys, and its signatures forbid to ask for smaller ones: moto has it"
    }


class Hub(Opening):
    """A Hub and its CDN: the stub that `tests/support/fake_hub.py` writes from the Hub's documentation."""

    secrets = (TOKEN,)
    trust = Trust.CHECKED

    def __init__(self, client: HttpClient, hub: FakeHub, folder: Path, fronts: Sequence[Front]) -> None:
        super().__init__(client)
        self._hub, self._folder, self.fronts = hub, folder, fronts
        self._files: dict[str, bytes] = {}
        hub.add(NAME, write(folder / "empty", {}))
        self.uri, self.gone = f"hf://{NAME}@main", f"hf://{NAME}@gone"

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files |= files
        self._commit()

    def remove(self, path: str) -> None:
        del self._files[path]
        self._commit()

    def expire(self) -> None:
        for front in self.fronts:
            front.answer(403, b"expired", choose=self.is_bytes)

    def is_bytes(self, request: ProxiedRequest) -> bool:
        return super().is_bytes(request) or (
            request.method == "GET" and not request.path.startswith(("/api", f"/{NAME}"))
        )

    def _commit(self) -> None:
        self._hub.commit(NAME, write(self._folder / uuid4().hex, self._files))


def in_folder(request: pytest.FixtureRequest, client: HttpClient, tmp_path: Path, _stack: ExitStack) -> Opening:
    return Folder(client, tmp_path / "files")


def at_nginx(request: pytest.FixtureRequest, client: HttpClient, tmp_path: Path, stack: ExitStack) -> Opening:
    (tmp_path / "files").mkdir()
    behind = stack.enter_context(nginx(tmp_path / "nginx", tmp_path / "files", "autoindex on;"))
    return Web(client, tmp_path / "files", stack.enter_context(front_of(behind)))


def _at_s3(request: pytest.FixtureRequest, server: S3Server, stack: ExitStack) -> tuple[Any, Front]:
    monkeypatch, front = request.getfixturevalue("monkeypatch"), stack.enter_context(front_of(server.url))
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**server.environment, "AWS_ENDPOINT_URL_S3": front.url}.items():
        monkeypatch.setenv(name, value)
    return server.client(), front


def at_moto(request: pytest.FixtureRequest, client: HttpClient, tmp_path: Path, stack: ExitStack) -> Opening:
    s3, front = _at_s3(request, request.getfixturevalue("moto"), stack)
    front.rewrite = lambda path: f"{path}&max-keys=5" if "list-type=2" in path else path
    request.getfixturevalue("monkeypatch").setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    return Moto(client, s3, front)


def at_rclone(request: pytest.FixtureRequest, client: HttpClient, tmp_path: Path, stack: ExitStack) -> Opening:
    return Rclone(client, *_at_s3(request, request.getfixturevalue("rclone"), stack))


def at_a_hub(request: pytest.FixtureRequest, client: HttpClient, tmp_path: Path, stack: ExitStack) -> Opening:
    hub: FakeHub = request.getfixturevalue("hub")
    monkeypatch = request.getfixturevalue("monkeypatch")
    fronts = [stack.enter_context(front_of(behind)) for behind in hub.behind]
    hub.stand_behind(*(front.url for front in fronts))
    monkeypatch.setenv("HF_ENDPOINT", fronts[0].url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens.add(TOKEN)
    return Hub(client, hub, tmp_path / "commits", fronts)


PLACES: dict[str, Callable[[pytest.FixtureRequest, HttpClient, Path, ExitStack], Any]] = {
    "folder": in_folder,
    "nginx": at_nginx,
    "moto": at_moto,
    "rclone": at_rclone,
    "hub": at_a_hub,
}
