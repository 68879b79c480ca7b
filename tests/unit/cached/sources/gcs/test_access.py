"""Google's credentials: each kind leads to a token, which goes to its endpoint only and is never told."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cached.contract.errors import HoldfastError, Permanent
from cached.sources.gcs.source import GcsSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.clients import lone_client
from tests.support.fake_gcs import FakeGcs, fake_gcs
from tests.support.object_stores import ENVIRONMENT

BUCKET = "acme-models"
SECRET = "s3cret-of-the-file"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    with lone_client(monkeypatch, tmp_path, *ENVIRONMENT, "NO_GCE_CHECK") as client:
        yield client


@pytest.fixture
def gcs(client: HttpClient) -> Iterator[FakeGcs]:
    with fake_gcs(private=True) as server:
        server.put(BUCKET, "m/w.bin", b"weights")
        yield server


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine outside of Google Cloud, where the metadata server has no name."""
    real = socket.getaddrinfo

    def resolve(host: str, *more: Any, **named: Any) -> Any:
        if host == "metadata.google.internal":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


async def weights(gcs: FakeGcs, client: HttpClient) -> bytes:
    """The file's bytes, by a source with the credentials of the environment."""
    source = GcsSource(f"gs://{BUCKET}/m/?endpoint_url={gcs.url}", client)
    (file,) = (await source.resolve()).files
    return client.fetch(await source.locate(file), 100, Cancellation()).body


async def refusal(gcs: FakeGcs, client: HttpClient) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await weights(gcs, client)
    shown = repr(caught.value) + str(caught.value)
    assert caught.value.remedy and SECRET not in shown
    assert not any(token in shown for token in gcs.issued)
    return caught.value


