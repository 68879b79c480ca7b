"""Azure's credentials: each kind authorizes requests, goes to its own account only and is never told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from cached.contract.errors import HoldfastError
from cached.sources.azure.access import READ, sign_container
from cached.sources.azure.address import AzureAddress
from cached.sources.azure.source import AzureSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.clients import lone_client
from tests.support.fake_azure import ACCOUNT, KEY, FakeAzure, fake_azure
from tests.support.object_stores import ENVIRONMENT

NOW = 1_796_000_000.0


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")  # no machine's identity
    with lone_client(monkeypatch, tmp_path, *ENVIRONMENT) as client:
        yield client


@pytest.fixture
def azure(client: HttpClient) -> Iterator[FakeAzure]:
    with fake_azure(private=True) as server:
        server.put("models", "m/w.bin", b"weights")
        yield server


def source(azure: FakeAzure, client: HttpClient) -> AzureSource:
    return AzureSource(f"az://{ACCOUNT}/models/m/?endpoint_url={azure.endpoint}", client)


async def weights(azure: FakeAzure, client: HttpClient) -> bytes:
    """The file's bytes, by a source with the credentials of the environment."""
    opened = source(azure, client)
    (file,) = (await opened.resolve()).files
    return client.fetch(await opened.locate(file), 100, Cancellation()).body


async def refusal(azure: FakeAzure, client: HttpClient, *secrets: str) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await weights(azure, client)
    shown = repr(caught.value) + str(caught.value)
    assert caught.value.remedy and not any(each in shown for each in (*secrets, *azure.issued))
    return caught.value


def sas(azure: FakeAzure) -> str:
    return sign_container(AzureAddress(ACCOUNT, "models", "", azure.endpoint), KEY, READ, NOW * 2)


def federate(monkeypatch: pytest.MonkeyPatch, azure: FakeAzure, path: Path) -> None:
    """The variables that workload identity puts into a pod."""
    for name, value in {
        "AZURE_CLIENT_ID": "client",
        "AZURE_TENANT_ID": "tenant",
        "AZURE_FEDERATED_TOKEN_FILE": str(path),
        "AZURE_AUTHORITY_HOST": f"{azure.url}/",
    }.items():
        monkeypatch.setenv(name, value)


