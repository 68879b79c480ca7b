"""What becomes of volumes without a call: given up, unmounted after their pod, or kept. Nothing is mounted here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Transient
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef, ModelRequest
from cached.contract.snapshot.lease import is_held
from cached.core.demand import PodWant
from cached.csi.leases import Leases
from cached.csi.mounts import FoundVolume, Mounter, VolumeContent
from cached.csi.request import VolumeRequest
from cached.csi.volumes import VolumePace, Volumes
from cached.csi.wants import VolumeWants, WithVolumes
from cached.node.cluster import AnnotatedPod, NoCluster, PodLife
from cached.node.inventory import Inventory
from cached.node.status_files import StatusFiles
from cached.store.start import recovery
from tests.support.stores import fill_root

DEADLINE_S = 100.0
MISSING = ModelRef("missing", "v1")


class Cluster(NoCluster):
    """A cluster that says of every pod the same."""

    def __init__(self, life: PodLife) -> None:
        self.life = life
        self.annotated: tuple[AnnotatedPod, ...] = ()

    def list_annotated(self) -> tuple[AnnotatedPod, ...]:
        return self.annotated

    def find_pod(self, uid: str) -> PodLife:
        return self.life


class Planner:
    """Plans nothing: what is missing stays missing."""

    async def read_catalog(self) -> None:
        """Do nothing."""

    def take_wants(self) -> None:
        """Do nothing."""

    def wake(self) -> None:
        """Do nothing."""

    def find_forbidden(self, want: PodWant) -> None:
        """Forbid nothing."""


class Case:
    """The volumes of a node that has one version."""

    def __init__(self, folder: Path, life: PodLife, pace: VolumePace) -> None:
        layout = Layout(folder / "root")
        recovery.prepare(layout)
        ((self.held, self.digest),) = fill_root(layout, 1, 1).items()
        self.public = layout.public
        self.pods = folder / "pods"
        self.target = self.pods / "uid" / "volumes" / "kubernetes.io~csi" / "weights" / "mount"
        self.target.mkdir(parents=True)
        self.wants = VolumeWants()
        self.cluster = Cluster(life)
        self.leases = Leases(layout.public)
        self.volumes = Volumes(
            layout=layout,
            pods=self.pods,
            mounter=Mounter(layout, folder / "staging"),
            inventory=Inventory(layout, recovery.recover(layout)),
            status_files=StatusFiles(layout.public, "node", lambda: None),
            cluster=WithVolumes(self.cluster, self.wants),
            wants=self.wants,
            leases=self.leases,
            planner=Planner(),
            recheck=self._recheck,
            pace=pace,
        )

    async def _recheck(self, digest: Digest) -> None:
        """Do nothing."""

    def adopt(self) -> None:
        """Take over a volume of the version, as after a restart."""
        self.leases.adopt(self.target, {self.digest})
        self.volumes.adopt({str(self.target): FoundVolume(VolumeContent.of_snapshot(self.digest), is_whole=True)})

    @property
    def is_leased(self) -> bool:
        """Whether the version's snapshot has a lease."""
        return is_held(self.public.snapshot(self.digest).lease)

    def request(self, ref: ModelRef) -> VolumeRequest:
        return VolumeRequest("id", self.target, (ModelRequest(ref),), False, False, "uid", "pod", "default")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.volumes.running():
            following = asyncio.create_task(self.volumes.follow())
            try:
                yield
            finally:
                following.cancel()
                await asyncio.wait([following])
        await asyncio.to_thread(self.volumes.close)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_volume_that_is_not_asked_for_again_is_given_up(tmp_path: Path) -> None:
    """A volume that waits wants its version between two calls, and no longer than the pace says after the last."""
    case = Case(tmp_path, PodLife.UNKNOWN, VolumePace(recall_s=2.0, tick_s=0.01))
    async with case.running():
        with pytest.raises(Transient) as pending:
            await case.volumes.publish(case.request(MISSING), 0.01)
        assert pending.value.code == "weights_pending"
        assert [want.ref for want in case.wants.list_all()] == [MISSING]
        await until(lambda: case.wants.list_all() == ())


