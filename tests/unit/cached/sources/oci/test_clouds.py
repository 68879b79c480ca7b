"""Logins by a cloud's identity: ECR at moto; Google and Azure at stubs written from their documentation (Google Cloud,
"Configure authentication to Artifact Registry" and "Access the VM metadata server"; Azure/acr, "AAD-OAuth.md";
Microsoft, "Microsoft identity platform and the OAuth 2.0 client credentials flow")."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cached.conformance.front import front_of
from cached.contract.errors import HoldfastError, Transient
from cached.sources.oci.access import clouds
from cached.sources.oci.access.clouds import find_cloud_login
from cached.sources.oci.access.hosts import VARIABLE
from cached.sources.oci.source import OciSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.http_server import serve_http
from tests.support.s3 import S3Server
from tests.support.silent_names import each_proxy, set_service, silent_name

MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": f"sha256:{'1' * 64}", "size": 2},
    "layers": [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": f"sha256:{'2' * 64}",
            "size": 7,
            "annotations": {"org.cncf.model.filepath": "w.bin"},
        }
    ],
}


@dataclass
class Cloud:
    """A registry, its token server and the cloud's services, on one port. `seen`: paths and what came with them."""

    host: str = ""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    login: str = ""  # the Basic login, or the refresh token, that the token server takes
    broken: bool = False

    def given(self, path: str) -> dict[str, str]:
        return next(found for seen, found in self.seen if seen == path)


