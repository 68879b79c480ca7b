"""Events on pods, as `kubectl describe pod` shows them: queued, merged, limited, dropped when too many.

Law: `tell` neither blocks nor fails. An event equal to an earlier one raises its count instead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from cached.contract.errors import HoldfastError, Transient
from cached.kube.client import MERGE_PATCH, Backoff, Call, KubeClient
from cached.kube.errors import NotFound
from cached.kube.names import PodName

_log = logging.getLogger(__name__)

FETCHING = "WeightsFetching"
READY = "WeightsReady"
FAILED = "WeightsFailed"
SUSPECT = "WeightsSuspect"  # an engine may not load them
Type = Literal["Normal", "Warning"]

_COMPONENT = "holdfast"
_LONGEST_MESSAGE = 1024  # the API's limit
_LONGEST_NAME = 253


@dataclass(frozen=True, slots=True)
class EventPace:
    """Limits: events of one pod at once, and seconds until one more; events queued, and remembered for their counts;
    seconds between attempts while the API does not answer."""

    burst: int = 10
    refill_s: float = 60.0
    queue: int = 256
    remembered: int = 512
    backoff_s: float = 1.0
    backoff_cap_s: float = 60.0


@dataclass(frozen=True, slots=True)
class EventStatistics:
    """Counts since the start: written (new or counted up), dropped (too many), refused by the API; and queued now."""

    written: int
    dropped: int
    refused: int
    waiting: int


@dataclass(frozen=True, slots=True)
class _Said:
    pod: PodName
    reason: str
    message: str
    type: Type


@dataclass(slots=True)
class _Waiting:
    first: float
    last: float
    count: int = 1


@dataclass(slots=True)
class _Written:
    name: str
    count: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class EventQueue:
    """The queue of this node's events, and their writer."""

    def __init__(self, client: KubeClient, node: str, pace: EventPace | None = None) -> None:
        self._client = client
        self._node = node
        self._pace = pace if pace is not None else EventPace()
        self._waiting: OrderedDict[_Said, _Waiting] = OrderedDict()
        self._written: OrderedDict[_Said, _Written] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._wake = asyncio.Event()
        self._ok = self._dropped = self._refused = 0

    def add(self, pod: PodName, reason: str, message: str, type: Type = "Normal") -> None:
        """Queue an event on a pod; return at once, without any guarantee that it is written."""
        said = _Said(pod, reason, message[:_LONGEST_MESSAGE], type)
        now = time.time()
        if not self._allowed(pod.uid):
            self._dropped += 1
            return
        waiting = self._waiting.get(said)
        if waiting is not None:
            waiting.count += 1
            waiting.last = now
            return
        if len(self._waiting) >= self._pace.queue:
            self._waiting.popitem(last=False)
            self._dropped += 1
        self._waiting[said] = _Waiting(now, now)
        self._wake.set()

    def statistics(self) -> EventStatistics:
        """Return the counts of written, dropped, refused and queued events."""
        return EventStatistics(self._ok, self._dropped, self._refused, len(self._waiting))

    async def run(self) -> None:
        """Write queued events, oldest first, until cancelled."""
        backoff = Backoff(self._pace.backoff_s, self._pace.backoff_cap_s)
        while True:
            await self._wake.wait()
            if not self._waiting:
                self._wake.clear()
                continue
            said, waiting = next(iter(self._waiting.items()))
            count = waiting.count
            try:
                await self._write(said, waiting)
            except Transient as error:
                await asyncio.sleep(backoff.pause_s(error))
                continue
            except HoldfastError as error:  # the namespace ends, or a right is missing: the next event may succeed
                _log.warning("no event on pod %s: %s", said.pod, error)
                self._refused += 1
            else:
                backoff.reset()
                self._ok += 1
            if waiting.count > count:
                waiting.count -= count  # queued again during the write
            elif self._waiting.get(said) is waiting:
                del self._waiting[said]

    async def _write(self, said: _Said, waiting: _Waiting) -> None:
        path = f"/api/v1/namespaces/{said.pod.namespace}/events"
        known = self._written.get(said)
        if known is not None:
            count = known.count + waiting.count
            body = {"count": count, "lastTimestamp": _timestamp(waiting.last)}
            patch = Call("PATCH", f"{path}/{known.name}", body=body, content_type=MERGE_PATCH)
            try:
                await self._client.request(patch)
            except NotFound:
                del self._written[said]  # events live an hour
            else:
                known.count = count
                self._written.move_to_end(said)
                return
        event = self._event(said, waiting)
        await self._client.request(Call("POST", path, body=event))
        self._written[said] = _Written(event["metadata"]["name"], waiting.count)
        if len(self._written) > self._pace.remembered:
            self._written.popitem(last=False)

    def _event(self, said: _Said, waiting: _Waiting) -> dict[str, Any]:
        # The name as client-go builds it; it must only be unique.
        suffix = f".{time.time_ns():x}"
        name = said.pod.name[: _LONGEST_NAME - len(suffix)].rstrip("-.") + suffix
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": said.pod.namespace},
            "involvedObject": _reference(said.pod),
            "reason": said.reason,
            "message": said.message,
            "type": said.type,
            "count": waiting.count,
            "firstTimestamp": _timestamp(waiting.first),
            "lastTimestamp": _timestamp(waiting.last),
            "source": {"component": _COMPONENT, "host": self._node},
            "reportingComponent": _COMPONENT,
            "reportingInstance": self._node,
        }

    def _allowed(self, uid: str) -> bool:
        """Take a token out of the pod's bucket; return whether there was one."""
        now = time.monotonic()
        bucket = self._buckets.pop(uid, None) or _Bucket(self._pace.burst, now)
        bucket.tokens = min(self._pace.burst, bucket.tokens + (now - bucket.at) / self._pace.refill_s)
        bucket.at = now
        self._buckets[uid] = bucket
        if len(self._buckets) > self._pace.remembered:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def _reference(pod: PodName) -> Mapping[str, str]:
    return {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
