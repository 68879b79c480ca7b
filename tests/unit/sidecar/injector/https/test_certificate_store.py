"""Replicas of the injector agree on one certificate, over an API server's real sockets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Transient
from sidecar.injector.cluster.api import KubeApi
from sidecar.injector.https.certificate_store import CertificateObjects, CertificateStore
from sidecar.injector.https.certificates import CA_LIFE, CERTIFICATE_LIFE, SPREAD, CertificateKeys
from sidecar.injector.https.context import ServingTls
from tests.support.certificates import make_certificates
from tests.support.fake_api import FakeApi

PLACE = CertificateObjects("holdfast", "injector-tls", "injector", "holdfast-injector")
SECRET = "/api/v1/namespaces/holdfast/secrets/injector-tls"
SECRETS = SECRET.rpartition("/")[0]
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
START = datetime(2026, 11, 20, tzinfo=UTC)


class Replica:
    """One injector's keeper, with a clock of its own."""

    def __init__(self, api: KubeApi) -> None:
        self.now = START
        self.tls = ServingTls()
        self.keeper = CertificateStore(api, PLACE, self.tls, lambda: self.now)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    """An API server with TLS and a token, and a webhook configuration without a caBundle."""
    with FakeApi(make_certificates(tmp_path), tokens={"first"}) as fake:
        webhooks = [{"name": f"{name}.holdfast.dev", "clientConfig": {"service": {}}} for name in ("a", "b")]
        fake.create(WEBHOOKS, {"metadata": {"name": "injector"}, "webhooks": webhooks})
        yield fake


@pytest.fixture
def replicas(api: FakeApi, account: Path) -> tuple[Replica, Replica]:
    return Replica(KubeApi(api.url, account)), Replica(KubeApi(api.url, account))


def stored(api: FakeApi) -> CertificateKeys:
    return CertificateKeys.from_secret(api.get(SECRET)["data"])


def bundles(api: FakeApi) -> list[bytes]:
    webhooks = api.get(f"{WEBHOOKS}/injector")["webhooks"]
    return [base64.b64decode(webhook["clientConfig"]["caBundle"]) for webhook in webhooks]


def writes(api: FakeApi) -> int:
    return sum(asked.method != "GET" for asked in api.asked)


async def test_from_nothing(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """The first step makes the Secret, serves what is in it, and writes its CA into every webhook."""
    await replicas[0].keeper.step()
    keys = stored(api)
    assert bundles(api) == [keys.bundle] * 2
    assert replicas[0].tls.expires == keys.certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"[]", b"", b"\xff", b"[" * 100_000])
async def test_what_is_no_object_is_tried_again(api: FakeApi, replicas: tuple[Replica, Replica], body: bytes) -> None:
    """A response that is no JSON object is an error of the API server, not the injector's end."""
    api.garble("GET", "secrets", body)
    with pytest.raises(Transient, match=r"GET .*: no JSON object came back"):
        await replicas[0].keeper.step()
    await replicas[0].keeper.step()
    assert stored(api)