@contextmanager
def cloud_of() -> Iterator[Cloud]:
    state = Cloud()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            parts = urlsplit(self.path)
            texts = parts.query, self.rfile.read(length).decode()
            given = {name: values[0] for text in texts for name, values in parse_qs(text).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.seen.append((parts.path, {**headers, **given}))
            self._answer(parts.path, given, headers)

        do_POST = do_GET

        def _answer(self, path: str, given: dict[str, str], headers: dict[str, str]) -> None:
            if path.startswith("/v2/"):
                if headers.get("authorization") == "Bearer registry-token":
                    return self._send(200, MANIFEST)
                realm = f'Bearer realm="http://{state.host}/oauth2/token",service="acme.test"'
                return self._send(401, {"errors": []}, realm)
            if path == "/oauth2/token":
                known = state.login in (given.get("refresh_token"), headers.get("authorization", "").partition(" ")[2])
                key = "access_token" if "refresh_token" in given else "token"
                return self._send(200 if known else 401, {key: "registry-token"} if known else {})
            if path == "/oauth2/exchange":
                return self._send(200, {"refresh_token": "acr-refresh"})
            if path == "/tenant-1/oauth2/v2.0/token" or path == "/metadata/identity/oauth2/token":
                return self._send(200, {"access_token": "entra-token", "expires_in": 3599, "token_type": "Bearer"})
            if path.endswith("/service-accounts/default/token") and not state.broken:
                return self._send(200, {"access_token": "google-token", "expires_in": 3599, "token_type": "Bearer"})
            self._send(404, {})

        def _send(self, status: int, document: dict[str, Any], challenge: str = "") -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            if challenge:
                self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serve_http(Handler) as host:
        state.host = host
        yield state


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with cloud_of() as served:
        yield served


def stands_for(cloud: Cloud, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the stub asked in place of a cloud's registry; return a location there."""
    (tmp_path / "hosts" / registry).mkdir(parents=True)
    (tmp_path / "hosts" / registry / "hosts.toml").write_text(f'server = "http://{cloud.host}"\n')
    monkeypatch.setenv(VARIABLE, str(tmp_path / "hosts"))
    return f"oci://{registry}/acme/m:v1"


async def test_ecr_gives_a_login_for_half_a_day(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, client: HttpClient
) -> None:
    """A registry of ECR is asked about with botocore's own chain, in the region of its name; no other host is."""
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", moto.url)
    host = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    login = find_cloud_login(host, f"https://{host}", client, Cancellation())
    assert login is not None and login.user == "AWS" and login.password
    assert login.password not in repr(login)
    for other in ("ecr.example.com", f"{host}.example.com", "123.dkr.ecr.eu-central-1.amazonaws.com"):
        assert find_cloud_login(other, f"https://{other}", client, Cancellation()) is None


@pytest.mark.parametrize(
    "body",
    [b"[]", b"null", b'{"authorizationData": [null]}', b"[" * 100_000, b" " * (8 * 1024 * 1024) + b"{}"],
    ids=lambda body: repr(body[:40]),
)
async def test_an_answer_that_is_not_ecrs_is_told(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, client: HttpClient, body: bytes
) -> None:
    """JSON of another form, or without an end, is a strange answer, of which no more than a limit is read."""
    host = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    with front_of("http://127.0.0.1:9") as front:
        for name, value in {**moto.environment, "AWS_ENDPOINT_URL_ECR": front.url}.items():
            monkeypatch.setenv(name, value)
        front.answer(200, body, {"Content-Type": "application/x-amz-json-1.1"}, times=None)
        with pytest.raises(Transient):
            find_cloud_login(host, f"https://{host}", client, Cancellation())


@each_proxy
async def test_a_silent_name_server_is_told_as_ecr_out_of_reach(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str], client: HttpClient
) -> None:
    """ECR's name that is never resolved is told after two waits, which are bounded: in 10 s, whatever the C library
    does."""
    assert 2 * (clouds._ECR_CONNECT_S + 1) <= 10
    host = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    set_service(monkeypatch, moto.environment, "AWS_ENDPOINT_URL_ECR", proxies)
    monkeypatch.setattr(clouds, "_ECR_CONNECT_S", 0.05)
    with silent_name("api.invalid", monkeypatch) as lookups, pytest.raises(Transient) as caught:
        find_cloud_login(host, f"https://{host}", client, Cancellation())
    assert caught.value.code == "login" and host in caught.value.message and caught.value.remedy
    assert 1 <= lookups.asked <= 2 and not lookups.waited_out


@pytest.mark.parametrize("registry", ["europe-docker.pkg.dev", "eu.gcr.io"])
async def test_google_gives_its_metadata_servers_token(
    cloud: Cloud, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str
) -> None:
    """The user is `oauth2accesstoken`, the password the token of the machine's or the workload's identity."""
    monkeypatch.setenv("GCE_METADATA_HOST", cloud.host)
    cloud.login = base64.b64encode(b"oauth2accesstoken:google-token").decode()
    uri = stands_for(cloud, registry, tmp_path, monkeypatch)
    assert [file.path for file in (await OciSource(uri, client).resolve()).files] == ["w.bin"]
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    assert cloud.given(path)["metadata-flavor"] == "Google"


async def test_without_a_clouds_identity_a_registry_is_asked_without_a_login(
    cloud: Cloud, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public repository needs none; of a private one the error says where a login belongs."""
    monkeypatch.setenv("GCE_METADATA_HOST", cloud.host)
    cloud.broken, cloud.login = True, "none"
    uri = stands_for(cloud, "europe-docker.pkg.dev", tmp_path, monkeypatch)
    with pytest.raises(HoldfastError) as caught:
        await OciSource(uri, client).resolve()
    assert caught.value.code == "unauthorized" and "cloud identity" in caught.value.remedy


async def test_azure_exchanges_the_workloads_token_at_the_registry(
    cloud: Cloud, client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The federated token becomes Entra's, that becomes the registry's refresh token, and that a token for the
    repository: each sent to its own service only."""
    (tmp_path / "federated").write_text("projected-token\n")
    names = {
        "AZURE_CLIENT_ID": "client-1",
        "AZURE_TENANT_ID": "tenant-1",
        "AZURE_AUTHORITY_HOST": f"http://{cloud.host}/",
    }
    for name, value in {**names, "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "federated")}.items():
        monkeypatch.setenv(name, value)
    cloud.login = "acr-refresh"
    uri = stands_for(cloud, "acme.azurecr.io", tmp_path, monkeypatch)
    assert [file.path for file in (await OciSource(uri, client).resolve()).files] == ["w.bin"]
    entra = cloud.given("/tenant-1/oauth2/v2.0/token")
    assert entra["client_assertion"] == "projected-token" and entra["client_id"] == "client-1"
    exchange = cloud.given("/oauth2/exchange")
    assert (exchange["service"], exchange["access_token"], exchange["tenant"]) == (
        "acme.azurecr.io",
        "entra-token",
        "tenant-1",
    )
    token = cloud.given("/oauth2/token")
    assert token["grant_type"] == "refresh_token" and token["scope"] == "repository:acme/m:pull"
    assert "entra-token" not in json.dumps(token) and "projected-token" not in json.dumps(exchange)
