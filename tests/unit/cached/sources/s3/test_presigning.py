"""URLs that are signed without botocore's machinery, beside those that it signs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cached.sources.s3.address import S3Address
from cached.sources.s3.client import S3Client
from cached.sources.s3.presigning import PROBE_KEY, Presigner, SigningKeys
from tests.support.s3 import isolated_environment

_PLACES = (
    "s3://models/m/?endpoint_url=http://127.0.0.1:9000",
    "s3://models/m/?endpoint_url=https://s3.example.org:8443&addressing_style=virtual",
    "s3://models/m/?region=eu-west-1",
    "s3://mod.els/m/?region=cn-north-1",
    "s3://b--use1-az4--x-s3/m/",
)
_KEYS = ("m/w", "/double//m/./../w", "m/a b+c%25ä😀.bin", "m/~'()*!:@&=$,;#?[]\"|\\^`<>{}", "m/q=1&X-Amz-Date=2")


@asynccontextmanager
async def opened(uri: str) -> AsyncIterator[S3Client]:
    client = S3Client(S3Address.parse(uri), attempts=1, connections=1, read_timeout_s=5.0)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in isolated_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/secret+key")


async def botocores(client: S3Client, key: str, **more: str) -> str:
    parameters = {"Bucket": client.address.bucket, "Key": key, **more}
    url: str = await (await client.api()).generate_presigned_url("get_object", Params=parameters, ExpiresIn=600)
    return url


async def learned(client: S3Client, keys: SigningKeys) -> Presigner:
    found = Presigner.learn(await botocores(client, PROBE_KEY), keys, ())
    assert found is not None
    return found


@pytest.mark.parametrize("token", [None, "to/k+en=="])
@pytest.mark.parametrize("uri", _PLACES)
async def test_a_url_is_botocores_to_the_letter(monkeypatch: pytest.MonkeyPatch, uri: str, token: str | None) -> None:
    """Wherever the bucket is and whatever the key holds, the URL equals the one that botocore signs that second."""
    if token is not None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    keys = SigningKeys("AKIDEXAMPLE", "a/secret+key", token)
    async with opened(uri) as client:
        presigner = await learned(client, keys)
        for key in _KEYS:
            url = await botocores(client, key)
            at = parse_qs(urlsplit(url).query)["X-Amz-Date"][0]
            assert presigner.sign(key, keys, 600, at) == url


@given(key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
@settings(max_examples=50, deadline=None)
async def test_any_key_is_quoted_as_botocore_does(key: str) -> None:
    """No character of a key makes the URL another one than botocore's."""
    keys = SigningKeys("AKIDEXAMPLE", "a/secret+key", None)
    async with opened(_PLACES[0]) as client:
        url = await botocores(client, key)
        at = parse_qs(urlsplit(url).query)["X-Amz-Date"][0]
        assert (await learned(client, keys)).sign(key, keys, 600, at) == url


@pytest.mark.parametrize("secret", ["another", ""])
async def test_what_cannot_be_signed_to_the_letter_is_not_imitated(secret: str) -> None:
    """A URL that these keys would have signed differently teaches nothing: botocore goes on signing."""
    async with opened(_PLACES[0]) as client:
        url = await botocores(client, PROBE_KEY)
    assert Presigner.learn(url, SigningKeys("AKIDEXAMPLE", secret, None), ()) is None
    assert Presigner.learn(url.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), None, ()) is None
    assert Presigner.learn("https://models.example/elsewhere?X-Amz-Signature=1", None, ()) is None


@pytest.mark.parametrize(("uri", "runs"), [(_PLACES[0], 1), (f"{_PLACES[0]}&anonymous=true", 1)])
async def test_botocores_machinery_runs_once_for_a_thousand_files(uri: str, runs: int) -> None:
    """What costs 0.2 ms of the event loop is paid once for a version, not for each of its files."""
    asked: list[str] = []
    async with opened(uri) as client:
        (await client.api()).meta.events.register("before-parameter-build.s3.GetObject", lambda **_: asked.append(""))
        urls = {await client.presign(f"m/{number}", "", 600) for number in range(1000)}
    assert len(urls) == 1000 and len(asked) == runs


async def test_renewed_credentials_sign_the_next_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A role's keys that are about to end are renewed by botocore's chain, and the next URL is signed with the new."""
    count, process = tmp_path / "count", tmp_path / "process"
    process.write_text(
        f"""#!/bin/sh
echo x >> {count}
n=$(wc -l < {count})
end=$(date -u -d '+30 seconds' +%Y-%m-%dT%H:%M:%SZ)
printf '{{"Version": 1, "AccessKeyId": "AK%d", "SecretAccessKey": "s", "SessionToken": "t%d", "Expiration": "%s"}}' \
  $n $n $end
"""
    )
    process.chmod(0o755)
    (tmp_path / "config").write_text(f"[profile role]\ncredential_process = {process}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with opened(f"{_PLACES[0]}&profile=role") as client:
        first, second = [urlsplit(await client.presign("m/w", "", 600)).query for _ in range(2)]
    assert parse_qs(first)["X-Amz-Credential"] != parse_qs(second)["X-Amz-Credential"]
    assert parse_qs(first)["X-Amz-Security-Token"] != parse_qs(second)["X-Amz-Security-Token"]


async def test_a_requester_who_pays_signs_that_too() -> None:
    """`request_payer` is a signed header of the URL, as botocore signs it, and told to who asks there."""
    async with opened(f"{_PLACES[0]}&request_payer=requester") as client:
        url = await client.presign("m/w", "", 600)
        keys, at = SigningKeys("AKIDEXAMPLE", "a/secret+key", None), parse_qs(urlsplit(url).query)["X-Amz-Date"][0]
        probe = await botocores(client, PROBE_KEY, RequestPayer="requester")
        presigner = Presigner.learn(probe, keys, client.signed_headers)
    assert presigner is not None and presigner.sign("m/w", keys, 600, at) == url
    assert client.signed_headers == (("x-amz-request-payer", "requester"),)
    assert parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"] == ["host;x-amz-request-payer"]


async def test_a_named_version_stays_in_the_url() -> None:
    """An object's version, where one is named, is part of what is signed."""
    async with opened(_PLACES[0]) as client:
        url = await client.presign("m/w", "v+1/==", 600)
    assert parse_qs(urlsplit(url).query)["versionId"] == ["v+1/=="]
