"""The nodes whose kubelet has registered the CSI driver, from the cluster's CSINode objects, for `--mode auto`.

Law: reads only, and keeps names only. What is not known, or may not be read, counts as no such node: pods then get a
gate, which works everywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Set as AbstractSet
from contextlib import aclosing

from cached.contract.annotations import CSI_DRIVER
from cached.contract.errors import HoldfastError, Permanent
from sidecar.injector.cluster.api import Json, KubeApi

_log = logging.getLogger(__name__)
_PATH = "/apis/storage.k8s.io/v1/csinodes"
_PAUSE_S = 5.0  # after a lost watch
_REFUSED_PAUSE_S = 60.0  # after a refusal: a right may be granted


class DriverNodes:
    """The names of these nodes. `is_settled`: whether they were read once, or cannot be."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._nodes: set[str] = set()
        self._told: str | None = None  # the last trouble in the log
        self.is_settled = False

    @property
    def names(self) -> AbstractSet[str]:
        """The nodes with the driver, as far as is known."""
        return self._nodes

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            pause_s = _PAUSE_S
            try:
                await self._follow(await self._list())
            except Permanent as error:
                self._nodes.clear()
                self._tell(f"--mode auto: pods get a gate, as CSINode objects cannot be read: {error}")
                pause_s = _REFUSED_PAUSE_S
            except HoldfastError as error:  # the nodes known last stay
                self._tell(f"--mode auto: the watch of CSINode objects is lost, trying again: {error}")
            self.is_settled = True
            await asyncio.sleep(pause_s)

    async def _list(self) -> str:
        """Replace the nodes by a list; return the version to watch from."""
        found = await self._api.get(f"{_PATH}?resourceVersion=0")
        if found is None:
            raise Permanent("no_csi", "the API server has no CSINode objects", "Kubernetes 1.17 and later have them")
        self._nodes = {_name(item) for item in found.get("items") or () if _has_driver(item)}
        self._tell(None)
        self.is_settled = True
        _log.info("%d nodes have registered the CSI driver %s", len(self._nodes), CSI_DRIVER)
        return str((found.get("metadata") or {}).get("resourceVersion") or "0")

    async def _follow(self, version: str) -> None:
        """Apply changes until the server ends the watch."""
        path = f"{_PATH}?watch=1&allowWatchBookmarks=1&resourceVersion={version}"
        async with aclosing(self._api.watch(path)) as events:  # a connection must not wait for the garbage collector
            async for event in events:
                kind, item = event.get("type"), event.get("object") or {}
                if kind == "ERROR":  # the version is too old: list again
                    return
                if kind == "DELETED" or not _has_driver(item):
                    self._nodes.discard(_name(item))
                elif kind != "BOOKMARK":
                    self._nodes.add(_name(item))

    def _tell(self, trouble: str | None) -> None:
        """Log a trouble once, and again when it changes."""
        if trouble is not None and trouble != self._told:
            _log.warning("%s", trouble)
        self._told = trouble


def _has_driver(item: Json) -> bool:
    drivers = (item.get("spec") or {}).get("drivers") or ()
    return any(driver.get("name") == CSI_DRIVER for driver in drivers)


def _name(item: Json) -> str:
    return str((item.get("metadata") or {}).get("name"))