async def test_a_step_without_need_writes_nothing(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """When all is well, the API is only read, by whichever replica."""
    await replicas[0].keeper.step()
    before = writes(api)
    for replica in replicas:
        await replica.keeper.step()
    assert writes(api) == before


async def test_an_empty_secret_is_filled(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """A Secret without data, as the manifests make it, is filled and keeps its labels."""
    api.create(SECRETS, {"metadata": {"name": "injector-tls", "labels": {"app": "holdfast"}}, "type": "Opaque"})
    await replicas[0].keeper.step()
    assert stored(api) and api.get(SECRET)["metadata"]["labels"] == {"app": "holdfast"}
    assert "POST" not in {asked.method for asked in api.asked}


async def test_replicas_that_start_together_agree(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """Of two that find nothing one writes, and both serve what it wrote."""
    await asyncio.gather(*(replica.keeper.step() for replica in replicas))
    keys = stored(api)
    assert {replica.tls.certificate for replica in replicas} == {keys.certificate_pem}
    await asyncio.gather(*(replica.keeper.step() for replica in replicas))
    assert bundles(api) == [keys.bundle] * 2


async def test_replicas_that_renew_together_agree(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """Of two that find an old certificate one renews it, and the other takes that."""
    await asyncio.gather(*(replica.keeper.step() for replica in replicas))
    old = stored(api)
    for replica in replicas:
        replica.now = START + CERTIFICATE_LIFE * 3 / 4
    await asyncio.gather(*(replica.keeper.step() for replica in replicas))
    keys = stored(api)
    assert keys.certificate != old.certificate and keys.bundle == old.bundle
    assert {replica.tls.certificate for replica in replicas} == {keys.certificate_pem}


async def test_a_new_authority_is_announced_before_it_signs(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """The webhook trusts old and new CA while the old certificate is still served."""
    one, other = replicas
    await one.keeper.step()
    one.now = START + CA_LIFE / 2
    await one.keeper.step()
    old = stored(api)
    one.now = other.now = START + CA_LIFE * 0.7
    await one.keeper.step()
    both = stored(api)
    assert both.authorities[1:] == old.authorities and both.certificate == old.certificate
    assert bundles(api) == [both.bundle] * 2
    one.now += SPREAD
    await one.keeper.step()
    await other.keeper.step()
    assert stored(api).certificate != both.certificate
    assert other.tls.expires == stored(api).certificate.not_valid_after_utc.timestamp()


async def test_a_bundle_that_was_emptied_comes_back(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """Applying the manifests again takes the CA away for one step only."""
    await replicas[0].keeper.step()
    webhooks = [{"name": "a.holdfast.dev", "clientConfig": {"service": {}}}]
    api.patch(f"{WEBHOOKS}/injector", {"webhooks": webhooks})
    await replicas[0].keeper.step()
    assert bundles(api) == [stored(api).bundle]


async def test_a_secret_that_was_deleted_comes_back(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """What is served is put back, so that no client has to trust anything new."""
    await replicas[0].keeper.step()
    before = stored(api).to_secret()
    api.delete(SECRET)
    await replicas[0].keeper.step()
    assert stored(api).to_secret() == before


async def test_a_foreign_secret_is_left(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """A Secret that holds something else is not overwritten, and the error says so."""
    api.create(SECRETS, {"metadata": {"name": "injector-tls"}, "data": {"tls.crt": "bm8=", "tls.key": "bm8="}})
    with pytest.raises(HoldfastError, match=r"no ca\.crt"):
        await replicas[0].keeper.step()
    assert api.get(SECRET)["data"] == {"tls.crt": "bm8=", "tls.key": "bm8="}


async def test_without_the_api_what_is_served_stays(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """Errors of the API end the step and nothing else."""
    await replicas[0].keeper.step()
    served = replicas[0].tls.expires
    api.refuse("GET", "secrets", 503)
    with pytest.raises(HoldfastError, match="503"):
        await replicas[0].keeper.step()
    api.drop("GET", "secrets", times=9)
    with pytest.raises(HoldfastError, match="check that the API server answers"):
        await replicas[0].keeper.step()
    assert replicas[0].tls.expires == served


async def test_missing_rights_are_named(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """A refusal says what was asked and where to look."""
    api.refuse("GET", "secrets", 403)
    with pytest.raises(HoldfastError, match="GET /api/v1/namespaces/holdfast/secrets/injector-tls: 403") as caught:
        await replicas[0].keeper.step()
    assert caught.value.code == "kube_forbidden" and "service account" in caught.value.remedy


async def test_a_webhook_that_is_missing_is_named(api: FakeApi, replicas: tuple[Replica, Replica]) -> None:
    """Without the configuration the certificate is there and served, and the error names what is missing."""
    api.delete(f"{WEBHOOKS}/injector")
    with pytest.raises(HoldfastError, match="MutatingWebhookConfiguration 'injector'"):
        await replicas[0].keeper.step()
    assert replicas[0].tls.certificate


async def test_a_rotated_token_is_used(api: FakeApi, account: Path, replicas: tuple[Replica, Replica]) -> None:
    """The token is read for every request."""
    await replicas[0].keeper.step()
    api.tokens = {"second"}
    with pytest.raises(HoldfastError, match="401"):
        await replicas[0].keeper.step()
    (account / "token").write_text("second")
    await replicas[0].keeper.step()
