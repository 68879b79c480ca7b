"""What the daemon tells of itself again and again: its heartbeat; to the cluster, the Events of pods and the summary of
the node; the traces of pods.

Law: tells what the status files say; decides nothing. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable

from cached.contract.errors import HoldfastError
from cached.core.space import Ledger
from cached.daemon.cold_starts import ColdStarts
from cached.node.cluster import Cluster
from cached.node.log_once import LogOnce
from cached.node.status_files import StatusFiles

_log = logging.getLogger("holdfast")

_HEARTBEAT_S = 2.0  # the design asks for 5 at most
_REPORT_S = 1.0
_REPORT_QUIET_S = 60.0  # the summary's space, which other programs change
_DISK = "the root's disk"


async def write_heartbeats(status_files: StatusFiles, end_pauses: Callable[[], None]) -> None:
    """Write the heartbeat every 2 s; call `end_pauses` of the fetches after the first write that succeeds again."""
    had_trouble, log_once = False, LogOnce(_log)
    while True:
        status_files.write_heartbeat()
        if (hanging := status_files.hanging) is None:
            log_once.log_recovery(_DISK)
        else:
            log_once.log_error(_DISK, f"it does not answer ({hanging.remedy})")
        await asyncio.sleep(_HEARTBEAT_S)
        has_trouble = status_files.trouble_writing is not None
        if had_trouble and not has_trouble:
            end_pauses()
        had_trouble = has_trouble


class ClusterReports:
    """Tells the cluster of this node and its pods. `cold_starts`: the traces of pods, None without tracing."""

    def __init__(
        self, cluster: Cluster, status_files: StatusFiles, ledger: Ledger, cold_starts: ColdStarts | None
    ) -> None:
        self._cluster = cluster
        self._status_files = status_files
        self._ledger = ledger
        self._cold_starts = cold_starts

    async def run(self) -> None:
        """Write Events and the node's summary at each change of a status or of the pods, each once: a fetch may be
        shorter than any polling period."""
        summarised = -math.inf
        while True:
            self._status_files.news.clear()
            self._cluster.tell_pods(self._status_files.get)
            self.trace()
            is_due = time.monotonic() - summarised >= _REPORT_S
            if is_due:
                summarised = time.monotonic()
                self._summarise()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_QUIET_S if is_due else _REPORT_S):
                    await self._status_files.news.wait()

    def _summarise(self) -> None:
        try:
            use = self._ledger.compute_use()
        except HoldfastError:  # reported by the part that works on the disk
            use = self._ledger.compute_use_without_disk()
        self._cluster.summarise(self._status_files.all(), use.used + use.dying, use.capacity)

    def trace(self) -> None:
        """Bring the traces of pods up to date, if there are any."""
        if self._cold_starts is not None and self._cluster.synced:
            self._cold_starts.look(self._cluster.pods(), self._status_files.get, self._cluster.list_unmounted())

    def report_soon(self) -> None:
        """Have the next report come at once: the pods or the node's labels changed."""
        self._status_files.news.set()
