"""MLflow locations: what each form leads to, what the server's answers mean, and what it may not choose."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.core.listing import RemoteFile
from cached.sources.mlflow.proxy import ProxiedArtifacts
from cached.sources.mlflow.server import MlflowServer
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.service.tokens import FixedHeaders
from cached.transport.target import HttpTarget, LocalTarget
from tests.support.fake_mlflow import MODEL_ID, RUN_ID, FakeMlflow, fake_mlflow
from tests.support.hub_cases import write
from tests.support.mlflow_server import mlflow_program, mlflow_server
from tests.support.s3 import S3Server

FILES = {"MLmodel": b"flavors: {}", "data/model.bin": b"weights" * 300_000, "empty.txt": b"", "ñ + ? &.json": b"[]"}
ROOT = f"mlflow-artifacts:/0/{RUN_ID}/artifacts"


@pytest.fixture
def fake(client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMlflow]:
    """A server with a run that logged `model`."""
    with fake_mlflow(tmp_path / "artifacts") as served:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
        served.runs[RUN_ID] = {"artifact_uri": ROOT}
        write(served.folder / "0" / RUN_ID / "artifacts" / "model", FILES)
        yield served


def methods(fake: FakeMlflow) -> list[str]:
    """The methods of the REST API that were called, without their parameters."""
    return [path.partition("?")[0].rpartition("/2.0/mlflow/")[2] for _, path in fake.seen if "/2.0/mlflow/" in path]


async def error_of(uri: str, client: HttpClient) -> HoldfastError:
    """The error of resolving a location."""
    source = open_source(uri, client)
    with pytest.raises(HoldfastError) as caught:
        await source.resolve()
    await source.aclose()
    assert caught.value.remedy
    return caught.value


async def paths(uri: str, client: HttpClient) -> list[str]:
    """The paths of a location's files."""
    return [file.path for file in (await open_source(uri, client).resolve()).files]


@pytest.mark.parametrize(
    ("uri", "revision"),
    [
        ("models:/tiny/2", None),
        ("models:/tiny@champion", "2"),
        ("models:/tiny/latest", "2"),
        ("models:/tiny/Production", "2"),
        (f"models:/{MODEL_ID}", None),
        (f"runs:/{RUN_ID}/model", None),
        (f"models:/{MODEL_ID}?tracking_uri=SERVER", None),
    ],
)
async def test_every_form_leads_to_the_files(
    uri: str, revision: str | None, fake: FakeMlflow, client: HttpClient
) -> None:
    """A version, an alias, the newest version, a stage, a logged model and a run's artifacts are the same files, and a
    moving name says what it led to; an alias is asked for once."""
    fake.add_version("tiny", "s3://elsewhere/x")
    fake.add_version("tiny", f"runs:/{RUN_ID}/model", current_stage="Production")
    fake.aliases["tiny"] = {"champion": "2"}
    fake.logged[MODEL_ID] = {"artifact_uri": f"{ROOT}/model"}
    listing = await open_source(uri.replace("SERVER", fake.url), client).resolve()
    assert {file.path: file.size for file in listing.files} == {path: len(data) for path, data in FILES.items()}
    assert listing.revision == revision
    assert len(set(methods(fake))) == len(methods(fake))


async def test_a_folder_in_a_version(fake: FakeMlflow, client: HttpClient) -> None:
    """Weights in a subfolder are named by it, and a single file by its path."""
    fake.add_version("tiny", f"{ROOT}/model")
    assert await paths("models:/tiny/1/data", client) == ["model.bin"]
    assert await paths("models:/tiny/1/data/model.bin", client) == ["model.bin"]
    assert await paths(f"runs:/{RUN_ID}/model/data/", client) == ["model.bin"]


async def test_a_run_leads_to_the_model_that_it_logged(fake: FakeMlflow, client: HttpClient) -> None:
    """`runs:/id/name` reads a model of MLflow 3, whose files lie apart from the run's."""
    fake.logged[MODEL_ID] = {
        **{"model_id": MODEL_ID, "name": "net", "source_run_id": RUN_ID},
        "artifact_uri": f"mlflow-artifacts:/0/models/{MODEL_ID}/artifacts",
    }
    write(fake.folder / "0" / "models" / MODEL_ID / "artifacts", {"MLmodel": b"x", "data/w.bin": b"y"})
    assert await paths(f"runs:/{RUN_ID}/net", client) == ["MLmodel", "data/w.bin"]
    assert await paths(f"runs:/{RUN_ID}/net/data", client) == ["w.bin"]
    assert sorted(await paths(f"runs:/{RUN_ID}/model", client)) == sorted(FILES)


