"""Read the daemon's heartbeat, the status file of each version, and the state of the mount.

Law: reads `status/` and the names in the public folder, nothing else; an unreadable file is reported, not raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from cached.contract.errors import HoldfastError
from cached.contract.layout import PublicLayout
from cached.contract.program.units import format_duration
from cached.contract.reference import ModelRef, ModelRequest
from cached.contract.status import DaemonStatus, ModelStatus, State, StatusError, parse_timestamp

HEARTBEAT_STALE_S = 30.0  # the daemon writes one at least every five seconds
HEARTBEAT_MISSED_S = 6.0  # where the heartbeat is old already, the time in which a new one must arrive


def read_status(public: PublicLayout, ref: ModelRef) -> ModelStatus | None:
    """Read the status file of `ref`; None where it is missing or invalid."""
    try:
        return ModelStatus.parse(public.model_status(ref).read_bytes())
    except (OSError, HoldfastError):
        return None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A permanent failure that the daemon reports for a version. `only_by_pod`: nothing but another pod ends it, as it
    is a pin of the pod's own that cannot be met; else the catalog, the source, the space or the credentials can."""

    reason: StatusError
    only_by_pod: bool


def find_refusal(status: ModelStatus, want: ModelRequest) -> Refusal | None:
    """Return why the daemon does not fetch `want`; None while it tries, or where only other pods' pins are refused."""
    error, refused = status.error, status.refused_pins
    if str(want.pin) in refused:
        return Refusal(refused[str(want.pin)], only_by_pod=True)
    if status.state is State.FAILED and error is not None and error.permanent and error not in refused.values():
        return Refusal(error, only_by_pod=False)
    return None


def describe_error(want: ModelRequest, status: ModelStatus, refusal: Refusal | None) -> str | None:
    """Return the error that `status` has for `want`, with its remedy, in a line for the log; None without one."""
    error = status.error if refusal is None else refusal.reason
    if error is None or (refusal is None and status.state is State.FAILED):
        return None
    after = "the daemon tries again" if refusal is None else "the daemon refuses it, waiting for a correction"
    remedy = f" (what to do: {error.remedy})" if error.remedy else ""
    return f"{want}: {after}: {want.ref.drop_name(error.message)}{remedy}"


def find_mount_trouble(public: PublicLayout) -> str | None:
    """Return why the root is no public folder of Holdfast; None where it is one."""
    if not os.path.isdir(public.path):
        return f"{public.path} is not there: check --root, and that the pod mounts the node's public folder"
    if not os.path.isdir(public.models) and not os.path.isdir(public.status):
        return (
            f"{public.path} is not a public folder of Holdfast, it has neither models/ nor status/: check --root, and "
            "that the mount is <root>/public of the node's Holdfast (the daemon makes these folders when it starts)"
        )
    return None


class Heartbeat:
    """The daemon's heartbeat, read repeatedly. `clock` gives monotonic seconds, `wall` POSIX time. It is stale only
    when it does not change, not when it looks old, as after a change of the wall clock."""

    def __init__(self, public: PublicLayout, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._public = public
        self._clock = clock
        self._wall = wall
        self._updated = ""
        self._since = 0.0  # when `_updated` was first read

    def find_trouble(self) -> str | None:
        """Return why the daemon of this node seems down; None where its heartbeat changes, or there never was one."""
        try:
            beat = DaemonStatus.parse(self._public.daemon_status.read_bytes())
            age_s = self._wall() - parse_timestamp(beat.updated)
        except (OSError, HoldfastError, ValueError, TypeError):
            return None
        now = self._clock()
        if beat.updated != self._updated:
            self._updated, self._since = beat.updated, now
        if now - self._since <= (HEARTBEAT_STALE_S if age_s <= HEARTBEAT_STALE_S else HEARTBEAT_MISSED_S):
            return None
        return (
            f"the daemon of this node ({beat.node}) seems down: its last heartbeat is from {beat.updated}; "
            "check its pod and its log; waiting for it to come back"
        )


def describe_silence(public: PublicLayout, want: ModelRequest, waited_s: float) -> str:
    """Return what to check where `want` has had no status file for `waited_s` seconds."""
    daemon = "" if public.daemon_status.exists() else "the daemon runs on this node (it wrote no heartbeat here), "
    return (
        f"{want}: nothing heard of it for {format_duration(waited_s)}: no {public.model_status(want.ref)}. Check that "
        f"{daemon}the catalog has {want.ref.name!r} with version {want.ref.version!r}, "
        f"and the mount at {public.path} is this node's public folder; still waiting"
    )
