"""Compare the inventory with the disk, and have missing parts restored: people delete files by hand.

Law: does not decide which versions are wanted. A check costs a few system calls a version, and two a file of one
version, in rotation: it finds a missing name or snapshot at the next check, a missing file within as many checks as
there are versions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.node.log_once import LogOnce
from cached.node.publisher import NodeParts, Publisher
from cached.store import recovery, repair
from cached.store.disk import durable
from cached.store.disk.root import Root

_log = logging.getLogger(__name__)

_SUBJECT = "looking after the root"


class Inspection:
    """Call `look` periodically. It calls `again` with lost versions, and `found` if any snapshot was damaged."""

    def __init__(
        self,
        parts: NodeParts,
        janitor: Publisher,
        again: Callable[[Iterable[ModelRef]], None],
        found: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._publisher = janitor
        self._again = again
        self._found = found
        self._turn = 0
        self._log_once = LogOnce(_log)

    async def check(self) -> None:
        """Check once, and restore missing parts."""
        held = self._parts.inventory
        named = held.named()
        self._turn += 1
        thorough = list(named)[self._turn % len(named)] if named else None
        manifests = {digest: held.manifests[digest] for digest in named if digest == thorough}
        try:
            suspects = await self._parts.blocking.run(_examine, self._parts.root, self._parts.layout, named, manifests)
            if suspects:
                self._found()
                self._again(await self._publisher.restore(suspects))
        except HoldfastError as error:
            self._log_once.log_error(_SUBJECT, str(error))
            return
        self._parts.status_files.restore()
        self._log_once.log_recovery(_SUBJECT)


def _examine(
    root: Root, layout: Layout, named: dict[Digest, list[ModelRef]], manifests: dict[Digest, Manifest]
) -> tuple[Digest, ...]:
    """Create missing folders of the tree; return the damaged snapshots."""
    root.check()
    with durable.disk_errors(f"looking through {layout.root}"):
        recovery.make_tree(layout)
        return tuple(
            digest
            for digest, refs in named.items()
            if not repair.is_named(layout, refs, digest)
            or (digest in manifests and not repair.is_whole(layout, digest, manifests[digest]))
        )