async def test_the_metadata_server_gives_a_nodes_token(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Google Cloud nothing is configured: one request for a token serves listing and files."""
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    assert await weights(gcs, client) == b"weights"
    assert len(gcs.issued) == 1


def external_account(gcs: FakeGcs, folder: Path) -> dict[str, Any]:
    (folder / "token").write_text(f"{SECRET}-subject\n")
    return {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{gcs.url}/v1/token",
        "credential_source": {"file": str(folder / "token")},
    }


def external_in_json(gcs: FakeGcs, folder: Path) -> dict[str, Any]:
    (folder / "token.json").write_text(json.dumps({"id_token": f"{SECRET}-subject"}))
    form = {"type": "json", "subject_token_field_name": "id_token"}
    return external_account(gcs, folder) | {
        "credential_source": {"file": str(folder / "token.json"), "format": form},
        "workforce_pool_user_project": "7",
    }


def external_from_a_url(gcs: FakeGcs, folder: Path) -> dict[str, Any]:
    form = {"type": "json", "subject_token_field_name": "token"}
    source = {"url": f"{gcs.url}/subject", "headers": {"Metadata": "True"}, "format": form}
    return external_account(gcs, folder) | {"credential_source": source}


def external_that_impersonates(gcs: FakeGcs, folder: Path) -> dict[str, Any]:
    url = f"{gcs.url}/v1/projects/-/serviceAccounts/reader@acme.iam.gserviceaccount.com:generateAccessToken"
    return external_account(gcs, folder) | {"service_account_impersonation_url": url}


def authorized_user(gcs: FakeGcs, folder: Path) -> dict[str, Any]:
    given = {"client_id": "id", "client_secret": SECRET, "refresh_token": f"{SECRET}-refresh"}
    return {"type": "authorized_user", "token_uri": f"{gcs.url}/v1/token", **given}


def impersonated(gcs: FakeGcs, folder: Path) -> dict[str, Any]:
    url = external_that_impersonates(gcs, folder)["service_account_impersonation_url"]
    return {
        "type": "impersonated_service_account",
        "service_account_impersonation_url": url,
        "source_credentials": authorized_user(gcs, folder),
        "delegates": [],
    }


def service_account(gcs: FakeGcs, folder: Path) -> dict[str, Any]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "client_email": "reader@acme.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "token_uri": f"{gcs.url}/v1/token",
    }


KINDS = [
    external_account,
    external_in_json,
    external_from_a_url,
    external_that_impersonates,
    authorized_user,
    impersonated,
    service_account,
]


def name_file(monkeypatch: pytest.MonkeyPatch, folder: Path, document: Any) -> Path:
    path = folder / "credentials.json"
    path.write_text(json.dumps(document))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_credential_file_gives_a_token(
    gcs: FakeGcs,
    client: HttpClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: Callable[[FakeGcs, Path], dict[str, Any]],
) -> None:
    """Workload identity federation, a person's login, a key and an impersonation all read a private bucket; the token
    that reads is for reading only."""
    name_file(monkeypatch, tmp_path, kind(gcs, tmp_path))
    assert await weights(gcs, client) == b"weights"
    assert gcs.authorizations[-1] == f"Bearer {gcs.issued[-1]}"
    last = gcs.forms[-1]
    assert "devstorage.read_only" in str(last.get("scope", "")) or "assertion" in last or "refresh_token" in last


async def test_a_login_of_gcloud_is_found(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a named file that of `gcloud auth application-default login` counts."""
    (tmp_path / "application_default_credentials.json").write_text(json.dumps(authorized_user(gcs, tmp_path)))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    assert await weights(gcs, client) == b"weights"


async def test_a_refused_credential_is_told_without_its_secrets(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The endpoint's words, the file and the remedy are told, and no token."""
    path = name_file(monkeypatch, tmp_path, authorized_user(gcs, tmp_path) | {"refresh_token": "refused"})
    error = await refusal(gcs, client)
    assert (error.code, error.permanent) == ("unauthorized", True)
    assert "expired or revoked" in error.message and str(path) in error.message


@pytest.mark.parametrize(
    "change",
    [
        {"type": "magic"},
        {"token_url": "http://sts.example.com/v1/token"},
        {"token_url": "not a url"},
        {"audience": ""},
        {"credential_source": {"executable": {"command": "/bin/true"}}},
        {"credential_source": {"environment_id": "aws1", "url": "http://169.254.169.254/"}},
        {"credential_source": {"file": "/nowhere/token"}},
        {"credential_source": {"file": "a\0b"}},
        {"credential_source": []},
        {"credential_source": {"file": "/dev/null", "format": {"type": "json", "subject_token_field_name": "t"}}},
    ],
)
async def test_a_bad_credential_file_is_told(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any]
) -> None:
    """What is expected and what was found is told with the file's name; a secret never goes over plain HTTP."""
    path = name_file(monkeypatch, tmp_path, external_account(gcs, tmp_path) | change)
    error = await refusal(gcs, client)
    assert error.code == "bad_credentials"
    assert any(each in error.message for each in (str(path), "/nowhere/token", "embedded null"))
    assert gcs.forms == []


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
async def test_a_file_that_is_no_credentials_is_told(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    """Any content of the named file gives an error about it; a missing file too."""
    path = tmp_path / "credentials.json"
    path.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    assert (await refusal(gcs, client)).code == "bad_credentials"
    path.unlink()
    assert (await refusal(gcs, client)).code == "bad_credentials"


async def test_a_key_needs_its_extra(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the package that signs, the error names the extra to install."""
    name_file(monkeypatch, tmp_path, service_account(gcs, tmp_path))
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    error = await refusal(gcs, client)
    assert (error.code, error.permanent) == ("missing_extra", True) and "holdfast[gcs-keys]" in error.remedy


async def test_a_public_bucket_needs_no_credentials(gcs: FakeGcs, client: HttpClient, outside: None) -> None:
    """Where there are none, requests are anonymous; a private bucket then says which were looked for."""
    gcs.private = False
    assert await weights(gcs, client) == b"weights"
    gcs.private = True
    error = await refusal(gcs, client)
    assert (error.code, error.permanent) == ("unauthorized", True)
    assert "no Google credentials were found" in error.message and "anonymous=true" in error.remedy


async def test_a_pod_without_a_service_account_is_anonymous(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metadata server that knows no identity is no error of a public bucket."""
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    gcs.private, gcs.has_identity = False, False
    assert await weights(gcs, client) == b"weights"


async def test_a_portal_is_no_metadata_server(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of Google Cloud its name may lead to a portal, whose pages are no error of a public bucket."""
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    gcs.private = False
    for answer in ((200, b"<html>Sign in"), (403, b"no")):
        gcs.fail = partial(portal, answer)
        assert await weights(gcs, client) == b"weights"


def portal(answer: tuple[int, bytes], _method: str, path: str) -> tuple[int, bytes] | None:
    return answer if path.startswith("/computeMetadata") else None


async def test_a_silent_metadata_server_is_no_lack_of_credentials(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside Google Cloud a failure of the metadata server is transient: requests do not go on without a token."""
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    error = await refusal(gcs, client)
    assert (error.code, error.permanent) == ("connect", False)
    assert not any(path.startswith("/storage") for _, path in gcs.requests)


async def test_anonymous_asks_for_no_credentials(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`anonymous=true` sends no token, though there is one."""
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    gcs.private = False
    source = GcsSource(f"gs://{BUCKET}/m/?endpoint_url={gcs.url}&anonymous=true", client)
    (file,) = (await source.resolve()).files
    assert client.fetch(await source.locate(file), 100, Cancellation()).body == b"weights"
    assert set(gcs.authorizations) == {""}


async def test_a_token_that_ends_is_renewed(gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token refused in the middle of a listing of many pages is renewed, and the listing is whole."""
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    gcs.uses, gcs.page_size = 3, 1
    for number in range(7):
        gcs.put(BUCKET, f"m/{number}.bin", b"x")
    source = GcsSource(f"gs://{BUCKET}/m/?endpoint_url={gcs.url}", client)
    assert len((await source.resolve()).files) == 8
    assert len(gcs.issued) > 2


async def test_no_token_goes_over_plain_http(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location with an http:// endpoint of another machine is refused, unless it asks for no credentials."""
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    with pytest.raises(Permanent) as caught:
        await GcsSource(f"gs://{BUCKET}/m/?endpoint_url=http://gcs.example.com", client).resolve()
    assert caught.value.code == "bad_source" and "https" in caught.value.message


async def test_no_token_goes_to_an_emulator(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """STORAGE_EMULATOR_HOST means a test server, which gets no credentials of the environment."""
    name_file(monkeypatch, tmp_path, authorized_user(gcs, tmp_path))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.host)
    gcs.private = False
    source = GcsSource(f"gs://{BUCKET}/m/", client)
    await source.resolve()
    assert gcs.issued == [] and set(gcs.authorizations) == {""}


async def test_a_forbidden_bucket_names_the_role(
    gcs: FakeGcs, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """403 with credentials quotes the service's words and says what to grant."""
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    said = b'{"error": {"code": 403, "message": "r@acme does not have storage.objects.list access to the bucket."}}'
    gcs.fail = lambda _method, path: (403, said) if path.startswith("/storage") else None
    error = await refusal(gcs, client)
    assert isinstance(error, Permanent) and error.code == "forbidden"
    assert "storage.objects.list" in error.message and "roles/storage.objectViewer" in error.remedy
