"""The annotated pods of this node: list, then watch from there, while the daemon runs.

Law: keeps only the name and the wants of annotated pods, and of all pods whether they live. While the API does not
answer, the last known pods stay. As in other informers, the first list may come from the API server's cache
(`resourceVersion=0`): a hundred daemons that start together must not each make etcd read every pod.
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cached.contract.annotations import MODE, PREFIX, parse, requests_weights
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.core.demand import PodWant
from cached.kube.client import METADATA, METADATA_LIST, Backoff, Call, KubeClient
from cached.kube.errors import Gone, bad_response
from cached.node.cluster import AnnotatedPod, PodLife

_log = logging.getLogger(__name__)
_PODS = "/api/v1/pods"
_FROM_CACHE = "0"  # any version that the API server has cached
_LATEST = ""  # the current version in etcd
_STATIC = "kubernetes.io/config.mirror"  # on the API's copy of a static pod: the uid by which the kubelet knows it


@dataclass(frozen=True, slots=True)
class PodName:
    """One pod: a later pod may have the same name, but not the same uid."""

    uid: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def log_fields(self) -> dict[str, str]:
        """What an event of the log says of it."""
        return {"pod": str(self)}


@dataclass(frozen=True, slots=True)
class WatchPace:
    """Seconds between attempts, of a watch's requested duration, and of its longest silence; pods a page; seconds for a
    list that an eviction waits for. Bookmarks arrive once a minute, so after 90 s of silence the peer is dead; an error
    here costs one request."""

    backoff_s: float = 0.5
    backoff_cap_s: float = 30.0
    watch_s: tuple[int, int] = (240, 300)
    stall_s: float = 90.0
    page: int = 250
    list_now_s: float = 5.0


@dataclass(slots=True)
class WatchStatistics:
    """`since`: when `connected` last changed, in seconds since the epoch; counts since the start."""

    since: float
    connected: bool = False
    lists: int = 0
    watches: int = 0
    events: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Pod:
    name: PodName
    annotations: Mapping[str, str]
    wants: tuple[PodWant, ...]
    ending: bool


class PodWatch:
    """The wants of the pods bound to `node`. `refuse` is called once for every pod with invalid annotations."""

    def __init__(
        self, client: KubeClient, node: str, refuse: Callable[[PodName, Permanent], None], pace: WatchPace | None = None
    ) -> None:
        self._client = client
        # Finished pods leave the selection, so that the server sends DELETED and their phase is not needed.
        self._selector = f"spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"
        self._refuse = refuse
        self._pace = pace if pace is not None else WatchPace()
        self._pods: dict[str, _Pod] = {}
        self._lives: dict[str, PodLife] = {}  # of all pods of the node, by each of their uids
        self._version: str | None = None  # the resourceVersion to watch from; None: list first
        self._list_from = _FROM_CACHE
        self.statistics = WatchStatistics(time.time())

    @property
    def synced(self) -> bool:
        """Whether the pods were listed once; before that, their wants are unknown."""
        return self.statistics.lists > 0

    def list_wants(self) -> tuple[PodWant, ...]:
        """Return the wants of the pods that are not ending, one for each pod and model."""
        return tuple(want for pod in self._pods.values() if not pod.ending for want in pod.wants)

    def list_users(self) -> tuple[PodWant, ...]:
        """Return the wants of all pods, of those that are ending too: their containers may still run."""
        return tuple(want for pod in self._pods.values() for want in pod.wants)

    def list_annotated(self) -> tuple[AnnotatedPod, ...]:
        """Return all pods with annotations of ours, valid or not."""
        return tuple(
            AnnotatedPod(
                pod.name.uid, str(pod.name), pod.wants, pod.ending, _find_error(pod), pod.annotations.get(MODE) == "csi"
            )
            for pod in self._pods.values()
        )

    def find_life(self, uid: str) -> PodLife:
        """Return whether a pod of the node lives, annotated or not. Unknown before the first list, and while the list
        is empty: the daemon's own pod is in it, unless it is the list of a node that does not exist."""
        return self._lives.get(uid, PodLife.ABSENT) if self.synced and self._lives else PodLife.UNKNOWN

    async def list_users_now(self) -> tuple[PodWant, ...]:
        """Return `list_users` as etcd has it, without a change of those known: the watch may be ahead of
        this list or behind it. Raises `HoldfastError`."""
        try:
            async with asyncio.timeout(self._pace.list_now_s):
                items, _ = await self._pages(self._pace.page, _LATEST)
        except TimeoutError as error:
            message = f"the API server gave no list of this node's pods within {self._pace.list_now_s:g} s"
            raise Transient("kube_timeout", message, "check that it answers") from error
        with _errors_are_bad_lists():
            asked = [(item, ours) for item in items if (ours := _asked(item)) is not None]
            pods = [_make_pod(item, ours)[0] for item, ours in asked]
        return tuple(want for pod in pods for want in pod.wants)

    def find_name(self, uid: str) -> PodName | None:
        """Return the name of an annotated pod, None if there is no such pod, or it is ending."""
        pod = self._pods.get(uid)
        return None if pod is None or pod.ending else pod.name

    def find_pods(self, ref: ModelRef) -> tuple[PodName, ...]:
        """Return the pods that want this version."""
        return tuple(pod.name for pod in self._pods.values() if any(want.ref == ref for want in pod.wants))

    async def run(self, changed: Callable[[], None]) -> None:
        """Watch the pods until cancelled; call `changed` after every list and every change of their wants."""
        backoff = Backoff(self._pace.backoff_s, self._pace.backoff_cap_s)
        while True:
            events = self.statistics.events
            error: HoldfastError | None = None
            try:
                if self._version is None:
                    await self._list()
                    changed()
                await self._follow(self._version or _LATEST, changed)
            except Gone as gone:
                _log.info("the pod watch fell behind and lists again: %s", gone.message)
                error, self._version, self._list_from = gone, None, _LATEST
            except HoldfastError as failure:
                error = failure
                self.statistics.failures += 1
                if self.statistics.connected or self.statistics.failures == 1:
                    _log.warning("the pod watch lost the API, the pods known last stay in force: %s", failure)
                self._set_connected(connected=False)
            if self.statistics.events > events:  # the watch worked
                backoff.reset()
            if error is not None or self.statistics.events == events:
                await asyncio.sleep(backoff.pause_s(error))

    async def _list(self) -> None:
        """Replace all pods by a list from the API."""
        try:
            self._take(*await self._pages(self._pace.page, self._list_from))
        except Gone:  # reading the pages took longer than the API server's history
            self._take(*await self._pages(None, self._list_from))
        self.statistics.lists += 1

    def _take(self, items: list[Mapping[str, Any]], version: str) -> None:
        with _errors_are_bad_lists():
            pods = [pod for pod in map(self._read, items) if pod is not None]
            self._lives = {uid: _life_of(item) for item in items for uid in _uids_of(item)}
        self._pods, self._version = {pod.name.uid: pod for pod in pods}, version

    async def _pages(self, limit: int | None, list_from: str) -> tuple[list[Mapping[str, Any]], str]:
        """Return the metadata of all pods of the node, and the version of the list."""
        found: list[Mapping[str, Any]] = []
        query = {"fieldSelector": self._selector}
        if limit is not None:
            query["limit"] = str(limit)
        if list_from != _LATEST:
            query["resourceVersion"] = list_from
        while True:
            page = await self._client.request(Call("GET", _PODS, query, accept=METADATA_LIST))
            with _errors_are_bad_lists():
                found += [item["metadata"] for item in page["items"]]
                more, version = page["metadata"].get("continue"), page["metadata"]["resourceVersion"]
            if not more:
                return found, version
            query = {"fieldSelector": self._selector, "limit": str(limit), "continue": more}

    async def _follow(self, version: str, changed: Callable[[], None]) -> None:
        query = {
            "watch": "true",
            "fieldSelector": self._selector,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*self._pace.watch_s)),  # noqa: S311 - jitter
        }
        call = Call("GET", _PODS, query, accept=METADATA)
        async with self._client.watch(call, self._pace.stall_s) as events:
            self.statistics.watches += 1
            self._set_connected(connected=True)
            async for event in events:
                self.statistics.events += 1
                try:
                    moved = self._apply(event["type"], event["object"]["metadata"])
                except (KeyError, TypeError, AttributeError) as error:
                    self._version = None  # the missed changes are unknown
                    raise bad_response("watching pods", f"not an event: {error!r}") from error
                if moved:
                    changed()

    def _apply(self, kind: str, metadata: Mapping[str, Any]) -> bool:
        """Apply one event; return whether a pod's wants changed."""
        self._version = metadata["resourceVersion"]
        if kind == "BOOKMARK":
            return False
        uid = metadata["uid"]
        for each in _uids_of(metadata):
            if kind == "DELETED":
                self._lives.pop(each, None)
            else:
                self._lives[each] = _life_of(metadata)
        old = self._pods.get(uid)
        new = None if kind == "DELETED" else self._read(metadata)
        if new is None:
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = new
        return _wants_of(old) != _wants_of(new) or (old is None) != (new is None)

    def _read(self, metadata: Mapping[str, Any]) -> _Pod | None:
        """Return the pod with its wants; None if it has none. Refuse a new one that is invalid."""
        ours = _asked(metadata)
        if ours is None:
            return None
        known = self._pods.get(metadata["uid"])
        ending = _life_of(metadata) is PodLife.ENDING
        if known is not None and known.annotations == ours:
            return known if known.ending == ending else replace(known, ending=ending)
        pod, error = _make_pod(metadata, ours)
        if error is not None and not ending:
            _log.warning("pod %s: %s", pod.name, error)
            self._refuse(pod.name, error)
        return pod

    def _set_connected(self, *, connected: bool) -> None:
        if connected != self.statistics.connected:
            self.statistics.connected, self.statistics.since = connected, time.time()
            if connected:
                _log.info("watching the pods of this node")


