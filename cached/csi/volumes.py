"""The volumes of this node: each waits for its versions, is checked as a gate checks them, and mounted with a lease.

Law: runs on the event loop; blocking work in its own threads. A volume is mounted during a call only, never behind the
kubelet's back. What is wanted, checked and leased outlives a call by `recall_s`, so that the kubelet's next call goes
on where the last one ended. The kernel's table of mounts is the truth about mounted volumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.layout import Layout
from cached.contract.program.logs import about
from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRef, ModelRequest
from cached.contract.snapshot.verify import check_full, check_record, load_manifest
from cached.contract.status import ModelStatus, State, StatusError
from cached.core.demand import PodWant
from cached.csi.leases import Leases
from cached.csi.mounts import FoundVolume, Mounter, VolumeContent
from cached.csi.request import VolumeRequest
from cached.csi.wants import VolumeWants
from cached.node.cluster import Cluster, PodLife
from cached.node.inventory import Inventory
from cached.node.log_once import LogOnce
from cached.node.status_files import StatusFiles
from cached.node.threads import Blocking

_log = logging.getLogger(__name__)

T = TypeVar("T")

EXISTS, BUSY, ENDED, PENDING = "volume_exists", "volume_busy", "pod_ended", "weights_pending"
FORBIDDEN = "forbidden_namespace"
_NOT_HERE = "not_here"

_LOOK_EVERY_S = 0.1
_FRESH_LOOKS = 2  # of the daemon at a snapshot that differs from its record, in one try


@dataclass(frozen=True, slots=True)
class VolumePace:
    """Seconds: of one call at most (the kubelet gives up after 120 s, and would hear no reason then), until a volume
    that is not asked for again is given up (the kubelet asks again within 122 s), until the pod watch must know a pod
    whose volume is asked for, between two looks at a permanent error, until the volumes of a pod that is gone are
    unmounted, which is the kubelet's part, and between two looks at all this."""

    wait_s: float = 100.0
    recall_s: float = 300.0
    new_pod_s: float = 30.0
    correction_s: float = 1.0
    gone_s: float = 300.0
    tick_s: float = 15.0


class Planner(Protocol):
    """What the volumes need of the daemon's reconciler."""

    async def read_catalog(self) -> None:
        """Have the catalog's file read: a volume may follow an edit at once."""

    def take_wants(self) -> None:
        """Plan for the present wants at once: afterwards the statuses tell what holds for them."""

    def wake(self) -> None:
        """Plan soon."""

    def find_forbidden(self, want: PodWant) -> HoldfastError | None:
        """Return why the catalog does not give a version to the pod that wants it, None where it does; `Transient`
        before there is a catalog."""


@dataclass(slots=True, eq=False)
class _Volume:
    """One target. `request` is None for a mount that an earlier daemon made. `told`: the last permanent error.
    `absent_since`: monotonic seconds."""

    target: Path
    pod_uid: str
    request: VolumeRequest | None
    preparing: asyncio.Task[VolumeContent | HoldfastError] | None = None
    mounted: VolumeContent | None = None
    called: float = field(default_factory=time.monotonic)
    is_called: bool = False
    is_ended: bool = False
    told: str | None = None
    absent_since: float | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # of mounting and unmounting


