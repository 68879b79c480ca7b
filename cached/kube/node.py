"""The cache's part of this node's object: a label for each published snapshot, and a summary for people.

Law: writes only the labels `weights.holdfast.dev/*` (of snapshots, and `csi`) and the annotation `holdfast.dev/summary`
of its own node, and needs only the rights to get and patch it. It writes the last requested state, and compares it with
the object every few minutes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cached.contract.annotations import CSI_LABEL, LABEL_PREFIX, LABEL_VALUE, SUMMARY, weights_label
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.kube.client import MERGE_PATCH, METADATA, Backoff, Call, KubeClient
from cached.kube.errors import bad_response

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodePace:
    """Seconds between reads of the node, between summaries, until a withdrawal times out, and between attempts."""

    refresh_s: float = 300.0
    summary_s: float = 30.0
    withdraw_s: float = 5.0
    backoff_s: float = 1.0
    backoff_cap_s: float = 60.0


class NodeReport:
    """The labels and the summary of one node. Labels are unchanged before the first `publish`. `labels`: those of the
    node as last read, for the catalog's node selectors; `failures`: requests that failed, since the start."""

    def __init__(self, client: KubeClient, node: str, pace: NodePace | None = None) -> None:
        self._client = client
        self._path = f"/api/v1/nodes/{node}"
        self._pace = pace if pace is not None else NodePace()
        self._backoff = Backoff(self._pace.backoff_s, self._pace.backoff_cap_s)
        self._ready: frozenset[str] | None = None  # labels of published snapshots; None: unknown, all labels stay
        self._held_back: Counter[str] = Counter()
        self._mounts_volumes = False
        self._summary: str | None = None
        self._summary_due = 0.0  # monotonic seconds
        self.labels: Mapping[str, str] = {}
        self._written_summary: str | None = None
        self._read_due = 0.0
        self._requested = self._tried = self._done = 0  # numbers of the change requests
        self._failing = True  # evictions wait for the API only after its first response
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self.failures = 0

    @property
    def in_force(self) -> bool:
        """Whether the node's object has the requested state, as far as is known."""
        return not self._failing and self._done == self._requested

    def publish(self, digests: frozenset[Digest]) -> None:
        """Request the labels of these snapshots, and no others. Return at once."""
        ready = frozenset(map(weights_label, digests))
        if ready != self._ready:
            self._ready = ready
            self._request_change()

    async def report_csi(self, *, ready: bool) -> None:
        """Request the label of a node that mounts volumes, or its removal; wait for the removal, `withdraw_s` at
        most: pods that need the label should be sent elsewhere by then."""
        if ready != self._mounts_volumes:
            self._mounts_volumes = ready
            number = self._request_change()
            if not ready:
                await self._is_done(number)

    def summarise(self, text: str) -> None:
        """Request this summary, written when the next one is due. Return at once."""
        if text != self._summary:
            self._summary = text
            self._request_change()

    @asynccontextmanager
    async def withdrawn(self, digest: Digest) -> AsyncIterator[bool]:
        """Withdraw the label of a snapshot while inside, whatever is published; use it around a deletion. Yields True
        once the API confirms, False after `withdraw_s`, or at once if the last request failed; the label goes later. A
        label that outlives its snapshot costs a pod one fetch, a disk that cannot be freed costs every pod of the node,
        and without the API no pod is scheduled by that label."""
        label = weights_label(digest)
        self._held_back[label] += 1
        try:
            confirmed = await self._is_done(self._request_change())
            if not confirmed:
                _log.warning(
                    "the label %s is still on the node: the API does not answer; it goes when that does", label
                )
            yield confirmed
        finally:
            self._held_back -= Counter((label,))
            self._request_change()

    async def run(self, changed: Callable[[], None]) -> None:
        """Write the requested state until cancelled; call `changed` when other labels of the node changed."""
        while True:
            number = self._requested
            self._wake.clear()
            try:
                await self._reconcile(changed)
            except HoldfastError as error:
                self.failures += 1
                if not self._failing or self.failures == 1:
                    _log.warning("the node's labels and summary wait for the API: %s", error)
                self._failing = True
                await self._finish_request(number, done=False)
                await asyncio.sleep(self._backoff.pause_s(error))
                continue
            self._failing = False
            self._backoff.reset()
            await self._finish_request(number, done=True)
            await self._pause()

    async def _reconcile(self, changed: Callable[[], None]) -> None:
        if time.monotonic() >= self._read_due:
            self._store(await self._client.request(Call("GET", self._path, accept=METADATA)), changed)
            self._read_due = time.monotonic() + self._pace.refresh_s
        labels, annotations = self._label_changes(), self._summary_change()
        if not labels and not annotations:
            return
        metadata: dict[str, Any] = {"labels": labels} if labels else {}
        if annotations:
            metadata["annotations"] = annotations
        patch = Call("PATCH", self._path, body={"metadata": metadata}, content_type=MERGE_PATCH, accept=METADATA)
        try:
            response = await self._client.request(patch)
        except HoldfastError:
            self._read_due = 0.0  # the patch may have succeeded, or the node may have been replaced
            raise
        if annotations:
            self._summary_due = time.monotonic() + self._pace.summary_s
        self._store(response, changed)

    def _label_changes(self) -> dict[str, str | None]:
        if self._ready is None:
            return {}
        wanted = {label for label in self._ready if not self._held_back[label]}
        wanted |= {CSI_LABEL} if self._mounts_volumes else set()
        stale = [label for label in self.labels if label.startswith(LABEL_PREFIX) and label not in wanted]
        missing = [label for label in wanted if self.labels.get(label) != LABEL_VALUE]
        return {**dict.fromkeys(sorted(stale)), **dict.fromkeys(sorted(missing), LABEL_VALUE)}

    def _summary_change(self) -> dict[str, str]:
        if self._summary in (None, self._written_summary) or time.monotonic() < self._summary_due:
            return {}
        return {SUMMARY: str(self._summary)}

    def _store(self, node: dict[str, Any], changed: Callable[[], None]) -> None:
        """Store the labels and the summary of the node's object."""
        try:
            metadata = node["metadata"]
            self._written_summary = (metadata.get("annotations") or {}).get(SUMMARY)
            before, self.labels = self.labels, dict(metadata.get("labels") or {})
        except (KeyError, TypeError, AttributeError) as error:
            raise bad_response(self._path, f"not a node: {error!r}") from error
        if _others(self.labels) != _others(before):
            changed()

    async def _pause(self) -> None:
        """Wait until a change is requested, the summary is due, or the next read is due."""
        until = self._read_due
        if self._summary not in (None, self._written_summary):
            until = min(until, self._summary_due)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._wake.wait()

    def _request_change(self) -> int:
        self._requested += 1
        self._wake.set()
        return self._requested

    async def _is_done(self, number: int) -> bool:
        """Wait for change request `number`; return False if it fails or takes longer than `withdraw_s`."""
        if self._failing:
            return False
        try:
            async with asyncio.timeout(self._pace.withdraw_s), self._progress:
                await self._progress.wait_for(lambda: self._tried >= number)
        except TimeoutError:
            return False
        return self._done >= number

    async def _finish_request(self, number: int, *, done: bool) -> None:
        async with self._progress:
            self._tried = number
            if done:
                self._done = number
            self._progress.notify_all()


def _others(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if not key.startswith(LABEL_PREFIX)}
