"""The mark of a publish in an object store, which has no locks.

Law: the last writer of the mark is the publisher; every other one stops at its next check. A live publisher rewrites
the mark periodically; an unchanged mark has a dead publisher, and is taken over. The clocks of two machines are never
compared.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Protocol

from cached.publish.destination import Say
from cached.publish.mark import Mark, another_publisher, describe_publisher

_SILENCE_S = 20.0  # four beats
_LOOK_S = 2.0
_LONG_AGO_S = 120.0
_SETTLE_S = 1.0
_TURNS = 10


class PreconditionFailed(Exception):
    """Control flow: another writer was first."""


@dataclass(frozen=True, slots=True)
class StoredMark:
    """A stored object: its bytes, a `tag` that changes with each write, and its age by the server's own clock, None if
    unknown."""

    data: bytes
    tag: str
    age_s: float | None


class MarkStore(Protocol):
    """One object of a store, which holds the mark. Every method raises `Transient` or `Permanent`."""

    async def read(self) -> StoredMark | None:
        """Return the object, None if there is none."""

    async def write(self, data: bytes, tag: str | None) -> None:
        """Write the object if it still has `tag` (None: if there is none), else raise `PreconditionFailed`."""

    async def delete(self) -> None:
        """Delete the object, if it exists."""

    def ignore_conditions(self) -> None:
        """Note that the store ignores conditions: write without them from now on."""


def compute_age_s(headers: Message) -> float | None:
    """Return the age in seconds of the object that an answer with these `headers` has; None where they do not tell."""
    try:
        written, now = (parsedate_to_datetime(headers[name]) for name in ("Last-Modified", "Date"))
        return (now - written).total_seconds()
    except (ValueError, TypeError):  # an invalid date, or none
        return None


@dataclass(frozen=True, slots=True)
class _Found:
    """A stored mark; `mark` None if it is invalid. `age_s`: as in `StoredMark`."""

    mark: Mark | None
    tag: str
    age_s: float | None

    @property
    def is_over(self) -> bool:
        """Whether its publisher has certainly ended."""
        return (self.mark is not None and self.mark.ended) or (self.age_s is not None and self.age_s > _LONG_AGO_S)


class ObjectMark:
    """The mark in `store`; `claim` comes first. `where`: the destination, for messages."""

    def __init__(self, store: MarkStore, where: str) -> None:
        self._store = store
        self._where = where
        self._own: Mark | None = None
        self._busy = asyncio.Lock()

    async def claim(self, mark: Mark, say: Say) -> None:
        """Become the publisher; raises `another_publisher` if another one runs."""
        self._own = mark  # before the write: `give_up` after an interruption needs it
        for _ in range(_TURNS):
            found = await self._read()
            if found is not None and found.mark != mark and not await self._has_died(found, say):
                continue
            try:
                await self._store.write(mark.encode(), None if found is None else found.tag)
            except PreconditionFailed:
                continue
            await self._settle(mark)
            if found is not None and found.mark != mark:
                say(f"taking over from a publish that did not end ({describe_publisher(found.mark)})")
            return
        raise another_publisher(self._where, None)

    async def keep(self) -> None:
        """Rewrite the mark; raises `another_publisher` if it is another publisher's."""
        async with self._busy:
            found = await self._check()
            assert self._own is not None
            beaten = replace(self._own, beat=self._own.beat + 1)
            try:
                await self._store.write(beaten.encode(), found.tag)
            except PreconditionFailed:  # or our own request, sent twice
                await self._check()
            self._own = beaten

    async def give_up(self) -> None:
        """Note in the mark that its publisher has ended, so that the next one can start at once."""
        async with self._busy:
            found = await self._read()
            if self._own is not None and found is not None and self._is_own(found):
                with contextlib.suppress(PreconditionFailed):  # it is another publisher's by now
                    await self._store.write(replace(self._own, ended=True).encode(), found.tag)

    async def remove(self) -> None:
        """Delete the mark; raises `another_publisher` if it is another publisher's."""
        async with self._busy:
            await self._check()
            await self._store.delete()

    async def _check(self) -> _Found:
        found = await self._read()
        if found is None or not self._is_own(found):
            raise another_publisher(self._where, None if found is None else found.mark)
        return found

    def _is_own(self, found: _Found) -> bool:
        return self._own is not None and found.mark is not None and found.mark.publisher == self._own.publisher

    async def _has_died(self, found: _Found, say: Say) -> bool:
        """Wait `_SILENCE_S` for a change of the mark, which raises `another_publisher`; return False if its publisher
        ended it or it was deleted, True if it stays unchanged."""
        if found.is_over:
            return True
        other = describe_publisher(found.mark)
        say(f"found the mark of another publish ({other}); looking {_SILENCE_S:.0f} s whether it lives")
        end = asyncio.get_running_loop().time() + _SILENCE_S
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_LOOK_S)
            now = await self._read()
            if now is None or now.is_over:
                return False
            if now.tag != found.tag or now.mark != found.mark:
                raise another_publisher(self._where, now.mark)
        return True

    async def _settle(self, mark: Mark) -> None:
        """On a store that ignores conditions, two publishers may have started together: the last writer continues."""
        try:
            await self._store.write(mark.encode(), None)
        except PreconditionFailed:
            return  # the store supports conditions: no other publisher can have started
        self._store.ignore_conditions()
        await asyncio.sleep(_SETTLE_S)
        found = await self._read()
        if found is None or found.mark != mark:
            raise another_publisher(self._where, None if found is None else found.mark)

    async def _read(self) -> _Found | None:
        found = await self._store.read()
        return None if found is None else _Found(Mark.parse(found.data), found.tag, found.age_s)