class Volumes:
    """The volumes in the kubelet's folder `pods`. `recheck` has a suspect snapshot looked at now, and repaired or
    withdrawn."""

    def __init__(
        self,
        *,
        layout: Layout,
        pods: Path,
        mounter: Mounter,
        inventory: Inventory,
        status_files: StatusFiles,
        cluster: Cluster,
        wants: VolumeWants,
        leases: Leases,
        planner: Planner,
        recheck: Callable[[Digest], Awaitable[object]],
        pace: VolumePace | None = None,
    ) -> None:
        self._public = layout.public
        self._pods = pods
        self._mounter = mounter
        self._inventory = inventory
        self._status_files = status_files
        self._cluster = cluster
        self._wants = wants
        self._leases = leases
        self._planner = planner
        self._recheck = recheck
        self._pace = pace if pace is not None else VolumePace()
        self._mounting, self._hashing = Blocking(4), Blocking(1)
        self._volumes: dict[Path, _Volume] = {}
        self._group = asyncio.TaskGroup()  # of the preparations; `running` enters it
        self._log_once = LogOnce(_log)

    @property
    def mounted(self) -> int:
        """The number of mounted volumes."""
        return sum(volume.mounted is not None for volume in self._volumes.values())

    def adopt(self, found: dict[str, FoundVolume]) -> None:
        """Take over the volumes that an earlier daemon mounted; `leases` has their snapshots already."""
        for place, volume in found.items():
            target = Path(place)
            uid = self._find_uid(target)
            self._volumes[target] = _Volume(target, uid, None, mounted=volume.content)
            self._wants.mark_mounted(target, uid)

    def close(self) -> None:
        """End the threads. Blocking."""
        self._mounting.close()
        self._hashing.close()

    # --- calls -----------------------------------------------------------------------------------------------------

    async def publish(self, request: VolumeRequest, wait_s: float) -> None:
        """Return once the volume is mounted. Raises `HoldfastError`: `Transient` with the code `weights_pending` after
        `wait_s` seconds, or those of the pace, `volume_busy` during another call for the target, `pod_ended` for a pod
        that ends."""
        volume, began = self._volumes.get(request.target), time.monotonic()
        if volume is not None and (volume.is_called or volume.is_ended):
            raise Transient(BUSY, f"{request.target}: another call for this volume is under way", "ask again")
        if volume is not None and volume.mounted is not None:
            with self._called(volume):
                if await self._is_published(volume, request):
                    return
            volume = None
        if volume is not None and volume.request != request:
            await self._forget(volume)
            volume = None
        if volume is None:
            volume = self._volumes[request.target] = _Volume(request.target, request.pod_uid, request)
        with self._called(volume):
            if any(each.ref not in self._inventory.models for each in request.models):
                await self._planner.read_catalog()
            self._wants.add(volume.target, request.wants)
            self._planner.take_wants()
            deadline = began + min(wait_s, self._pace.wait_s)
            content = await self._wait_prepared(volume, request, deadline)
            await self._complete(self._mount(volume, request, content))

    async def unpublish(self, target: Path) -> None:
        """Return once nothing is mounted at `target`, its folder is gone, and its leases and wants are given back; a
        waiting `publish` ends with `volume_busy`. Idempotent. Raises `HoldfastError`."""
        await self._complete(self._unmount(target))

    async def _complete(self, step: Coroutine[Any, Any, None]) -> None:
        """Take a step that is completed, whether or not the call that asks for it lasts so long. Raises what it
        raises."""
        error = await asyncio.shield(self._group.create_task(_settle(step), name="volume step"))
        if error is not None:
            raise error

    async def _unmount(self, target: Path) -> None:
        volume = self._volumes.get(target)
        if volume is None:
            await self._mounting.finish(self._mounter.unmount, target)
            return
        volume.is_ended = True
        if volume.preparing is not None:
            volume.preparing.cancel()
        async with volume.lock:
            was_mounted = volume.mounted is not None
            await self._mounting.finish(self._mounter.unmount, target)
            volume.mounted = None
        await self._forget(volume)
        if was_mounted:
            _log.info("%s: unmounted", target)

    async def _is_published(self, volume: _Volume, request: VolumeRequest) -> bool:
        """Return whether the volume is mounted as requested; False after it was unmounted by others. Raises `Permanent`
        (`volume_exists`)."""
        assert volume.mounted is not None
        if not _is_same(volume, request):
            raise Permanent(
                EXISTS,
                f"{request.target}: another volume is mounted here, of other attributes",
                "unpublish it first: a volume's attributes cannot change",
            )
        if await self._mounting.run(self._mounter.is_mounted, volume.mounted, volume.target):
            volume.request = request
            self._wants.add(volume.target, request.wants)
            await self._renew(volume)
            return True
        await self.unpublish(volume.target)
        return False

    @contextlib.contextmanager
    def _called(self, volume: _Volume) -> Iterator[None]:
        volume.is_called = True
        try:
            yield
        finally:
            volume.is_called = False
            volume.called = time.monotonic()

    async def _wait_prepared(self, volume: _Volume, request: VolumeRequest, deadline: float) -> VolumeContent:
        """Wait for the preparation until `deadline`, in monotonic seconds. It goes on if this call ends first, and the
        next call takes its result, if that is what the call would get now. A permanent error is raised at once, and
        when it comes again at the deadline: until then it may be corrected, and the kubelet would come back late."""
        while True:
            await asyncio.wait([self._start_preparing(volume, request)], timeout=max(0.0, deadline - time.monotonic()))
            if volume.preparing is None or volume.preparing.cancelled() or volume.is_ended:
                raise Transient(BUSY, f"{request.target}: the volume is unpublished", "ask again")
            if not volume.preparing.done():
                raise Transient(PENDING, f"still waiting: {self._describe(request)}", "")
            content, volume.preparing = volume.preparing.result(), None
            if not isinstance(content, HoldfastError):
                return content
            if content.code == ENDED:
                await self._forget(volume)
            costs_a_hash = isinstance(content, DigestMismatch)  # to look again
            is_new = str(content) != volume.told
            if is_new or costs_a_hash or time.monotonic() + self._pace.correction_s > deadline:
                volume.told = str(content) if content.permanent else volume.told
                raise content
            await asyncio.sleep(self._pace.correction_s)

    def _start_preparing(self, volume: _Volume, request: VolumeRequest) -> asyncio.Task[VolumeContent | HoldfastError]:
        """Return the preparation that runs, or whose result still holds; else a new one."""
        task = volume.preparing
        if task is None or (task.done() and not self._is_current(task, request)):
            coroutine = self._prepare(volume, request)
            task = self._group.create_task(_settle(coroutine), name=f"volume {volume.target}")
            volume.preparing = task
        return task

    async def _mount(self, volume: _Volume, request: VolumeRequest, content: VolumeContent) -> None:
        async with volume.lock:
            if volume.is_ended:
                raise Transient(BUSY, f"{volume.target}: the volume is unpublished", "ask again")
            if volume.mounted is None:  # else by a call that is gone
                await self._mounting.finish(self._mounter.mount, content, volume.target)
                volume.mounted = content
                self._wants.mark_mounted(volume.target, volume.pod_uid)
                self._planner.wake()  # the pod has its weights now
                _log.info(
                    "%s: mounted %s for pod %s",
                    volume.target,
                    _named(request),
                    _pod_of(request),
                    extra=about(*(want.ref for want in request.wants[:1]), pod=_pod_of(request)),
                )

    def _is_current(self, done: asyncio.Task[VolumeContent | HoldfastError], request: VolumeRequest) -> bool:
        content = None if done.cancelled() else done.result()
        if content is None or isinstance(content, HoldfastError):
            return False
        try:
            found = self._find_versions(request)
        except HoldfastError:
            return False
        return found is not None and _make_content(request, found) == content

    # --- the preparation -------------------------------------------------------------------------------------------

    async def _prepare(self, volume: _Volume, request: VolumeRequest) -> VolumeContent:
        """Return the volume's content once all versions are here, leased and checked."""
        began, was_seen, looks = time.monotonic(), False, 0
        while True:
            life = self._cluster.find_pod(request.pod_uid)
            is_new = life is PodLife.ABSENT and not was_seen and time.monotonic() - began < self._pace.new_pod_s
            was_seen = was_seen or life is PodLife.ALIVE
            if life is PodLife.ENDING or (life is PodLife.ABSENT and not is_new):
                raise Transient(ENDED, f"pod {_pod_of(request)} ends", "nothing is left to do")
            found = self._find_versions(request) if self._is_allowed(request) else None
            if found is not None:
                try:
                    if await self._hold(volume, request, found):
                        return _make_content(request, found)
                except DigestMismatch:
                    if self._find_versions(request) == found and looks == _FRESH_LOOKS:
                        raise
                    looks += 1
                    await self._look_again(set(found.values()))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look_again(self, digests: Collection[Digest]) -> None:
        """Have snapshots looked at; one may be withdrawn by then, which is an answer too."""
        for digest in digests:
            try:
                await self._recheck(digest)
            except Permanent as error:
                if error.code != _NOT_HERE:
                    raise

    def _is_allowed(self, request: VolumeRequest) -> bool:
        """Return whether the catalog gives the versions to the pod; False before there is a catalog. Raises
        `Permanent` (`forbidden_namespace`)."""
        for want in request.wants:
            match self._planner.find_forbidden(want):
                case Permanent() as forbidden:
                    raise forbidden
                case Transient():
                    return False
        return True

    def _find_versions(self, request: VolumeRequest) -> dict[ModelRef, Digest] | None:
        """Return the digest of each version; None while one is not here. Raises `Permanent` where one cannot come."""
        found: dict[ModelRef, Digest] = {}
        for each in request.models:
            digest = self._inventory.models.get(each.ref)
            if digest is not None and each.pin in (None, digest):
                found[each.ref] = digest
                continue
            status = self._status_files.get(each.ref)
            error = _find_failure(each, status)
            if error is not None:
                raise Permanent(error.code, _about(each.ref, error.message), error.remedy)
        return found if len(found) == len(request.models) else None

    async def _hold(self, volume: _Volume, request: VolumeRequest, found: dict[ModelRef, Digest]) -> bool:
        """Lease and check the snapshots; return False if one changed before. Raises `HoldfastError`. Nothing is leased
        in either case."""
        digests = set(found.values())
        try:
            if not await self._mounting.run(self._leases.take, volume.target, digests):
                return False
            if any(self._inventory.models.get(ref) != digest for ref, digest in found.items()):
                self._leases.release(volume.target)
                return False
            pool = self._hashing if request.is_hashed else self._mounting
            for digest in sorted(digests):
                await pool.run(self._check, digest, is_hashed=request.is_hashed)
        except BaseException:  # a cancelled call too
            self._leases.release(volume.target)
            raise
        return True

    def _check(self, digest: Digest, *, is_hashed: bool) -> None:
        snapshot = self._public.snapshot(digest)
        manifest = load_manifest(snapshot, digest)
        if is_hashed:
            check_full(snapshot, manifest, len(os.sched_getaffinity(0)))
        else:
            check_record(snapshot, manifest)

    def _describe(self, request: VolumeRequest) -> str:
        return "; ".join(_describe(each, self._status_files.get(each.ref)) for each in request.models)

    # --- what passes without a call ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take calls while inside; what is being prepared is cancelled at the end."""
        async with self._group:
            yield
            for volume in self._volumes.values():
                if volume.preparing is not None:
                    volume.preparing.cancel()

    async def follow(self) -> None:
        """Until cancelled end what is not asked for any more, and follow what happens to the mounts."""
        while True:
            await asyncio.sleep(self._pace.tick_s)
            await self.pass_time()
            if self._volumes:
                await self._compare_mounts()

    async def pass_time(self) -> None:
        """End what is not asked for any more, and the volumes of pods that are gone."""
        for volume in list(self._volumes.values()):
            if not volume.is_called:
                await self._pass_time(volume)

    async def _pass_time(self, volume: _Volume) -> None:
        now, life = time.monotonic(), self._cluster.find_pod(volume.pod_uid)
        if volume.mounted is None:
            if life is PodLife.ENDING or now - volume.called > self._pace.recall_s:
                await self._forget(volume)
            return
        if life is not PodLife.ABSENT:
            volume.absent_since = None
        elif volume.absent_since is None:
            volume.absent_since = now
        elif now - volume.absent_since > self._pace.gone_s:
            await self._clean(volume)

    async def _clean(self, volume: _Volume) -> None:
        key = f"volume {volume.target}"
        try:
            await self.unpublish(volume.target)
        except HoldfastError as error:
            self._log_once.log_error(key, str(error))
        else:
            self._log_once.log_recovery(key)
            _log.warning("%s: unmounted, for its pod %s is gone", volume.target, volume.pod_uid)

    async def _compare_mounts(self) -> None:
        """Give back what was unmounted by others, and mount anew what shows a snapshot that was made again since."""
        before = [volume for volume in self._volumes.values() if volume.mounted is not None and not volume.is_called]
        try:
            found = await self._mounting.run(self._mounter.find_volumes, self._pods)
            await self._mounting.run(self._leases.relock)
            for volume in before:
                if volume.mounted is None or volume.lock.locked():
                    continue  # called in the meantime
                if os.fspath(volume.target) not in found:
                    _log.warning("%s: it was unmounted by another program", volume.target)
                    await self._forget(volume)
                else:
                    await self._renew(volume)
        except HoldfastError as error:
            self._log_once.log_error("mounts", str(error))
        else:
            self._log_once.log_recovery("mounts")

    async def _renew(self, volume: _Volume) -> None:
        """Show the present folder of a snapshot that was withdrawn and published again: a container that starts again
        sees it, one that runs keeps what it has."""
        async with volume.lock:
            if volume.mounted is None:
                return
            if not await self._mounting.run(self._mounter.shows_old_snapshot, volume.mounted, volume.target):
                return
            if await self._mounting.finish(self._leases.take, volume.target, volume.mounted.digests):
                await self._mounting.finish(self._mounter.unmount, volume.target)
                await self._mounting.finish(self._mounter.mount, volume.mounted, volume.target)
                _log.warning("%s: mounted anew, for its snapshot was published again", volume.target)

    async def _forget(self, volume: _Volume) -> None:
        """Give back the leases and wants of a volume that is not mounted, once nothing is done for it any more."""
        volume.is_ended = True
        if volume.preparing is not None:
            volume.preparing.cancel()
            await asyncio.wait([volume.preparing])
        if self._volumes.get(volume.target) is volume:
            del self._volumes[volume.target]
            self._leases.release(volume.target)
            self._wants.remove(volume.target)
            self._planner.wake()

    def _find_uid(self, target: Path) -> str:
        relative = os.path.relpath(target, os.path.realpath(self._pods))
        return relative.split(os.sep, 1)[0]


