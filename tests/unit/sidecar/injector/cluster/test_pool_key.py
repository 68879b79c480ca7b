"""The pool's key is made once, over an API server's real sockets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Transient
from cached.peers.serving.key_file import KeyFile
from sidecar.injector import settings
from sidecar.injector.cluster.api import Json, KubeApi
from sidecar.injector.cluster.pool_key import PoolKeyStore, PoolSecret
from tests.support.certificates import make_certificates
from tests.support.fake_api import FakeApi

PLACE = PoolSecret("holdfast", "peers")
SECRETS = "/api/v1/namespaces/holdfast/secrets"
OURS = {"key": base64.b64encode(b"a key of ours, of more than 32 characters").decode()}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    """An API server with an empty Secret, as the manifests make it."""
    with FakeApi(make_certificates(tmp_path), tokens={"first"}) as fake:
        fake.create(SECRETS, {"metadata": {"name": "peers", "labels": {"app": "holdfast"}}, "type": "Opaque"})
        yield fake


@pytest.fixture
def replicas(api: FakeApi, account: Path) -> tuple[PoolKeyStore, PoolKeyStore]:
    made = KubeApi(api.url, account)
    return PoolKeyStore(made, PLACE), PoolKeyStore(made, PLACE)


@dataclass(frozen=True)
class Overtaken(KubeApi):
    """An API server that `act`s between a read and the write that follows."""

    act: Callable[[], object]

    async def replace(self, path: str, body: Json) -> None:
        self.act()
        await KubeApi.replace(self, path, body)


def stored(api: FakeApi) -> dict[str, str]:
    found: dict[str, str] = api.get(PLACE.path)["data"]
    return found


def writes(api: FakeApi) -> list[str]:
    return [asked.method for asked in api.asked if asked.method != "GET"]


async def test_an_empty_secret_gets_a_key(
    api: FakeApi, replicas: tuple[PoolKeyStore, PoolKeyStore], tmp_path: Path
) -> None:
    """The entry `key` is one that daemons take; the Secret keeps its labels, and no right to create is needed."""
    await replicas[0].step()
    (tmp_path / "key").write_bytes(base64.b64decode(stored(api)["key"]))
    assert KeyFile(tmp_path / "key").has_keys()
    assert api.get(PLACE.path)["metadata"]["labels"] == {"app": "holdfast"}
    assert writes(api) == ["PUT"]


async def test_a_key_is_made_once(api: FakeApi, replicas: tuple[PoolKeyStore, PoolKeyStore]) -> None:
    """Of two replicas that start together one makes the key, and neither changes it afterwards; a restarted one does
    not either."""
    await asyncio.gather(*(replica.step() for replica in replicas))
    made = stored(api)
    for replica in (*replicas, replicas[0]):
        await replica.step()
    assert stored(api) == made


async def test_a_person_who_is_quicker_wins(api: FakeApi, account: Path) -> None:
    """A key that is written between the injector's read and its write stays."""
    overtaken = Overtaken(api.url, account, lambda: api.patch(PLACE.path, {"data": OURS}))
    await PoolKeyStore(overtaken, PLACE).step()
    assert stored(api) == OURS


async def test_a_secret_that_never_stays_the_same_is_told(api: FakeApi, account: Path) -> None:
    """Where each write is overtaken by a change that brings no key, the step ends, to be tried again."""
    changes = iter(range(99))
    overtaken = Overtaken(
        api.url, account, lambda: api.patch(PLACE.path, {"metadata": {"labels": {"n": str(next(changes))}}})
    )
    with pytest.raises(Transient, match="changed at every one"):
        await PoolKeyStore(overtaken, PLACE).step()


async def test_a_key_of_ours_is_left(api: FakeApi, replicas: tuple[PoolKeyStore, PoolKeyStore]) -> None:
    """A Secret with a key is not written, whatever else is in it."""
    api.patch(PLACE.path, {"data": {**OURS, "note": "bm8="}})
    await replicas[0].step()
    assert writes(api) == []


async def test_foreign_content_is_left(api: FakeApi, replicas: tuple[PoolKeyStore, PoolKeyStore]) -> None:
    """A Secret that holds something else is not written; the error names the entry that is expected, and no value."""
    api.patch(PLACE.path, {"data": {"pool-key": OURS["key"]}})
    with pytest.raises(HoldfastError, match=r"expected the entry 'key'.* found pool-key") as caught:
        await replicas[0].step()
    assert OURS["key"] not in str(caught.value)
    assert writes(api) == []


async def test_a_secret_that_is_missing_is_named(api: FakeApi, replicas: tuple[PoolKeyStore, PoolKeyStore]) -> None:
    """Without the Secret, which the injector may not create, the error says what that means and what to do; once it is
    there again, it gets a key: another one, as who deletes a key wants it gone."""
    await replicas[0].step()
    before = stored(api)
    api.delete(PLACE.path)
    with pytest.raises(HoldfastError, match="holdfast/peers is not there") as caught:
        await replicas[0].step()
    assert "apply the manifests" in caught.value.remedy
    api.create(SECRETS, {"metadata": {"name": "peers"}, "type": "Opaque"})
    await replicas[0].step()
    assert stored(api) != before


async def test_missing_rights_are_named(api: FakeApi, replicas: tuple[PoolKeyStore, PoolKeyStore]) -> None:
    """A refusal says what was asked and where to look."""
    api.refuse("GET", "secrets", 403)
    with pytest.raises(HoldfastError, match="secrets/peers: 403") as caught:
        await replicas[0].step()
    assert "service account" in caught.value.remedy


def test_where_nothing_is_written_there_is_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    """The key is made where the option says, by default nowhere; an injector that gets its certificate from a folder
    writes nothing, so that the two together are a usage error."""
    given = ["--gate-image", "x", "--namespace", "holdfast"]
    assert settings.parse(given).pool_secret is None
    assert settings.parse([*given, "--peer-secret", "peers"]).pool_secret == PLACE
    with pytest.raises(SystemExit, match="2"):
        settings.parse([*given, "--peer-secret", "peers", "--cert-dir", "/tls"])
    assert "leave one out" in capsys.readouterr().err
