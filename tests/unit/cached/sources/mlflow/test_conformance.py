"""The conformance suite, asked of an MLflow server that reads its artifacts itself or gives presigned addresses: of a
stub that answers as the real one, and of the real one where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cached.conformance.cases import CASES, run_case
from cached.conformance.front import Front, ProxiedRequest, front_of
from cached.conformance.place import Refused
from cached.conformance.pulling import puller_in
from cached.contract.trust import Trust
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from tests.support.fake_mlflow import RUN_ID, FakeMlflow, fake_mlflow
from tests.support.hub_cases import write
from tests.support.mlflow_server import MlflowServer, mlflow_program, mlflow_server
from tests.support.s3 import S3Server

TOKEN = "verySecretTrackingToken"
NAMES = "the server refuses `#` in a name and decodes `%` in it; test_source.py has the other odd names"
FIXED = "a token of the environment does not end"
BUCKET = "artifacts"


class Proxied:
    """A model whose files lie in a folder of the server; `fronts`: before the server, and before its store if it gives
    presigned addresses."""

    trust, page = Trust.VERSIONED, 20
    secrets: Sequence[str] = (TOKEN,)

    def __init__(self, client: HttpClient, folder: Path, fronts: Sequence[Front], model: str) -> None:
        self._client, self._folder, self.fronts = client, folder, fronts
        self.uri, self.gone = f"models:/{model}/1", f"models:/{model}@gone"
        self.refused: Mapping[str, str] = {
            "odd_names": NAMES,
            **({"expired_in_the_middle": FIXED} if len(fronts) == 1 else {}),
        }

    def open(self, uri: str) -> Source:
        return open_source(uri, self._client)

    def put(self, files: Mapping[str, bytes]) -> None:
        write(self._folder, dict(files))

    def remove(self, path: str) -> None:
        (self._folder / path).unlink()

    def is_bytes(self, request: ProxiedRequest) -> bool:
        path = request.path.partition("?")
        return request.method == "GET" and ".bin" in path[0] and "/presigned/" not in path[0]

    def expire(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
        self.fronts[-1].answer(403, body, {"Content-Type": "application/xml"}, choose=self.is_bytes)


class InBucket(Proxied):
    """A model whose files lie in a bucket that only the server knows."""

    def __init__(self, client: HttpClient, s3: Any, prefix: str, fronts: Sequence[Front], model: str) -> None:
        super().__init__(client, Path("/nowhere"), fronts, model)
        self._s3, self._prefix = s3, prefix

    def put(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            self._s3.put_object(Bucket=BUCKET, Key=f"{self._prefix}/{path}", Body=data)

    def remove(self, path: str) -> None:
        self._s3.delete_object(Bucket=BUCKET, Key=f"{self._prefix}/{path}")


def at_stub(fake: FakeMlflow, client: HttpClient, stack: ExitStack, presigned: bool) -> Proxied:
    fake.token = TOKEN
    fake.runs[RUN_ID] = {"artifact_uri": f"mlflow-artifacts:/0/{RUN_ID}/artifacts"}
    fake.add_version("tiny", f"runs:/{RUN_ID}/model")
    fronts = [stack.enter_context(front_of(fake.url))]
    if presigned:
        fronts.append(stack.enter_context(front_of(fake.url)))
        fake.store_url = fronts[-1].url
    return Proxied(client, fake.folder / "0" / RUN_ID / "artifacts" / "model", fronts, "tiny")


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server over a folder."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def over_s3(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[MlflowServer, Front]]:
    """A server over a bucket, and the front of the store that its presigned addresses lead to."""
    mlflow_program()  # before S3's server is started
    moto: S3Server = request.getfixturevalue("moto")
    moto.client().create_bucket(Bucket=BUCKET)
    with front_of(moto.url) as front:
        environment = {**moto.environment, "MLFLOW_S3_ENDPOINT_URL": front.url}
        with mlflow_server(tmp_path_factory.mktemp("mlflow"), f"s3://{BUCKET}", environment) as server:
            yield server, front


def at_server(place: str, request: pytest.FixtureRequest, client: HttpClient, stack: ExitStack) -> Proxied:
    if place == "server":
        server: MlflowServer = request.getfixturevalue("on_disk")
    else:
        server, store = request.getfixturevalue("over_s3")
        store.mend()
        store.seen.clear()
    run_id, path = server.add_run()
    model, _ = server.add_version(f"runs:/{run_id}/model", run_id=run_id)
    front = stack.enter_context(front_of(server.url))
    if place == "server":
        return Proxied(client, Path(server.destination) / path / "model", [front], model)
    moto: S3Server = request.getfixturevalue("moto")
    return InBucket(client, moto.client(), f"{path}/model", [front, store], model)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", ["stub", "stub-presigned", "server", "server-over-s3"])
async def test_conforms(
    place: str,
    case: str,
    request: pytest.FixtureRequest,
    client: HttpClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An MLflow server keeps each promise of `cached/conformance/cases.py`, or refuses the case by name; it is sent no
    HEAD, or asks it for a part of what it fetches from its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    with ExitStack() as stack, puller_in(tmp_path / f"root-{uuid4().hex[:8]}") as puller:
        if place.startswith("stub"):
            fake = stack.enter_context(fake_mlflow(tmp_path / "artifacts"))
            at = at_stub(fake, client, stack, presigned=place == "stub-presigned")
        else:
            at = at_server(place, request, client, stack)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", at.fronts[0].url)
        try:
            await run_case(case, at, puller)
        except Refused as refused:
            assert case in at.refused
            pytest.skip(str(refused))
        assert not [request for request in at.fronts[0].seen if request.method == "HEAD"]
