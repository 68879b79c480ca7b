"""Why wanted weights are not on this node, and whether anything fetches them: the daemon's own words, from its status.

Law: reads two small files of the public folder, and writes nothing. A file that cannot be read counts as missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cached.contract.annotations import MODELS
from cached.contract.errors import HoldfastError
from cached.contract.layout import PublicLayout
from cached.contract.program.units import format_duration, format_size
from cached.contract.reference import ModelRef
from cached.contract.status import DaemonStatus, ModelStatus, State, parse_timestamp
from server.lifecycle.snapshot import names

_HEARTBEAT_OLD_S = 30.0  # the daemon writes one at least every five seconds
_FETCHING = frozenset({State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})


@dataclass(frozen=True, slots=True)
class Absence:
    """Weights that are waited for. `kind` changes when a person has something new to know, `text` with each byte."""

    kind: str
    text: str


def explain_absence(path: Path) -> Absence:
    """Return what is known of the missing weights at `path`, a version's symlink in a public folder or any folder."""
    name, version = names(path)
    if version is None:
        return Absence("folder", f"{path}, which is not there: nothing of Holdfast fetches a plain folder")
    ref = ModelRef(name, version)
    public = PublicLayout(path.absolute().parent.parent.parent)
    if public.models.is_dir() and not public.status.exists():  # the tree of a CSI volume
        return Absence(
            "volume",
            f"{ref}, which is not in this pod's volume ({public.path}): a CSI volume has the versions that its pod "
            f"asked for, and never others; name it in {MODELS} of a new pod, or follow with a gate "
            "(`holdfast.dev/mode: gate`)",
        )
    kind, fetch = _explain_fetch(public, ref)
    return Absence(kind, f"{ref}, which is not on this node ({path} leads nowhere): {fetch}")


def _explain_fetch(public: PublicLayout, ref: ModelRef) -> tuple[str, str]:
    down = _find_daemon_trouble(public)
    if down is not None:
        return down
    try:
        status = ModelStatus.parse(public.model_status(ref).read_bytes())
    except (OSError, HoldfastError):
        return (
            "unwanted",
            f"nothing fetches it; put it under `prefetch` in the catalog, name it in this pod's {MODELS}, or run "
            f"`holdfast pull {ref}` on the node",
        )
    error = status.error
    if status.state is State.FAILED:
        reason = "its status says no reason" if error is None else f"{error.message} ({error.remedy})"
        return f"failed {reason}", f"its fetch failed: {reason}"
    if status.state in _FETCHING:
        again = "" if error is None else f"; tried again after an error: {error.message}"
        return f"fetched {'' if error is None else error.message}", f"the daemon fetches it: {_progress(status)}{again}"
    return status.state, f"the daemon says that it is {status.state}; its name is looked for twice a second"


def _find_daemon_trouble(public: PublicLayout) -> tuple[str, str] | None:
    """Return why no daemon can fetch; None where its heartbeat is fresh."""
    try:
        beat = DaemonStatus.parse(public.daemon_status.read_bytes())
        age_s = time.time() - parse_timestamp(beat.updated)
    except (OSError, HoldfastError, ValueError, TypeError):
        return "no daemon", (
            f"no daemon fetches it: there is no heartbeat at {public.daemon_status}; check that the daemon runs on "
            "this node, and that the mount is this node's public folder"
        )
    if age_s > _HEARTBEAT_OLD_S:
        return "daemon down", (
            f"no daemon fetches it: the last heartbeat of the one of this node ({beat.node}) is from {beat.updated}; "
            "check its pod and its log"
        )
    return None


def _progress(status: ModelStatus) -> str:
    if not status.bytes_total:
        return status.state
    percent = status.bytes_done * 100 // status.bytes_total
    text = f"{status.state}, {format_size(status.bytes_done)} of {format_size(status.bytes_total)} ({percent} %)"
    return text if status.eta_s is None else f"{text}, {format_duration(status.eta_s)} left"
