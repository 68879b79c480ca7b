"""Status files: the status of each version and the daemon's heartbeat, as JSON under `public/status`.

Law: pure values and their JSON. Readers ignore unknown keys (design, section 3).
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.loadable.findings import Finding
from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRef
from cached.contract.trust import Trust


class State(StrEnum):
    """The state of a version on this node."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"
    READY = "ready"
    FAILED = "failed"
    EVICTING = "evicting"


@dataclass(frozen=True, slots=True)
class StatusError:
    """Why a version failed, and what a person can do."""

    code: str
    message: str
    remedy: str
    permanent: bool

    @classmethod
    def of(cls, error: HoldfastError) -> StatusError:
        return cls(error.code, error.message, error.remedy, error.permanent)


@dataclass(frozen=True, slots=True)
class Stale:
    """The held content differs from the catalog's or the source's present one (`reason`: `catalog_changed` or
    `source_changed`), detected at `since`; `digest`: the expected one, None if unknown without a fetch."""

    reason: str
    digest: str | None
    since: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Files of the source that the built-in selection or the entry's `for` leaves out: their `kind`, how many, their
    bytes as far as known, and one of them."""

    kind: str
    files: int
    bytes: int
    example: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a version's files besides their bytes: `findings`, the reasons why it may not load as its
    authors meant, what was `left_out` of it, and the `trust` that its source gave; None: not recorded."""

    findings: tuple[Finding, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    trust: Trust | None = None

    def document(self) -> dict[str, Any]:
        """Return the three fields of a JSON object."""
        return {
            "findings": [finding.document() for finding in self.findings],
            "left_out": [asdict(each) for each in self.left_out],
            "trust": None if self.trust is None else self.trust.value,
        }

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Verdict:
        """Return the verdict in a JSON object, empty in one of an older release. Raises KeyError or TypeError."""
        findings, left_out = document.get("findings"), document.get("left_out")
        trust = next((trust for trust in Trust if trust == document.get("trust")), None)
        if not (findings or left_out or trust):
            return NO_VERDICT  # of most versions of an older release
        names = tuple(f.name for f in fields(LeftOut))
        return cls(
            findings=tuple(Finding.parse(each) for each in findings or ()),
            left_out=tuple(LeftOut(**{name: each[name] for name in names}) for each in left_out or ()),
            trust=trust,
        )


NO_VERDICT = Verdict()


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version's status. `digest` is None until known; `since` and `updated` are UTC times as `timestamp()` writes
    them. `held` is the digest that the version's symlink leads to now, also during a fetch of another one; None if the
    version is not held. `refused_pins`: pins that cannot be met, by digest; they concern the pods with that pin.
    `refused_namespaces`: namespaces of pods that the catalog does not give the version to, which concern those pods.
    `verdict`: `findings`, `left_out` and `trust` of the JSON object. `bytes_from_peers`: of `bytes_done`, during a
    fetch, those that other nodes sent."""

    model: str
    version: str
    state: State
    digest: str | None
    pinned: bool
    source: str
    bytes_total: int | None
    bytes_done: int
    rate_bytes_per_s: float | None
    eta_s: float | None
    since: str
    updated: str
    error: StatusError | None
    held: str | None = None
    stale: Stale | None = None
    refused_pins: dict[str, StatusError] = field(default_factory=dict)
    refused_namespaces: dict[str, StatusError] = field(default_factory=dict)
    verdict: Verdict = NO_VERDICT
    bytes_from_peers: int = 0

    @classmethod
    def of_held(
        cls,
        ref: ModelRef,
        digest: str,
        size: int,
        *,
        pinned: bool,
        source: str,
        since: str,
        updated: str,
        verdict: Verdict,
    ) -> ModelStatus:
        """Return the status of a version that is ready and no more."""
        return cls(
            model=ref.name,
            version=ref.version,
            state=State.READY,
            digest=digest,
            pinned=pinned,
            source=source,
            bytes_total=size,
            bytes_done=size,
            rate_bytes_per_s=None,
            eta_s=None,
            since=since,
            updated=updated,
            error=None,
            held=digest,
            verdict=verdict,
        )

    def is_of_held(self, ref: ModelRef, digest: str, size: int, *, pinned: bool, source: str, verdict: Verdict) -> bool:
        """Return whether it is what `of_held` makes of these, whatever its times."""
        return (
            self.state is State.READY
            and self.model == ref.name
            and self.version == ref.version
            and self.digest == self.held == digest
            and self.bytes_total == self.bytes_done == size
            and self.pinned == pinned
            and self.source == source
            and self.verdict == verdict
            and self.rate_bytes_per_s is None
            and self.eta_s is None
            and self.error is None
            and self.stale is None
            and not (self.refused_pins or self.refused_namespaces or self.bytes_from_peers)
        )

    @property
    def is_checked_again(self) -> bool:
        """Whether the held files are hashed again now."""
        return self.state is State.VERIFYING and self.held is not None and self.held == self.digest

    @property
    def listed_state(self) -> State:
        """The state that lists show: a held version is ready whatever fetch runs for its name, unless its files are
        hashed again."""
        return State.READY if self.held is not None and not self.is_checked_again else self.state

    def describe_pace(self) -> list[str]:
        """Return in words what is known of a running fetch besides its bytes: the other nodes' share of them, its rate,
        the remaining time."""
        parts = []
        if self.bytes_from_peers and self.bytes_done:
            parts.append(f"{100 * self.bytes_from_peers // self.bytes_done} % of it from other nodes")
        if self.rate_bytes_per_s:
            parts.append(f"{format_size(self.rate_bytes_per_s)}/s")
        if self.eta_s is not None:
            parts.append(f"{format_duration(self.eta_s)} left")
        return parts

    def document(self) -> dict[str, Any]:
        """Return the JSON object of this status."""
        document = {name: getattr(self, name) for name in _MODEL_KEYS}
        document["error"] = None if self.error is None else asdict(self.error)
        document["stale"] = None if self.stale is None else asdict(self.stale)
        document |= document.pop("verdict").document()
        for name in _REFUSALS:
            if document[name]:
                document[name] = {key: asdict(error) for key, error in document[name].items()}
        return document

    @classmethod
    def parse(cls, data: bytes) -> ModelStatus:
        """Parse a status file. Raises `Permanent` (`invalid_status`)."""
        document = _object(data)
        known = {name: document[name] for name in _MODEL_KEYS if name in document}
        try:
            known["state"] = State(known["state"])
            if known.get("error") is not None:
                known["error"] = _error(known["error"])
            for name in _REFUSALS:
                refusals = known.get(name)
                known[name] = {str(key): _error(error) for key, error in refusals.items()} if refusals else {}
            if known.get("stale") is not None:
                known["stale"] = Stale(**{f.name: known["stale"][f.name] for f in fields(Stale)})
            known["verdict"] = Verdict.parse(document)
            return cls(**known)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _invalid(str(error)) from error


_REFUSALS = ("refused_pins", "refused_namespaces")  # errors that concern some pods only
_TIMESTAMP = "%Y-%m-%dT%H:%M:%SZ"
_MODEL_KEYS = tuple(f.name for f in fields(ModelStatus))


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon's heartbeat: `updated` changes at least every 5 seconds."""

    node: str
    version: str
    pid: int
    started: str
    updated: str

    def document(self) -> dict[str, Any]:
        """Return the JSON object of this heartbeat."""
        return asdict(self)

    @classmethod
    def parse(cls, data: bytes) -> DaemonStatus:
        """Parse `status/daemon.json`. Raises `Permanent` (`invalid_status`)."""
        document = _object(data)
        try:
            return cls(**{f.name: document[f.name] for f in fields(cls)})
        except (KeyError, TypeError) as error:
            raise _invalid(str(error)) from error


def _error(document: dict[str, Any]) -> StatusError:
    names = {f.name for f in fields(StatusError)}
    return StatusError(**{key: value for key, value in document.items() if key in names})


def encode(document: dict[str, Any]) -> bytes:
    """Return the JSON of a status or record file: UTF-8, sorted keys, a final newline. A lone surrogate, as in a file
    name that is not UTF-8, becomes its JSON escape."""
    return (json.dumps(document, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8", "backslashreplace")


def timestamp(seconds: float) -> str:
    """Format seconds since the epoch as `2026-11-20T18:00:00Z`."""
    return _timestamp(math.floor(seconds))


@lru_cache(maxsize=16)
def _timestamp(seconds: int) -> str:
    # Cached: most calls format the current second, thousands of them in that second.
    return datetime.fromtimestamp(seconds, UTC).strftime(_TIMESTAMP)


def parse_timestamp(text: str) -> float:
    """Parse the format of `timestamp` as seconds since the epoch. Raises ValueError."""
    with suppress(ValueError):
        found = datetime.fromisoformat(text)  # a third of strptime's time; it takes more forms than ours
        if found.strftime(_TIMESTAMP) == text:
            return found.timestamp()
    raise ValueError(f"expected a time as 2026-11-20T18:00:00Z, found {text!r}")


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _invalid(str(error)) from error
    if not isinstance(document, dict):
        raise _invalid(f"expected a JSON object, found {type(document).__name__}")
    return document


def _invalid(detail: str) -> Permanent:
    return Permanent("invalid_status", f"not a status file: {detail}", "check that only the daemon writes the root")
