"""What the daemon may expect of its cluster, with and without a cluster: the real ones, over an API server's
sockets and without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pytest

from cached.contract.digest import Digest
from cached.contract.metrics.daemon import CLUSTER
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.kube.kubernetes import KubernetesCluster
from cached.node.cluster import Cluster, NoCluster, PodLife
from tests.support.control import model_status
from tests.support.fake_api import FakeApi

REF = ModelRef("acme", "v1")
DIGEST = Digest.of(b"snapshot")
STATUS = model_status(REF, State.READY)


@dataclass
class Case:
    """Surroundings, and how often they said that what is wanted may have changed."""

    around: Cluster
    changes: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """`run`, in force for a block as in the daemon."""

        def changed() -> None:
            self.changes += 1

        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.around.run(changed))
            yield
            task.cancel()

    async def until_synced(self) -> None:
        async with asyncio.timeout(100):
            while not (self.around.synced and self.around.labels is not None):
                await asyncio.sleep(0.005)


@contextmanager
def kubernetes() -> Iterator[Cluster]:
    with FakeApi() as api:
        api.create("/api/v1/nodes", {"metadata": {"name": "node1", "labels": {"gpu": "h100"}}})
        yield KubernetesCluster(api.cluster(), "node1")


@contextmanager
def by_itself() -> Iterator[Cluster]:
    yield NoCluster()


@pytest.fixture(params=[kubernetes, by_itself])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with request.param() as around:
        yield Case(around)


async def test_everything_may_be_told_before_anybody_listens(case: Case) -> None:
    """Before `run` nothing fails and nothing waits: the daemon recovers its tree first."""
    async with asyncio.timeout(100):
        case.around.published(frozenset({DIGEST}))
        case.around.tell_pods(lambda _ref: STATUS)
        case.around.summarise([STATUS], 1 << 30, 1 << 40)
        case.around.lost([REF], "a block went bad")
    assert case.around.pods() == ()


async def test_in_the_end_it_is_known_what_is_in_use(case: Case) -> None:
    """While it runs, `synced` becomes true and the node's labels are known; a node without pods wants nothing."""
    async with case.running():
        await case.until_synced()
        assert case.around.labels is not None
        assert case.around.pods() == ()


async def test_the_pods_of_now_are_listed_while_it_runs(case: Case) -> None:
    """A node without pods has none now either, however often that is asked."""
    async with case.running(), asyncio.timeout(100):
        await case.until_synced()
        assert [await case.around.list_pods_now() for _ in range(3)] == [(), (), ()]


async def test_a_snapshot_may_be_withdrawn_whether_it_was_told_or_not(case: Case) -> None:
    """A deletion is let through, once for each time it is wrapped, also of what no part was told of."""
    async with case.running(), asyncio.timeout(100):
        await case.until_synced()
        for published in (frozenset[Digest](), frozenset({DIGEST}), frozenset({DIGEST})):
            case.around.published(published)
            async with case.around.withdrawn(DIGEST):
                pass


async def test_a_deletion_that_fails_is_told_as_it_failed(case: Case) -> None:
    """The error of a deletion passes through the wrapping, and the next one is let through again."""
    async with case.running(), asyncio.timeout(100):
        await case.until_synced()
        with pytest.raises(OSError, match="busy"):
            async with case.around.withdrawn(DIGEST):
                raise OSError("busy")
        async with case.around.withdrawn(DIGEST):
            pass


async def test_telling_while_it_runs_neither_waits_nor_fails(case: Case) -> None:
    """News of versions, the node and rot is taken at once, also of versions that no pod wants."""
    async with case.running():
        await case.until_synced()
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            case.around.published(frozenset({DIGEST}))
            case.around.tell_pods(lambda _ref: None)
            case.around.summarise([STATUS], 1 << 30, 1 << 40)
            case.around.lost([REF], "a block went bad")
        assert asyncio.get_running_loop().time() - began < 5


async def test_a_pod_is_asked_after_at_any_time(case: Case) -> None:
    """Before anything is listed, and where no pod is known, no pod counts as gone."""
    assert case.around.find_pod("uid") is PodLife.UNKNOWN
    async with case.running(), asyncio.timeout(100):
        await case.until_synced()
        assert case.around.find_pod("uid") is PodLife.UNKNOWN
        await case.around.report_csi(ready=True)
        await case.around.report_csi(ready=False)


async def test_figures_are_metrics(case: Case) -> None:
    """Names are metric names without the prefix, the same ones before and while it runs; values are finite numbers."""
    before = dict(case.around.figures())
    async with case.running():
        await case.until_synced()
        found = dict(case.around.figures())
    assert found.keys() == before.keys()
    assert {f"holdfast_{name}" for name in found} <= {metric.name for metric in CLUSTER}
    assert all(abs(value) < float("inf") for value in found.values())


async def test_cancelling_it_is_its_end(case: Case) -> None:
    """A cancelled `run` comes back at once and leaves no task behind."""
    before = len(asyncio.all_tasks())
    async with asyncio.timeout(100):
        async with case.running():
            await case.until_synced()
    assert len(asyncio.all_tasks()) == before
