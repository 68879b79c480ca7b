"""The CSI driver of one daemon: its volumes, its two sockets, and its registration at the kubelet.

Law: creates the parts of this room. `MountedVolumes` comes before anything may be evicted; the sockets open last, once
the daemon can answer, and go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from grpclib.server import Server
from prometheus_client import CollectorRegistry

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.csi.leases import Leases
from cached.csi.metrics import CsiMetrics
from cached.csi.mounts import FoundVolume, Mounter, find_mount
from cached.csi.request import DRIVER
from cached.csi.services import IdentityService, NodeService, RegistrationService
from cached.csi.sockets import ListeningSocket
from cached.csi.volumes import Planner, Volumes
from cached.csi.wants import VolumeWants, WithVolumes
from cached.node.cluster import Cluster
from cached.node.inventory import Inventory
from cached.node.log_once import LogOnce
from cached.node.status_files import StatusFiles

_log = logging.getLogger("holdfast")

_FAREWELL_S = 3.0
_LOOK_S = 5.0  # between two looks whether the sockets are there


@dataclass(frozen=True, slots=True)
class Places:
    """Where the kubelet looks: the driver's socket, the socket for its registration, and the kubelet's own folder."""

    socket: Path
    registration: Path
    kubelet: Path

    @property
    def pods(self) -> Path:
        return self.kubelet / "pods"

    @property
    def staging(self) -> Path:
        return self.socket.parent / "staging"


def choose_registration(kubelet: Path) -> Path:
    """Return the usual place of the registration socket."""
    return kubelet / "plugins_registry" / f"{DRIVER}-reg.sock"


@dataclass(frozen=True, slots=True)
class Sockets:
    """The listening sockets of the driver and of its registration."""

    csi: ListeningSocket
    registration: ListeningSocket


class MountedVolumes:
    """The volumes that an earlier daemon mounted, with the leases of their snapshots taken again. Blocking. Raises
    `Permanent`: where mounts cannot be made, or would not be seen by the kubelet."""

    def __init__(self, layout: Layout, places: Places) -> None:
        _require_propagation(places.pods)
        self._layout = layout
        self._places = places
        self._wants = VolumeWants()
        self.mounter = Mounter(layout, places.staging)
        self.mounter.prepare()
        self.leases = Leases(layout.public)
        self.found: dict[str, FoundVolume] = self.mounter.find_volumes(places.pods)
        for place, volume in self.found.items():
            self.leases.adopt(Path(place), volume.content.digests)
        if self.found:
            _log.info("%d volumes are mounted; their snapshots are leased again", len(self.found))

    def join(self, cluster: Cluster) -> Cluster:
        """Return the cluster with the wants of volumes among those of its pods."""
        return WithVolumes(cluster, self._wants)

    def make_driver(
        self,
        *,
        node: str,
        inventory: Inventory,
        status_files: StatusFiles,
        cluster: Cluster,
        planner: Planner,
        recheck: Callable[[Digest], Awaitable[object]],
        registry: CollectorRegistry,
        find_trouble: Callable[[], str | None],
    ) -> Driver:
        """Return the driver that goes on with these volumes; it closes them."""
        volumes = Volumes(
            layout=self._layout,
            pods=self._places.pods,
            mounter=self.mounter,
            inventory=inventory,
            status_files=status_files,
            cluster=cluster,
            wants=self._wants,
            leases=self.leases,
            planner=planner,
            recheck=recheck,
        )
        volumes.adopt(self.found)
        return Driver(self._places, node, volumes, cluster, registry, find_trouble)


class Driver:
    """The driver: `run` serves until cancelled, `leave` tells the cluster first."""

    def __init__(
        self,
        places: Places,
        node: str,
        volumes: Volumes,
        cluster: Cluster,
        registry: CollectorRegistry,
        find_trouble: Callable[[], str | None],
    ) -> None:
        self._places = places
        self._cluster = cluster
        self._volumes = volumes
        self._log_once = LogOnce(_log)
        self._metrics = CsiMetrics(registry, lambda: volumes.mounted)
        self._csi = (IdentityService(find_trouble), NodeService(volumes, node, places.pods, self._metrics))
        self._registration = (RegistrationService(places.socket, self._note_registration),)

    @contextlib.asynccontextmanager
    async def open_sockets(self) -> AsyncIterator[Sockets]:
        """Open both sockets, for `run`, and remove them afterwards. Raises `Permanent` (`cannot_listen`)."""
        async with contextlib.AsyncExitStack() as stack:
            csi = await stack.enter_async_context(_open(self._places.socket))
            yield Sockets(csi, await stack.enter_async_context(_open(self._places.registration)))

    async def run(self, sockets: Sockets) -> None:
        """Serve the kubelet until cancelled."""
        try:
            async with self._volumes.running(), asyncio.TaskGroup() as group:
                group.create_task(self._keep_serving(self._csi, sockets.csi), name="csi socket")
                group.create_task(self._keep_serving(self._registration, sockets.registration), name="csi registration")
                _log.info("CSI driver %s at %s", DRIVER, self._places.socket)
                await self._volumes.follow()
        finally:
            await asyncio.to_thread(self._volumes.close)

    async def _keep_serving(
        self, services: Collection[IdentityService | NodeService | RegistrationService], listening: ListeningSocket
    ) -> None:
        """Serve, and make the socket again whenever it is gone: the kubelet then registers the driver anew."""
        while True:
            async with _serve(services, listening.bound):
                await _wait_removed(listening)
            await self._note_registration(f"{listening.path} was removed")
            await self._reopen(listening)

    async def _reopen(self, listening: ListeningSocket) -> None:
        while True:
            try:
                await asyncio.to_thread(listening.reopen)
            except Permanent as error:
                self._log_once.log_error(str(listening.path), str(error))
                await asyncio.sleep(_LOOK_S)
            else:
                self._log_once.log_recovery(str(listening.path))
                return

    async def leave(self) -> None:
        """Withdraw the node's label, before the driver stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._cluster.report_csi(ready=False)

    async def _note_registration(self, refusal: str | None) -> None:
        self._metrics.set_registered(registered=refusal is None)
        await self._cluster.report_csi(ready=refusal is None)
        if refusal is None:
            _log.info("the kubelet has registered %s", DRIVER)
        else:
            _log.error("%s is not registered at the kubelet: %s", DRIVER, refusal)


