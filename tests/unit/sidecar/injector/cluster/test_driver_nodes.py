"""Which nodes have the CSI driver, from an API server's CSINode objects, over its real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.injector.cluster.api import KubeApi
from sidecar.injector.cluster.driver_nodes import DriverNodes
from tests.support.certificates import make_certificates
from tests.support.fake_api import FakeApi
from tests.support.kube_store import Object

NODES = "/apis/storage.k8s.io/v1/csinodes"
EVERY = float("inf")


def node(name: str, *drivers: str) -> Object:
    listed = [{"name": driver, "nodeID": name, "topologyKeys": None} for driver in drivers]
    return {"metadata": {"name": name}, "spec": {"drivers": listed or None}}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """An API server with a node that has the driver, and one that has another."""
    with FakeApi(tokens={"first"}) as fake:
        fake.create(NODES, node("a", "weights.holdfast.dev", "ebs.csi.aws.com"))
        fake.create(NODES, node("b", "ebs.csi.aws.com"))
        yield fake


@pytest.fixture
def found(api: FakeApi, tmp_path: Path) -> DriverNodes:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(make_certificates(tmp_path).authority.read_bytes())
    (folder / "token").write_text("first\n")
    return DriverNodes(KubeApi(api.url, folder))


@asynccontextmanager
async def running(found: DriverNodes) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group, asyncio.timeout(100):
        task = group.create_task(found.run())
        yield
        task.cancel()
    await asyncio.sleep(0.1)  # the server, which ends next, sees the end of a connection that was just made


async def until(found: DriverNodes, *names: str) -> None:
    while not (found.is_settled and found.names == set(names)):
        await asyncio.sleep(0.01)


async def test_nodes_are_followed(api: FakeApi, found: DriverNodes) -> None:
    """A node counts while its CSINode object has the driver: at the first list, and as objects change, come and go."""
    async with running(found):
        await until(found, "a")
        api.patch(f"{NODES}/b", node("b", "weights.holdfast.dev"))
        api.create(NODES, node("c", "weights.holdfast.dev"))
        await until(found, "a", "b", "c")
        api.patch(f"{NODES}/a", node("a"))
        api.delete(f"{NODES}/c")
        await until(found, "b")


async def test_a_watch_that_fell_behind_lists_again(
    api: FakeApi, found: DriverNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an ERROR event, and after the end of a watch, the nodes are listed anew."""
    monkeypatch.setattr("sidecar.injector.cluster.driver_nodes._PAUSE_S", 0.01)
    async with running(found):
        await until(found, "a")
        api.order_watchers("error 410")
        api.patch(f"{NODES}/b", node("b", "weights.holdfast.dev"))
        await until(found, "a", "b")
        api.order_watchers("end")
        api.delete(f"{NODES}/a")
        await until(found, "b")


async def test_without_the_right_there_is_no_such_node(
    api: FakeApi, found: DriverNodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An injector that may not read CSINode objects knows of no node with the driver, says so once, and serves."""
    monkeypatch.setattr("sidecar.injector.cluster.driver_nodes._REFUSED_PAUSE_S", 0.01)
    api.refuse("GET", NODES, 403, times=EVERY)
    with caplog.at_level(logging.WARNING):
        async with running(found):
            await until(found)
            while sum(asked.path == NODES for asked in api.asked) < 3:
                await asyncio.sleep(0.01)
    told = [record.getMessage() for record in caplog.records if record.name == "sidecar.injector.cluster.driver_nodes"]
    assert len(told) == 1 and "pods get a gate" in told[0] and "403" in told[0]
    assert found.names == set()


async def test_a_lost_api_keeps_what_was_known(
    api: FakeApi, found: DriverNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the API server does not answer, the nodes known last stay; a missed change is found afterwards."""
    monkeypatch.setattr("sidecar.injector.cluster.driver_nodes._PAUSE_S", 0.01)
    async with running(found):
        await until(found, "a")
        api.refuse("GET", NODES, 503, times=EVERY)
        api.order_watchers("drop")
        while sum(asked.path == NODES for asked in api.asked) < 4:
            await asyncio.sleep(0.01)
        assert found.names == {"a"}
        api.patch(f"{NODES}/b", node("b", "weights.holdfast.dev"))
        api.heal()
        await until(found, "a", "b")