async def test_files_have_an_etag_where_the_server_has_them(fake: FakeMlflow, client: HttpClient) -> None:
    """Over its own disk a file has the ETag of its bytes, of many files the large ones; a server that ignores ranges is
    never asked for more than one small file to learn that; none is asked by HEAD."""
    fake.add_version("tiny", f"{ROOT}/model")
    few = (await open_source("models:/tiny/1", client).resolve()).files
    assert {file.trust for file in few} == {"versioned", "known"}  # it is known what an empty file is
    write(fake.folder / "0" / RUN_ID / "artifacts" / "model", {f"many/{number}": b"x" for number in range(300)})
    validators = {file.path: file.validator for file in (await open_source("models:/tiny/1", client).resolve()).files}
    assert validators["data/model.bin"].startswith('"') and not validators["MLmodel"]
    fake.ranges = False
    fake.seen.clear()
    listing = await open_source("models:/tiny/1", client).resolve()
    assert not any(file.validator for file in listing.files)
    assert not [path for _, path in fake.seen if "/artifacts/0/" in path and "model.bin" in path]
    assert {method for method, _ in fake.seen} <= {"GET", "POST"}


async def test_a_published_folder_is_known(fake: FakeMlflow, client: HttpClient) -> None:
    """A `holdfast.json` among the artifacts vouches for each file."""
    files = {"config.json": b"{}", "w.bin": b"weights"}
    manifest = Manifest.build([FileEntry(path, "0" * 64, len(data)) for path, data in files.items()])
    write(fake.folder / "published", {**files, "holdfast.json": manifest.canonical()})
    fake.add_version("tiny", "mlflow-artifacts:/published")
    listing = await open_source("models:/tiny/1", client).resolve()
    assert listing.manifest is not None and listing.manifest.digest == manifest.digest
    assert {file.trust for file in listing.files} == {"known"}


async def test_names_that_the_server_misreads_are_refused(fake: FakeMlflow, client: HttpClient) -> None:
    """`#` and `%20` in a name have the problem that the server makes of them; others are read."""
    write(fake.folder / "odd", {"a#b": b"1", "a%20b": b"2", "100%": b"3", "a b": b"4"})
    fake.add_version("tiny", "mlflow-artifacts:/odd")
    source = open_source("models:/tiny/1", client)
    files = {file.path: file for file in (await source.resolve()).files}
    assert {path for path, file in files.items() if file.problem is not None} == {"a#b", "a%20b"}
    for path, data in (("100%", b"3"), ("a b", b"4")):
        target = await source.locate(files[path])
        assert isinstance(target, HttpTarget)
        assert client.fetch(target, 10, Cancellation()).body == data


async def test_files_in_a_store_are_read_there(
    fake: FakeMlflow, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address in a store that this node reads goes to that store's source, and not through the server."""
    write(tmp_path / "shared" / "m", {"w.bin": b"weights"})
    fake.add_version("tiny", (tmp_path / "shared" / "m").as_uri())
    source = open_source(f"models:/tiny/1?file_root={tmp_path}/shared", client)
    (file,) = (await source.resolve()).files
    assert isinstance(target := await source.locate(file), LocalTarget)
    assert target.path.read_bytes() == b"weights" and file.trust == "versioned"
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "x")
    fake.add_version("tiny", "s3://bucket/m")
    error = await error_of("models:/tiny/2", client)
    assert "which leads to s3://bucket/m?endpoint_url=http://127.0.0.1:9" in error.message


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("hdfs://namenode/m", "unknown_store"),
        ("dbfs:/m", "unknown_store"),
        ("s3://bucket/m?endpoint_url=https://thief.example", "bad_address"),
        ("gs://bucket/m?endpoint_url=https://thief.example", "bad_address"),
        ("s3://key:secret@bucket/m", "bad_address"),
        ("s3://bucket/../other", "bad_address"),
        ("https://user:secret@host/m", "bad_address"),
        ("abfss://container@account.dfs.core.evil.example/m", "unknown_store"),
        ("abfss://account.dfs.core.windows.net/m", "bad_address"),
        ("file:///etc", "forbidden_file"),
        ("/etc", "forbidden_file"),
        ("file://host/share", "bad_address"),
        ("file://[host/share", "bad_address"),
        ("s3://[bucket/m", "bad_address"),
        ("mlflow-artifacts://[host/m", "bad_address"),
        ("mlflow-artifacts:/a/../../b", "bad_address"),
        ("mlflow-artifacts://user:secret@host/a", "bad_address"),
        ("models:/other/1/../2", "bad_source"),
    ],
)
async def test_what_a_registry_may_not_choose(source: str, code: str, fake: FakeMlflow, client: HttpClient) -> None:
    """Who registers a version cannot send our credentials elsewhere, read this node's files, or leave a folder; nothing
    secret in an address is shown."""
    fake.add_version("tiny", source)
    error = await error_of("models:/tiny/1", client)
    assert (error.code, error.permanent) == (code, True)
    assert "secret" not in str(error)


