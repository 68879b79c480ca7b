"""Look for doubts of gates, have the doubted snapshots hashed now, and bound what a reader who doubts for ever costs.

Law: one lock is tried while no gate rings: soon after another process opened the folder of snapshots, as a gate does
that rings, and every few seconds; where that is not noticed, twice a second. A doubt that names and record confirm in a
few system calls is answered always: no reader of a read-only mount can cause it. One that only a hash can judge is a
claim: where the bytes turn out right, claims about that snapshot, and about all of them, are not looked at for a
multiple of what the hash took.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.snapshot import doubt
from cached.contract.snapshot.verify import check_record, load_manifest
from cached.node.integrity.recheck import RecheckResult
from cached.node.inventory import Inventory
from cached.node.log_once import LogOnce
from cached.node.threads import Blocking
from cached.store.disk import durable

_log = logging.getLogger(__name__)

_PAUSE_S = 0.5  # between two looks at the bell
_QUIET_PAUSE_S = 10.0  # the same, while no other process opens the folder
_OPENED_S = 10.0  # who opens the folder may take the lock later
_SHARE = 50.0  # of the time, while the bell rings: looking for doubts takes at most a fiftieth
_BELL = "the bell of the gates"


@dataclass(frozen=True, slots=True)
class ClaimPace:
    """How long claims that proved wrong are not looked at: about the same snapshot at least `least_s` and `same` times
    the hash, doubled with each further one up to `most_s`; about any snapshot `any` times the hash."""

    least_s: float = 60.0
    same: float = 20.0
    most_s: float = 3600.0
    any: float = 4.0


@dataclass(frozen=True, slots=True)
class _Wrong:
    """Claims about one snapshot that proved wrong, or checks of it that failed (`failed`: the last one did): how many,
    and until when no claim, or no doubt at all, is looked at, in monotonic seconds."""

    times: int
    until: float
    failed: bool


class Recheckable(Protocol):
    """The part that hashes a snapshot now."""

    async def recheck(self, digest: Digest) -> RecheckResult:
        """Hash a snapshot, and repair it. Raises `HoldfastError`."""


class Bell(Protocol):
    """What tells that another process opened the folder of snapshots: `rung` is set then, if `watches_bell`; not by us
    while `ignoring_own`."""

    rung: asyncio.Event

    @property
    def watches_bell(self) -> bool: ...

    def ignoring_own(self) -> AbstractContextManager[None]: ...


class Doubts:
    """Watches the bell. `check_names` restores names, records and snapshots that are missing."""

    def __init__(
        self,
        *,
        layout: Layout,
        inventory: Inventory,
        blocking: Blocking,
        recheck: Recheckable,
        check_names: Callable[[], Awaitable[None]],
        bell: Bell,
        pace: ClaimPace | None = None,
    ) -> None:
        self._layout = layout
        self._inventory = inventory
        self._blocking = blocking
        self._recheck = recheck
        self._check_names = check_names
        self._bell = bell
        self._opened_until = 0.0  # monotonic seconds: until then a look at the bell follows the other soon
        self._pace = pace or ClaimPace()
        self._wrong: dict[Digest, _Wrong] = {}
        self._claims_until = 0.0  # monotonic seconds: until when no claim is looked at
        self._log_once = LogOnce(_log)

    async def run(self) -> None:
        """Answer doubts until cancelled."""
        least_s = 0.0
        while True:
            doubted: dict[Digest, bool] = {}
            began = time.monotonic()
            try:
                await self._wait_for_bell(least_s)
                began = time.monotonic()
                doubted = await self._find_doubted()
                self._log_once.log_recovery(_BELL)
            except HoldfastError as error:
                self._log_once.log_error(_BELL, str(error))
            least_s = _SHARE * (time.monotonic() - began)
            for digest, is_claim in doubted.items():
                await self._answer(digest, is_claim=is_claim)

    async def _wait_for_bell(self, least_s: float) -> None:
        """Return once a gate rings, after `least_s` seconds at least. Raises `HoldfastError`."""
        await asyncio.sleep(least_s)
        is_ringing = False
        while not is_ringing:
            await self._pause()
            with self._bell.ignoring_own():
                is_ringing = await self._blocking.run(_try_bell, self._layout)
        self._opened_until = time.monotonic() + _OPENED_S

    async def _pause(self) -> None:
        """Wait until the bell should be tried."""
        bell = self._bell
        if not bell.watches_bell or time.monotonic() < self._opened_until:
            await asyncio.sleep(_PAUSE_S)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_PAUSE_S):
                    await bell.rung.wait()
        if bell.rung.is_set():
            bell.rung.clear()
            self._opened_until = time.monotonic() + _OPENED_S

    async def _find_doubted(self) -> dict[Digest, bool]:
        """Return the doubted snapshots, and whether nothing but a hash can tell of each; restore names first."""
        await self._check_names()
        return await self._blocking.run(_list_doubted, self._layout, tuple(self._inventory.manifests))

    async def _answer(self, digest: Digest, *, is_claim: bool) -> None:
        now, before = time.monotonic(), self._wrong.get(digest)
        if before is not None and before.until > now and (is_claim or before.failed):
            return
        if is_claim and self._claims_until > now:
            return
        try:
            result = await self._recheck.recheck(digest)
        except HoldfastError as error:
            _log.error("a gate refuses snapshot %s, and it cannot be looked at: %s", digest, error)
            self._put_off(digest, time.monotonic() - now, failed=True)
            return
        if is_claim and result.outcome == "right":
            self._claims_until = time.monotonic() + self._pace.any * result.took_s
            self._put_off(digest, result.took_s, failed=False)
        else:
            self._wrong.pop(digest, None)

    def _put_off(self, digest: Digest, took_s: float, *, failed: bool) -> None:
        """Look at no claim about this snapshot for a while; after a failure, at no doubt."""
        before = self._wrong.get(digest)
        times = 1 if before is None else before.times + 1
        pause_s = max(self._pace.least_s, self._pace.same * took_s)
        pause_s = max(pause_s, min(self._pace.most_s, pause_s * 2.0 ** min(times - 1, 20)))
        now = time.monotonic()
        self._wrong = {each: wrong for each, wrong in self._wrong.items() if wrong.until > now - self._pace.most_s}
        self._wrong[digest] = _Wrong(times, now + pause_s, failed)
        names = ", ".join(map(str, self._inventory.names(digest)))
        what = "doubts" if failed else "its bytes are right: doubts that only a hash can judge"
        _log.warning("snapshot %s (%s): %s are not looked at for %.0f s", digest, names, what, pause_s)


def _try_bell(layout: Layout) -> bool:
    with durable.disk_errors(f"trying the bell at {layout.public.snapshots}"):
        return doubt.is_bell_held(layout.public)


def _list_doubted(layout: Layout, digests: Iterable[Digest]) -> dict[Digest, bool]:
    return {digest: _is_as_recorded(layout, digest) for digest in digests if _is_doubted(layout, digest)}


def _is_doubted(layout: Layout, digest: Digest) -> bool:
    try:
        return doubt.is_doubted(layout.public.snapshot(digest))
    except OSError:  # replaced by something that is no file: the names were looked at before
        return False


def _is_as_recorded(layout: Layout, digest: Digest) -> bool:
    snapshot = layout.public.snapshot(digest)
    try:
        check_record(snapshot, load_manifest(snapshot, None))
    except HoldfastError:
        return False
    return True
