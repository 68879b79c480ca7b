"""A place that a source reads, as the cases need it: what a test of a source writes.

Law: Protocols and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cached.conformance.front import Front, ProxiedRequest
from cached.contract.trust import Trust
from cached.sources.base import Source


class Place(Protocol):
    """A version at a service, and what a test can do to it. Each case gets a place of its own, empty at first.

    `uri`: the location of the version; `gone`: one of nothing, of the same kind. `secrets`: texts that may never be
    shown nor reach another host. `trust`: what the source vouches for there. `page`: so many files and one more make
    more than one page of a listing. `fronts`: what stands between the source and its service, first the one that is
    asked for listings; empty where there is no HTTP. `refused`: the names of cases that cannot be here, each with the
    reason.
    """

    @property
    def uri(self) -> str: ...

    @property
    def gone(self) -> str: ...

    @property
    def secrets(self) -> Sequence[str]: ...

    @property
    def trust(self) -> Trust: ...

    @property
    def page(self) -> int: ...

    @property
    def fronts(self) -> Sequence[Front]: ...

    @property
    def refused(self) -> Mapping[str, str]: ...

    def open(self, uri: str) -> Source:
        """Return a new source, as the daemon opens it."""

    def put(self, files: Mapping[str, bytes]) -> None:
        """Add files to the version, or replace them."""

    def remove(self, path: str) -> None:
        """Delete a file of the version."""

    def expire(self) -> None:
        """End the credentials or addresses that the source has now; new ones are given."""

    def is_bytes(self, request: ProxiedRequest) -> bool:
        """Return whether a request asks for the bytes of a file, and not for a listing or a token."""


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """A case that a place names among its `refused`."""

    case: str
    reason: str

    def __str__(self) -> str:
        return f"{self.case}: {self.reason}"


class NotConforming(AssertionError):
    """A promise that a source does not keep: what was expected, and what was found."""


def expect(kept: bool, promise: str, found: object = None) -> None:
    """Raise `NotConforming` unless `kept`."""
    if not kept:
        raise NotConforming(promise if found is None else f"{promise}; found {found!r:.500}")