async def test_a_federated_token_is_read_anew(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Workload identity: the token's file, which the kubelet rotates, is read for each token of ours."""
    path = tmp_path / "token"
    federate(monkeypatch, azure, path)
    for turn in ("first", "second"):
        path.write_text(f"{turn}-assertion\n")
        assert await weights(azure, client) == b"weights"
        form = azure.forms[-1]
        assert form["client_assertion"] == f"{turn}-assertion"
        assert (form["client_id"], form["scope"]) == ("client", "https://storage.azure.com/.default")


async def test_a_clients_secret_gives_a_token(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A service principal's secret serves where there is no federated token."""
    federate(monkeypatch, azure, tmp_path)
    monkeypatch.delenv("AZURE_FEDERATED_TOKEN_FILE")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "s3cret")
    assert await weights(azure, client) == b"weights"
    assert azure.forms[-1]["client_secret"] == "s3cret"


async def test_a_refused_federated_token_is_told(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Entra's own words and the remedy are told; a missing file, and an authority without TLS, are told too."""
    path = tmp_path / "token"
    path.write_text("refused")
    federate(monkeypatch, azure, path)
    error = await refusal(azure, client)
    assert (error.code, error.permanent) == ("unauthorized", True) and "AADSTS700213" in error.message
    path.unlink()
    assert (await refusal(azure, client)).code == "bad_credentials"
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "http://login.example.com")
    assert (await refusal(azure, client)).code == "bad_credentials"


async def test_a_managed_identity_serves_the_machine(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an Azure machine nothing is configured; AZURE_CLIENT_ID chooses one of several identities."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.url)
    monkeypatch.setenv("AZURE_CLIENT_ID", "one-of-several")
    assert await weights(azure, client) == b"weights"
    asked = parse_qs(urlsplit(azure.requests[0][1]).query)
    assert asked["client_id"] == ["one-of-several"] and asked["resource"] == ["https://storage.azure.com/"]
    assert len(azure.issued) == 1


@pytest.mark.parametrize(
    "name", ["AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "?sas", "connection", "connection-sas"]
)
async def test_a_key_and_a_signature_authorize(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A key signs a signature of ours for the container, and is not sent; a signature is used as it is given."""
    given = f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};"
    variable, value = {
        "AZURE_STORAGE_KEY": ("AZURE_STORAGE_KEY", KEY),
        "AZURE_STORAGE_SAS_TOKEN": ("AZURE_STORAGE_SAS_TOKEN", sas(azure)),
        "?sas": ("AZURE_STORAGE_SAS_TOKEN", f"?{sas(azure)}"),
        "connection": ("AZURE_STORAGE_CONNECTION_STRING", f"{given}AccountKey={KEY};EndpointSuffix=core.windows.net"),
        "connection-sas": ("AZURE_STORAGE_CONNECTION_STRING", f"{given}SharedAccessSignature={sas(azure)}"),
    }[name]
    monkeypatch.setenv(variable, value)
    assert await weights(azure, client) == b"weights"
    assert not any(KEY in path for _, path in azure.requests)


async def test_a_signature_ends_with_its_own_time(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a file carries how long its signature is good, so that it is signed anew in time."""
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    opened = source(azure, client)
    (file,) = (await opened.resolve()).files
    target = await opened.locate(file)
    assert target.lifetime_s is not None and 11 * 3600 < target.lifetime_s <= 12 * 3600
    assert "sig=" not in repr(target)


async def test_a_refused_signature_is_told_without_it(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong signature, and an expired one, are permanent; the service's reason is told, and no part of it."""
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2022-11-02&sr=c&sig=s3cret-signature")
    error = await refusal(azure, client, "s3cret-signature")
    assert (error.code, error.permanent) == ("unauthorized", True)
    expired = b"<Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate.</Message>"
    expired += b"<AuthenticationErrorDetail>Signature not valid in the specified time frame: Expiry [x]"
    azure.fail = lambda _method, _path: (403, expired)
    error = await refusal(azure, client, "s3cret-signature")
    assert (error.code, error.permanent) == ("unauthorized", True) and "specified time frame" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AZURE_STORAGE_SAS_TOKEN", "s3cret"),
        ("AZURE_STORAGE_SAS_TOKEN", "sig=s3cret two"),
        ("AZURE_STORAGE_KEY", "s3cret!"),
        ("AZURE_STORAGE_CONNECTION_STRING", "s3cret"),
    ],
)
async def test_a_malformed_secret_is_told_without_it(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The variable is named, its value is not."""
    monkeypatch.setenv(name, value)
    error = await refusal(azure, client, "s3cret")
    assert error.code == "bad_credentials" and name in str(error)


async def test_a_secret_of_another_account_is_not_used(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What names another account is no credential of this one: its requests are anonymous."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "another")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=s3cret")
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    azure.private = False
    longer = f"BlobEndpoint=https://{ACCOUNT}2.blob.core.windows.net;SharedAccessSignature=sig=s3cret"
    for connection in (f"AccountName=another;AccountKey={KEY}", longer):
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
        assert await weights(azure, client) == b"weights"
    assert not any("sig=" in path for _, path in azure.requests)


async def test_no_token_goes_over_plain_http(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A location with an http:// endpoint of another machine is refused, unless it asks for no credentials."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.url)
    with pytest.raises(HoldfastError) as caught:
        await AzureSource(f"az://{ACCOUNT}/models/m/?endpoint_url=http://blob.example.com", client).resolve()
    assert caught.value.code == "bad_source" and "https" in caught.value.message


async def test_a_public_container_needs_no_credentials(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are none, requests are anonymous; a private container then says which were looked for. A machine
    without an identity, and one outside of Azure, are alike."""
    for host in ("http://127.0.0.1:1", azure.url):
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", host)
        azure.has_identity, azure.private = False, False
        assert await weights(azure, client) == b"weights"
        azure.private = True
        error = await refusal(azure, client)
        assert (error.code, error.permanent) == ("unauthorized", True)
        assert "no Azure credentials were found" in error.message and "anonymous=true" in error.remedy


async def test_a_token_that_ends_is_renewed(
    azure: FakeAzure, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token refused in the middle of a listing of many pages is renewed, and the listing is whole."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.url)
    azure.uses, azure.page_size = 3, 1
    for number in range(7):
        azure.put("models", f"m/{number}.bin", b"x")
    assert len((await source(azure, client).resolve()).files) == 8
    assert len(azure.issued) > 2


def test_endpoints_follow_from_the_environment(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public cloud's endpoint, a sovereign cloud's, a connection string's, an emulator's."""
    uri = "az://acme/models/m/"
    assert AzureAddress.parse(uri).endpoint == "https://acme.blob.core.windows.net"
    given = "DefaultEndpointsProtocol=https;AccountName=acme;EndpointSuffix=core.chinacloudapi.cn"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", given)
    assert AzureAddress.parse(uri).endpoint == "https://acme.blob.core.chinacloudapi.cn"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    assert AzureAddress.parse("az://devstoreaccount1/models/").endpoint == "http://127.0.0.1:10000/devstoreaccount1"
    monkeypatch.setenv("AZURE_STORAGE_BLOB_ENDPOINT", "https://{account}.blob.core.usgovcloudapi.net/")
    assert AzureAddress.parse(uri).endpoint == "https://acme.blob.core.usgovcloudapi.net"
