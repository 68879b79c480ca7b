"""Look whether what should be on the disk is there, and have it put back: people delete things by hand.

Law: decides nothing of what is wanted. Each look costs a few system calls a version, and two a file of one version, in
turn: a name or a snapshot is missed at the next look, a single file within as many looks as there are versions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.node.log_once import Saying
from cached.node.publisher import Janitor, NodeParts
from cached.store import recovery, repair
from cached.store.disk import durable
from cached.store.disk.root import Root

_log = logging.getLogger(__name__)

_SUBJECT = "looking after the root"


class Inspection:
    """Call `look` now and then. `again` is told which versions are lost and must be fetched again, `found` that
    anything was not as it should be."""

    def __init__(
        self,
        parts: NodeParts,
        janitor: Janitor,
        again: Callable[[Iterable[ModelRef]], None],
        found: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._janitor = janitor
        self._again = again
        self._found = found
        self._turn = 0
        self._saying = Saying(_log)

    async def look(self) -> None:
        """Look once, and mend what is missing."""
        held = self._parts.holdings
        named = held.named()
        self._turn += 1
        thorough = list(named)[self._turn % len(named)] if named else None
        manifests = {digest: held.manifests[digest] for digest in named if digest == thorough}
        try:
            suspects = await self._parts.blocking.run(_examine, self._parts.root, self._parts.layout, named, manifests)
            if suspects:
                self._found()
                self._again(await self._janitor.restore(suspects))
        except HoldfastError as error:
            self._saying.trouble(_SUBJECT, str(error))
            return
        self._parts.board.restore()
        self._saying.fine(_SUBJECT)


def _examine(
    root: Root, layout: Layout, named: dict[Digest, list[ModelRef]], manifests: dict[Digest, Manifest]
) -> tuple[Digest, ...]:
    """The snapshots that are not what they should be; folders of the tree that are missing are made."""
    root.check()
    try:
        recovery.make_tree(layout)
        return tuple(
            digest
            for digest, refs in named.items()
            if not repair.is_named(layout, refs, digest)
            or (digest in manifests and not repair.is_whole(layout, digest, manifests[digest]))
        )
    except OSError as error:
        raise durable.disk_error(error, f"looking through {layout.root}") from error