@contextmanager
def _errors_are_bad_lists() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_response("listing pods", f"not a list: {error!r}") from error


def _uids_of(metadata: Mapping[str, Any]) -> set[str]:
    """Return the uids of a pod: that of its object, and for a static pod also the one by which the kubelet knows it."""
    own = str(metadata["uid"])
    return {own, str((metadata.get("annotations") or {}).get(_STATIC) or own)}


def _life_of(metadata: Mapping[str, Any]) -> PodLife:
    return PodLife.ENDING if metadata.get("deletionTimestamp") else PodLife.ALIVE


def _make_pod(metadata: Mapping[str, Any], ours: Mapping[str, str]) -> tuple[_Pod, Permanent | None]:
    """Return a pod with its wants; without wants, and with the error, where its annotations are invalid."""
    name = PodName(metadata["uid"], metadata["namespace"], metadata["name"])
    ending = _life_of(metadata) is PodLife.ENDING
    try:
        return _Pod(name, ours, _parse_wants(name, ours), ending), None
    except Permanent as error:
        return _Pod(name, ours, (), ending), error


def _find_error(pod: _Pod) -> Permanent | None:
    try:
        _parse_wants(pod.name, pod.annotations)
    except Permanent as error:
        return error
    return None


def _asked(metadata: Mapping[str, Any]) -> dict[str, str] | None:
    """Return our annotations of a pod that wants weights; None for any other."""
    asked = metadata.get("annotations") or {}
    if not requests_weights(asked):
        return None
    return {key: value for key, value in asked.items() if key.startswith(PREFIX)}


def _wants_of(pod: _Pod | None) -> tuple[PodWant, ...]:
    return () if pod is None or pod.ending else pod.wants


def _parse_wants(name: PodName, ours: Mapping[str, str]) -> tuple[PodWant, ...]:
    asked = parse(ours)
    models = asked.models if asked is not None else ()
    return tuple(PodWant(name.uid, str(name), each.ref, each.pin) for each in models)