async def test_a_pod_waits_until_its_volumes_are_mounted(tmp_path: Path) -> None:
    """A pod that is known to get a volume is unmounted until its volume is, asked for or not; so is one whose volume is
    asked for. A volume that an earlier daemon mounted is mounted."""
    case = Case(tmp_path, PodLife.ALIVE, VolumePace(tick_s=0.01))
    cluster = WithVolumes(case.cluster, case.wants)
    want = PodWant("uid", "default/pod", MISSING, None)
    assert cluster.list_unmounted() == frozenset()
    case.cluster.annotated = (AnnotatedPod("uid", "default/pod", (want,), is_ending=False, by_volume=True),)
    assert cluster.list_unmounted() == {"uid"}
    case.adopt()
    assert cluster.list_unmounted() == frozenset()
    async with case.running():
        await case.volumes.unpublish(case.target)
        assert cluster.list_unmounted() == {"uid"}
        case.cluster.annotated = ()
        assert cluster.list_unmounted() == frozenset()
        with pytest.raises(Transient):
            await case.volumes.publish(case.request(MISSING), 0.01)
        assert cluster.list_unmounted() == {"uid"}


async def test_a_volume_of_a_pod_that_ends_is_given_up(tmp_path: Path) -> None:
    """A volume that waits wants nothing once its pod is being deleted, asked for again or not."""
    case = Case(tmp_path, PodLife.ALIVE, VolumePace(tick_s=0.01))
    async with case.running():
        with pytest.raises(Transient):
            await case.volumes.publish(case.request(MISSING), 0.01)
        case.cluster.life = PodLife.ENDING
        await until(lambda: case.wants.list_all() == ())
        with pytest.raises(Transient) as ended:
            await case.volumes.publish(case.request(MISSING), DEADLINE_S)
        assert ended.value.code == "pod_ended"


async def test_a_pod_may_be_newer_than_the_watch(tmp_path: Path) -> None:
    """A pod that the watch does not know yet is no pod that ended, until the watch had the time to know it."""
    case = Case(tmp_path, PodLife.ABSENT, VolumePace(new_pod_s=2.0, tick_s=0.01))
    async with case.running():
        with pytest.raises(Transient) as pending:
            await case.volumes.publish(case.request(MISSING), 0.2)
        assert pending.value.code == "weights_pending"
        with pytest.raises(Transient) as ended:
            await case.volumes.publish(case.request(MISSING), DEADLINE_S)
        assert ended.value.code == "pod_ended"


async def test_volumes_of_pods_that_are_gone_are_unmounted(tmp_path: Path) -> None:
    """A mounted volume whose pod is gone for as long as the pace says is unmounted, and its lease given back."""
    case = Case(tmp_path, PodLife.ABSENT, VolumePace(gone_s=0.0, tick_s=1000))
    case.adopt()
    assert case.is_leased
    async with case.running():
        async with asyncio.timeout(DEADLINE_S):
            while case.is_leased:
                await case.volumes.pass_time()
    assert not case.target.exists()
    assert case.volumes.mounted == 0


@pytest.mark.parametrize("life", [PodLife.UNKNOWN, PodLife.ALIVE, PodLife.ENDING])
async def test_volumes_of_other_pods_are_left_alone(tmp_path: Path, life: PodLife) -> None:
    """While a pod lives, ends, or is not known to be gone, its volume is the kubelet's to unmount."""
    case = Case(tmp_path, life, VolumePace(gone_s=0.0, tick_s=1000))
    case.adopt()
    async with case.running():
        for _ in range(3):
            await case.volumes.pass_time()
    assert case.target.exists()
    assert case.volumes.mounted == 1