async def test_links_out_of_the_allowed_folder(fake: FakeMlflow, client: HttpClient, tmp_path: Path) -> None:
    """A symlink below `file_root` that leads out of it is refused."""
    write(tmp_path / "secrets", {"key": b"x"})
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "m").symlink_to(tmp_path / "secrets")
    fake.add_version("tiny", f"{tmp_path}/shared/m")
    error = await error_of(f"models:/tiny/1?file_root={tmp_path}/shared", client)
    assert error.code == "forbidden_file"


@pytest.mark.parametrize(
    ("status", "permanent", "code"),
    [
        ("PENDING_REGISTRATION", False, "not_ready"),
        ("FAILED_REGISTRATION", True, "not_found"),
        ("LOGGED_MODEL_PENDING", False, "not_ready"),
    ],
)
async def test_a_version_that_is_not_ready(
    status: str, permanent: bool, code: str, fake: FakeMlflow, client: HttpClient
) -> None:
    """A version is read once it is READY: until then it is asked for again, and one that failed is told."""
    fake.add_version("tiny", f"{ROOT}/model", status=status)
    fake.aliases["tiny"] = {"champion": "1"}
    for uri in ("models:/tiny/1", "models:/tiny@champion"):
        error = await error_of(uri, client)
        assert (error.code, error.permanent) == (code, permanent) and status in error.message


async def test_what_is_not_there(fake: FakeMlflow, client: HttpClient) -> None:
    """An unknown model, version, alias, stage, logged model, run and folder are permanent and named."""
    fake.add_version("tiny", f"{ROOT}/gone")
    for uri, words in (
        ("models:/other/1", "not found"),
        ("models:/tiny/9", "version=9"),
        ("models:/tiny@gone", "alias gone not found"),
        ("models:/tiny/Staging", "in the stage 'Staging'"),
        (f"models:/{MODEL_ID}", "Logged model"),
        ("runs:/nope/model", "Run with id=nope"),
        ("models:/tiny/1", "expected artifacts there, found none"),
    ):
        error = await error_of(uri, client)
        assert (error.code, error.permanent) == ("not_found", True) and words in error.message


async def test_sources_in_a_circle(fake: FakeMlflow, client: HttpClient) -> None:
    """A version whose source is itself ends with an error."""
    fake.add_version("tiny", "models:/tiny/1")
    assert (await error_of("models:/tiny/1", client)).code == "circular_source"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, "<!doctype html><html><title>Sign in</title></html>"), "bad_response"),
        ((200, b'{"model_version": {"name'), "bad_response"),
        ((200, b"[]"), "bad_response"),
        ((200, b'{"model_version": 7}'), "bad_response"),
        ((200, {"model_version": {"status": "READY"}, "artifact_uri": ["x"]}), "bad_response"),
        ((401, b"You are not authenticated."), "unauthorized"),
        ((403, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'), "forbidden"),
        ((403, b"Invalid Host header - possible DNS rebinding attack detected"), "forbidden"),
        ((404, "<!doctype html><title>404 Not Found</title>"), "not_found"),
        ((503, b"disabled due to the mlflow server running with `--no-serve-artifacts`."), "forbidden"),
        ((502, b""), "http_502"),
    ],
)
async def test_bad_answers(answer: tuple[int, Any], code: str, fake: FakeMlflow, client: HttpClient) -> None:
    """A page, cut or foreign JSON, a refusal and a server that serves no artifacts are told for what they are."""
    fake.fault = lambda _method, _path: answer
    assert (await error_of("models:/tiny/1", client)).code == code


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", 7, None], ids=lambda name: f"{name!r}"
)
async def test_listings_with_path_tricks(name: object, fake: FakeMlflow, client: HttpClient) -> None:
    """An entry of a listing is a plain name in its folder, or the listing is none."""
    fake.add_version("tiny", f"{ROOT}/model")
    fake.listing = lambda _path: {"files": [{"path": name, "is_dir": False, "file_size": 1}]}
    assert (await error_of("models:/tiny/1", client)).code == "bad_response"


