"""Versions that a registry of models leads to, pulled by a real daemon that is killed in the middle."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import daemon_process, model, prefetched
from tests.support.fake_mlflow import RUN_ID, fake_mlflow
from tests.support.hub_cases import write
from tests.support.mlflow_server import mlflow_server

V1 = ModelRef("tiny", "v1")
MIB = 1024 * 1024
BIG = 100 * MIB
FILES = {"MLmodel": b"flavors: {}", "data/empty.txt": b""}
TOKEN = "verySecretTrackingToken"


@contextmanager
def registered(kind: str, folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Serve a model `tiny` with the alias `champion`; yields the URL, the folder of its files and a location."""
    if kind == "stub":
        with fake_mlflow(folder / "artifacts") as fake:
            fake.token = TOKEN
            fake.runs[RUN_ID] = {"artifact_uri": "mlflow-artifacts:/run"}
            fake.add_version("tiny", f"runs:/{RUN_ID}/model")
            fake.aliases["tiny"] = {"champion": "1"}
            yield fake.url, fake.folder / "run" / "model", "models:/tiny@champion"
        return
    with mlflow_server(folder / "mlflow") as server:
        run_id, root = server.add_run()
        name, version = server.add_version(f"runs:/{run_id}/model", run_id=run_id)
        server.call("POST", "registered-models/alias", name=name, alias="champion", version=version)
        yield server.url, Path(server.destination) / root / "model", f"models:/{name}@champion"


@pytest.mark.parametrize("kind", ["stub", "server"])
def test_a_killed_pull_of_a_registered_model_goes_on(kind: str, tmp_path: Path) -> None:
    """A version behind an alias comes whole through the server; after kill -9 in the middle of a large file the next
    start asks for its rest only; what is vouched for is told, the token is not."""
    with registered(kind, tmp_path) as (url, folder, uri):
        files = {**FILES, "data/model.bin": random.Random(5).randbytes(BIG)}
        write(folder, files)
        options = ("--scrub-rate", "0", "--connections", "1", "--max-bandwidth", "50MiB/s")
        environment = {"MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_TOKEN": TOKEN}
        with daemon_process(tmp_path / "node", *options, environment=environment) as daemon:
            daemon.write_catalog({"tiny": model(uri)})
            daemon.start()
            daemon.pull("tiny@v1")
            daemon.wait(lambda: (daemon.status(V1) or {}).get("bytes_done", 0) > 70 * MIB, "70 MiB")
            first = daemon.metric("holdfast_fetch_bytes_total", source="mlflow")
            daemon.kill()
            daemon.start()
            daemon.wait_ready(V1)
            second = daemon.metric("holdfast_fetch_bytes_total", source="mlflow")
            assert second < BIG and first + second <= BIG + 64 * MIB
            assert daemon.files(V1) == files
            status = daemon.status(V1) or {}
            assert (status["trust"], status["source"]) == ("versioned", uri)
            assert TOKEN not in daemon.log_file.read_text() + json.dumps(status) + daemon.get("/metrics")[1]


def test_an_alias_that_moves_is_a_change_without_any_validator(tmp_path: Path) -> None:
    """A version that follows an alias takes the files of the version that has it now, also where these have the names
    and sizes of the former ones, and the server vouches for nothing."""
    with fake_mlflow(tmp_path / "artifacts") as fake:
        fake.ranges = False
        for number in "12":
            write(fake.folder / number, {"config.json": b"{}", "w.bin": number.encode() * 2 * MIB})
            fake.add_version("tiny", f"mlflow-artifacts:/{number}")
        fake.aliases["tiny"] = {"champion": "1"}
        options = ("--scrub-rate", "0", "--resolve-interval", "0.2s")
        with daemon_process(tmp_path / "node", *options, environment={"MLFLOW_TRACKING_URI": fake.url}) as daemon:
            daemon.write_catalog({"tiny": {**prefetched("models:/tiny@champion"), "follow": True}})
            daemon.start()
            daemon.wait_ready(V1)
            assert daemon.files(V1)["w.bin"][:1] == b"1"
            fake.aliases["tiny"] = {"champion": "2"}
            daemon.wait(lambda: daemon.files(V1)["w.bin"][:1] == b"2", "the files of the alias")
