"""Facts for the tests of the page, and a source of them that a test changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cached.contract.held_bytes import HeldBytes
from cached.contract.loadable.findings import Finding
from cached.contract.reference import ModelRef
from cached.contract.status import DaemonStatus, ModelStatus, Stale, State, StatusError, Verdict
from cached.core.space import SpaceUse
from cached.daemon.page.facts import DiskFacts, Facts, SourceFacts, VersionFacts
from cached.node.status_files import RecentError

SINCE = "2026-11-30T11:20:00Z"
GIB = 1024**3


def make_status(name: str = "acme/llama", version: str = "v1", **fields: Any) -> ModelStatus:
    """A ready version's status, with other `fields`."""
    ready = ModelStatus(
        name, version, State.READY, f"sha256:{'a' * 64}", True, "s3://b/p/", GIB, GIB, None, None, SINCE, SINCE, None
    )
    return replace(ready, **{"held": ready.digest, **fields})


def make_version(status: ModelStatus | None = None, **fields: Any) -> VersionFacts:
    """A version that is here, with other `fields`."""
    here = VersionFacts(status or make_status(), HeldBytes(GIB, 0), 1, False, (), (), 0, False, "2026-11-30T10:00:00Z")
    return replace(here, **fields)


def make_facts(*versions: VersionFacts, **fields: Any) -> Facts:
    """A daemon that is ready, with these versions and other `fields`."""
    disk = DiskFacts(SpaceUse(100 * GIB, 30 * GIB, 0, 0, 70 * GIB, 100 * GIB), (), 0, 0, 0)
    daemon = DaemonStatus("node-a", "0.1.0", 1, SINCE, SINCE)
    return replace(Facts(daemon, None, None, None, True, (), None, versions, disk, (), ()), **fields)


def make_hostile_facts(evil: str) -> Facts:
    """Facts with `evil` wherever a text of theirs comes from outside, whatever lets it in there."""
    error = StatusError(evil, evil, evil, permanent=True)
    failed = make_status(
        evil,
        evil,
        state=State.FAILED,
        held=None,
        digest=evil,
        source=evil,
        error=error,
        stale=Stale("source_changed", evil, SINCE),
        refused_pins={evil: error},
        refused_namespaces={evil: error},
        verdict=Verdict(findings=(Finding(evil, evil, evil, evil),)),
    )
    moving = make_status(
        state=State.FETCHING, bytes_done=GIB // 2, rate_bytes_per_s=3e6, eta_s=70.0, source=evil, since=evil
    )
    ref = ModelRef("acme/llama", "v1")
    return make_facts(
        make_version(failed, users=(evil,) * 9, waiting=((evil, evil),), pulls=1, last_used=evil),
        make_version(moving, size=None, leased=True, users=(evil,)),
        daemon=DaemonStatus(evil, evil, 1, evil, evil),
        not_ready=evil,
        rejected=((evil, 3, evil),),
        disconnected_since=evil,
        disk=DiskFacts(SpaceUse(9 * GIB, GIB, GIB, GIB, GIB, 8 * GIB), (((ref, ref), GIB),), GIB, 1, 1),
        sources=(SourceFacts(evil, 1, GIB, GIB, 2),),
        recent_errors=(RecentError(ref, error, 1.0, 2),),
    )


class ToldFacts:
    """A source of facts: those that a test sets."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.collected = 0

    async def measure(self) -> None:
        """Do nothing."""

    def fingerprint(self) -> tuple[object, ...]:
        return (self.facts,)

    def collect(self) -> Facts:
        self.collected += 1
        return self.facts