async def test_listings_without_end(fake: FakeMlflow, client: HttpClient) -> None:
    """Folders that nest forever, doubled names and absurd sizes end with an error after few requests."""
    fake.add_version("tiny", f"{ROOT}/model")
    fake.listing = lambda _path: {"files": [{"path": "a", "is_dir": True}]}
    assert (await error_of("models:/tiny/1", client)).code == "too_many_files"
    assert len(fake.seen) < 100
    for entries in (
        [{"path": "a", "file_size": 1}, {"path": "a", "file_size": 2}],
        [{"path": "a", "file_size": -1}],
        [{"path": "a", "file_size": 2**60}],
        [{"path": "a", "is_dir": "no"}],
        {"a": 1},
    ):
        fake.listing = partial(_as_files, entries)
        assert (await error_of("models:/tiny/1", client)).code == "bad_response"


def _as_files(entries: object, _path: str) -> dict[str, object]:
    return {"files": entries}


def _as_presigned(document: object, _method: str, path: str) -> tuple[int, Any] | None:
    return (200, document) if "/presigned/" in path else None


async def test_presigned_addresses_are_read(fake: FakeMlflow, client: HttpClient) -> None:
    """A presigned address is used as long as it says; one that is none, or leads from TLS to plain HTTP or into this
    machine, is refused."""
    fake.store_url = fake.url
    fake.add_version("tiny", f"{ROOT}/model")
    source = open_source("models:/tiny/1", client)
    (file,) = (file for file in (await source.resolve()).files if file.path == "data/model.bin")
    target = await source.locate(file)
    assert isinstance(target, HttpTarget) and "/store/" in target.url and target.lifetime_s is not None
    assert 200 < target.lifetime_s <= 300 and target.if_match == file.validator
    documents: tuple[Any, ...] = ({"url": 7}, {"url": "ftp://host/x"}, [], {"url": fake.url, "headers": {"a": 1}})
    documents += tuple(
        {"url": fake.url, "headers": headers} for headers in ({"a b": "c"}, {"a": "b\r\nc: d"}, {"a": "\u0100"})
    )
    for document in documents:
        fake.fault = partial(_as_presigned, document)
        with pytest.raises(HoldfastError):
            await source.locate(file)


async def test_a_server_elsewhere_names_no_server_of_this_machine(client: HttpClient) -> None:
    """`mlflow-artifacts://host/` is another server, which a server elsewhere cannot make this machine, or its cloud's
    metadata service; it gets no credentials."""
    secret = FixedHeaders(["http://192.0.2.1"], (("Authorization", "Bearer verySecret"),))
    server = MlflowServer("http://192.0.2.1", "http://192.0.2.1", secret)
    for host in ("169.254.169.254", "127.0.0.1:9"):
        source = ProxiedArtifacts(f"mlflow-artifacts://{host}/m", server, client)
        with pytest.raises(Permanent) as caught:
            await source.resolve()
        assert caught.value.code == "insecure_redirect"
        file = RemoteFile("w", "m/w", 1)
        with pytest.raises(Permanent):
            await source.locate(file)


