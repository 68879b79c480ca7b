"""Read what the daemon says of itself and of each version, and what is wrong with the mount.

Law: reads `status/` and the names in the public folder, nothing else; what cannot be read is a fact to tell, and no
error.
"""

from __future__ import annotations

from collections.abc import Callable

from cached.contract.errors import HoldfastError
from cached.contract.layout import PublicLayout
from cached.contract.program.units import format_duration
from cached.contract.reference import ModelRef, Wanted
from cached.contract.status import DaemonStatus, ModelStatus, parse_timestamp

HEARTBEAT_STALE_S = 30.0  # the daemon writes one every five seconds at least
HEARTBEAT_MISSED_S = 6.0  # that one is old already: is there a next one?


def read_status(public: PublicLayout, ref: ModelRef) -> ModelStatus | None:
    """What the daemon says of `ref`; None where it says nothing, or nothing that can be read."""
    try:
        return ModelStatus.parse(public.model_status(ref).read_bytes())
    except (OSError, HoldfastError):
        return None


def mount_trouble(public: PublicLayout) -> str | None:
    """Why the root cannot be a public folder of Holdfast, None where it can."""
    if not public.path.is_dir():
        return f"{public.path} is not there: check --root, and that the pod mounts the node's public folder"
    if not public.models.is_dir() and not public.status.is_dir():
        return (
            f"{public.path} is not a public folder of Holdfast, it has neither models/ nor status/: check --root, and "
            "that the mount is <root>/public of the node's Holdfast (the daemon makes these folders when it starts)"
        )
    return None


class Heartbeat:
    """The daemon's sign of life, looked at again and again. `clock` gives monotonic seconds, `wall` POSIX time.

    It is seen to stand still, and not only read to be old: the wall clock may have been set, and then a daemon that
    lives looks dead until its next beat, or a dead one alive until that time comes.
    """

    def __init__(self, public: PublicLayout, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._public = public
        self._clock = clock
        self._wall = wall
        self._updated = ""
        self._since = 0.0  # when `_updated` was first seen

    def trouble(self) -> str | None:
        """Why the daemon of this node seems down, None where its heartbeat moves or there never was one."""
        try:
            beat = DaemonStatus.parse(self._public.daemon_status.read_bytes())
            age_s = self._wall() - parse_timestamp(beat.updated)
        except (OSError, HoldfastError, ValueError, TypeError):
            return None
        now = self._clock()
        if beat.updated != self._updated:
            self._updated, self._since = beat.updated, now
        still_s = now - self._since
        if still_s <= (HEARTBEAT_STALE_S if age_s <= HEARTBEAT_STALE_S else HEARTBEAT_MISSED_S):
            return None
        return (
            f"the daemon of this node ({beat.node}) seems down: its last sign of life is from {beat.updated}; "
            "check its pod and its log; waiting for it to come back"
        )


def silence(public: PublicLayout, want: Wanted, waited_s: float) -> str:
    """What to check where nothing was said of `want` for `waited_s` seconds."""
    beating = public.daemon_status.exists()
    return (
        f"{want}: nothing heard of it for {format_duration(waited_s)}: no {public.model_status(want.ref)}. Check that "
        + ("" if beating else "the daemon runs on this node (it left no sign of life here), ")
        + f"the catalog has {want.ref.name!r} with version {want.ref.version!r}, "
        f"and the mount at {public.path} is this node's public folder; still waiting"
    )
