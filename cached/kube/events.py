"""Events on pods, as `kubectl describe pod` shows them: queued, merged, limited, dropped when too many.

Law: `add` neither blocks nor fails. An event equal to an earlier one raises its count instead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from cached.contract.errors import HoldfastError, Transient
from cached.contract.status import timestamp
from cached.kube.client import MERGE_PATCH, Backoff, Call, KubeClient
from cached.kube.errors import NotFound
from cached.kube.pods import PodName

_log = logging.getLogger(__name__)

FETCHING = "WeightsFetching"
READY = "WeightsReady"
FAILED = "WeightsFailed"
CHECKING = "WeightsChecking"  # a gate or a person doubts what is here: it is hashed again
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


@dataclass(slots=True)
class EventStatistics:
    """Counts since the start: written (new or counted up), dropped (too many), refused by the API, and failed attempts
    that are repeated."""

    written: int = 0
    dropped: int = 0
    refused: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Event:
    pod: PodName
    reason: str
    message: str
    type: Type


@dataclass(slots=True)
class _Queued:
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
        self._queue: OrderedDict[_Event, _Queued] = OrderedDict()
        self._written: OrderedDict[_Event, _Written] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._wake = asyncio.Event()
        self.statistics = EventStatistics()

    def __len__(self) -> int:
        """Return the number of queued events."""
        return len(self._queue)

    def add(self, pod: PodName, reason: str, message: str, type: Type = "Normal") -> None:
        """Queue an event on a pod; return at once, without any guarantee that it is written."""
        if not self._take_token(pod.uid):
            self.statistics.dropped += 1
            return
        now = time.time()
        event = _Event(pod, reason, message[:_LONGEST_MESSAGE], type)
        queued = self._queue.get(event)
        if queued is not None:
            queued.count += 1
            queued.last = now
            return
        if len(self._queue) >= self._pace.queue:
            self._queue.popitem(last=False)
            self.statistics.dropped += 1
        self._queue[event] = _Queued(now, now)
        self._wake.set()

    async def run(self) -> None:
        """Write queued events, oldest first, until cancelled."""
        backoff = Backoff(self._pace.backoff_s, self._pace.backoff_cap_s)
        while True:
            await self._wake.wait()
            if not self._queue:
                self._wake.clear()
                continue
            event, queued = next(iter(self._queue.items()))
            count = queued.count
            try:
                await self._write(event, queued)
            except Transient as error:
                self.statistics.failures += 1
                await asyncio.sleep(backoff.pause_s(error))
                continue
            except HoldfastError as error:  # the namespace ends, or a right is missing: the next event may succeed
                _log.warning("no event on pod %s: %s", event.pod, error)
                self.statistics.refused += 1
            else:
                backoff.reset()
                self.statistics.written += 1
            if queued.count > count:
                queued.count -= count  # queued again during the write
            elif self._queue.get(event) is queued:
                del self._queue[event]

    async def _write(self, event: _Event, queued: _Queued) -> None:
        path = f"/api/v1/namespaces/{event.pod.namespace}/events"
        known = self._written.get(event)
        if known is not None:
            count = known.count + queued.count
            body = {"count": count, "lastTimestamp": timestamp(queued.last)}
            patch = Call("PATCH", f"{path}/{known.name}", body=body, content_type=MERGE_PATCH)
            try:
                await self._client.request(patch)
            except NotFound:
                del self._written[event]  # events live an hour
            else:
                known.count = count
                self._written.move_to_end(event)
                return
        # The name as client-go builds it; it must only be unique.
        suffix = f".{time.time_ns():x}"
        name = event.pod.name[: _LONGEST_NAME - len(suffix)].rstrip("-.") + suffix
        written = _Written(name, queued.count)
        await self._client.request(Call("POST", path, body=self._document(name, event, queued)))
        self._written[event] = written
        if len(self._written) > self._pace.remembered:
            self._written.popitem(last=False)

    def _document(self, name: str, event: _Event, queued: _Queued) -> dict[str, Any]:
        pod = event.pod
        reference = {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": pod.namespace},
            "involvedObject": reference,
            "reason": event.reason,
            "message": event.message,
            "type": event.type,
            "count": queued.count,
            "firstTimestamp": timestamp(queued.first),
            "lastTimestamp": timestamp(queued.last),
            "source": {"component": _COMPONENT, "host": self._node},
            "reportingComponent": _COMPONENT,
            "reportingInstance": self._node,
        }

    def _take_token(self, uid: str) -> bool:
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