async def test_credentials_go_to_their_server_only(
    fake: FakeMlflow, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's token is for the server of the environment; user and password come before a token, as for
    MLflow; a location may name another server, which gets none of them."""
    fake.token = "verySecret"
    fake.add_version("tiny", f"{ROOT}/model")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "verySecret")
    assert await paths("models:/tiny/1", client)
    assert await paths(f"models:/tiny/1?tracking_uri={fake.url}", client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    assert (await error_of(f"models:/tiny/1?tracking_uri={fake.url}", client)).code == "unauthorized"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert await paths(f"models:/tiny/1?tracking_uri={fake.url}", client)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "verySecret")
    assert (await error_of(f"models:/tiny/1?tracking_uri={fake.url}", client)).code == "unauthorized"


@pytest.mark.parametrize(
    "uri",
    [
        "models:/tiny",
        "models://tiny/3",
        "models:tiny/3",
        "models:/",
        "models:/@champion",
        "models:/tiny@",
        "models:/tiny//3",
        "models:/tiny/3/../4",
        "runs:/",
        "models:/tiny/3?token=sesame",
        "models:/tiny/3?tracking_uri=sesame",
        "models:/tiny/3?tracking_uri=https://user:sesame@host",
        "models:/tiny/3?file_root=sesame",
    ],
)
def test_locations_that_are_none(uri: str, fake: FakeMlflow, client: HttpClient) -> None:
    """A location that is not MLflow's is refused with the right form, and without quoting what may be secret."""
    with pytest.raises(Permanent) as caught:
        open_source(uri, client)
    assert caught.value.code == "bad_source" and "models:/name/3" in caught.value.remedy
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("server", ["", "databricks", "postgresql://me:sesame@db/mlflow", "sqlite:////x.db", "/mlruns"])
def test_servers_that_are_none(server: str, client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRACKING_URI must name a server; a database's URI is not quoted."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with pytest.raises(Permanent) as caught:
        open_source("models:/tiny/1", client)
    assert caught.value.code == "no_tracking_server" and "sesame" not in str(caught.value)


async def test_a_server_that_cannot_be_reached_is_transient(client: HttpClient) -> None:
    """A refused connection is tried again, and the message names the address."""
    error = await error_of("models:/tiny/1?tracking_uri=http://127.0.0.1:9", client)
    assert isinstance(error, Transient) and "127.0.0.1:9" in error.message


async def test_a_real_server_answers_as_the_stub(
    client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the real server: every form leads to the same files, odd names too, and what is not there is told."""
    with mlflow_server(tmp_path / "mlflow") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        run_id, root = server.add_run()
        write(Path(server.destination) / root / "model", FILES)
        model, _ = server.add_version(f"runs:/{run_id}/model", run_id=run_id)
        server.add_version(f"mlflow-artifacts:/{root}/model", model, run_id=run_id)
        server.call("POST", "registered-models/alias", name=model, alias="champion", version="2")
        logged = server.call("POST", "logged-models", experiment_id="0", name="net", source_run_id=run_id)
        info = logged["model"]["info"]
        at = Path(server.destination) / info["artifact_uri"].removeprefix("mlflow-artifacts:/")
        write(at, {"MLmodel": b"x"})
        pending = await error_of(f"models:/{info['model_id']}", client)
        server.call(
            "PATCH", f"logged-models/{info['model_id']}", model_id=info["model_id"], status="LOGGED_MODEL_READY"
        )
        for uri in (f"models:/{model}/1", f"models:/{model}@champion", f"models:/{model}/latest"):
            assert sorted(await paths(uri, client)) == sorted(FILES)
        assert await paths(f"models:/{model}/1/data", client) == ["model.bin"]
        assert await paths(f"models:/{model}/1/data/model.bin", client) == ["model.bin"]
        for uri in (f"models:/{info['model_id']}", f"runs:/{run_id}/net"):
            assert await paths(uri, client) == ["MLmodel"]
        gone = [f"models:/{model}@gone", f"models:/{model}/9", "models:/gone/1", "runs:/gone/model"]
        for uri in (*gone, f"runs:/{run_id}/gone", f"models:/m-{'0' * 32}"):
            assert (await error_of(uri, client)).code == "not_found"
        assert pending.code == "not_ready"
        server.call("DELETE", "model-versions/delete", name=model, version="1")
        assert (await error_of(f"models:/{model}/1", client)).code == "not_found"
        source = open_source(f"models:/{model}/2", client)
        for file in (await source.resolve()).files:
            assert file.size == len(FILES[file.path])
            target = await source.locate(file)
            assert isinstance(target, HttpTarget)
            assert client.fetch(target, 3_000_000, Cancellation()).body == FILES[file.path]


async def test_a_real_server_without_artifacts_leads_to_its_store(
    client: HttpClient, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server whose clients read S3 themselves: so does this one, by S3's own source."""
    mlflow_program()  # before S3's server is started
    moto: S3Server = request.getfixturevalue("moto")
    s3 = moto.client()
    s3.create_bucket(Bucket="direct")
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    with mlflow_server(tmp_path / "mlflow", "s3://direct/root", moto.environment, serves_artifacts=False) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        run_id, path = server.add_run()
        for name, data in FILES.items():
            s3.put_object(Bucket="direct", Key=f"root/{path}/model/{name}", Body=data)
        model, _ = server.add_version(f"runs:/{run_id}/model", run_id=run_id)
        source = open_source(f"models:/{model}/1", client)
        files = (await source.resolve()).files
        await source.aclose()
        assert {file.path: file.size for file in files} == {name: len(data) for name, data in FILES.items()}
        assert {file.key.partition("/")[0] for file in files} == {"root"}