async def _settle(coroutine: Awaitable[T]) -> T | HoldfastError:
    """Return an error as a result: a call may be gone by the time that it is there."""
    try:
        return await coroutine
    except HoldfastError as error:
        return error


def _is_same(volume: _Volume, request: VolumeRequest) -> bool:
    """Return whether a mounted volume is the requested one. Of one that an earlier daemon mounted only the content is
    known: a name that moved since changes nothing, for a mounted volume never changes."""
    if volume.request is not None:
        return volume.request == request
    assert volume.mounted is not None
    digests, models = volume.mounted.digests, volume.mounted.models
    if not request.is_tree:
        return models is None and request.models[0].pin in (None, *digests)
    if models is None or models.keys() != {each.ref for each in request.models}:
        return False
    return all(each.pin in (None, models[each.ref]) for each in request.models)


def _make_content(request: VolumeRequest, found: dict[ModelRef, Digest]) -> VolumeContent:
    return VolumeContent.of_tree(found) if request.is_tree else VolumeContent.of_snapshot(*found.values())


def _find_failure(wanted: ModelRequest, status: ModelStatus | None) -> StatusError | None:
    """Return why a version cannot come, None while it may."""
    if status is None:
        return None
    if wanted.pin is not None and (refused := status.refused_pins.get(str(wanted.pin))) is not None:
        return refused
    if status.state is State.FAILED and status.error is not None and status.error.permanent:
        return status.error
    return None


def _about(ref: ModelRef, message: str) -> str:
    """Return a message that names the version once."""
    return message if str(ref) in message else f"{ref}: {message}"


def _describe(wanted: ModelRequest, status: ModelStatus | None) -> str:
    if status is None:
        return f"{wanted.ref}: queued"
    text = f"{wanted.ref}: {status.state}"
    if status.state is State.READY:
        return (
            text
            if wanted.pin is None or str(wanted.pin) == status.digest
            else f"{text}, but with {status.digest}, not the pin"
        )
    if status.bytes_total:
        text += f", {format_size(status.bytes_done)} of {format_size(status.bytes_total)}"
    if status.eta_s is not None:
        text += f", {format_duration(status.eta_s)} left"
    return text if status.error is None else f"{text}; {status.error.message} ({status.error.remedy})"


def _named(request: VolumeRequest) -> str:
    return ", ".join(str(each.ref) for each in request.models)


def _pod_of(request: VolumeRequest) -> str:
    return f"{request.namespace}/{request.pod_name}"