@contextlib.asynccontextmanager
async def _open(path: Path) -> AsyncIterator[ListeningSocket]:
    listening = await asyncio.to_thread(ListeningSocket, path)
    try:
        yield listening
    finally:
        await asyncio.to_thread(listening.close)


@contextlib.asynccontextmanager
async def _serve(
    services: Collection[IdentityService | NodeService | RegistrationService], bound: socket.socket
) -> AsyncIterator[None]:
    server = Server(services)
    await server.start(sock=bound)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(TimeoutError):  # a client that keeps its connection does not keep the daemon
            async with asyncio.timeout(_FAREWELL_S):
                await server.wait_closed()


async def _wait_removed(listening: ListeningSocket) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        if not await asyncio.to_thread(listening.is_there):
            return


def _require_propagation(pods: Path) -> None:
    """Raise `Permanent` unless mounts in the kubelet's folder of pods reach the kubelet: else pods would start with
    empty folders in place of their weights."""
    if not pods.is_dir():
        raise Permanent(
            "no_kubelet",
            f"{pods}: expected the kubelet's folder of pods, found none",
            "set --kubelet-dir to its --root-dir",
        )
    found = find_mount(pods)
    if found is None or not found.is_shared:
        where = "no mount" if found is None else f"{found.point}, which is not shared"
        raise Permanent(
            "no_propagation",
            f"{pods}: expected a place whose mounts reach the kubelet, found {where}",
            "give the daemon's container this folder with `mountPropagation: Bidirectional`, as the overlay `csi` does",
        )
