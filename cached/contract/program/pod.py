"""Which pod this process runs in, as the kubelet's files tell.

Law: standard library only, cheap to import; reads files that the kubelet mounts into every container, and what the
environment says in their place (HOLDFAST_POD, HOLDFAST_POD_UID, HOLDFAST_NODE). Outside of a pod all is None.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS, _HOSTS = Path("/proc/self/mountinfo"), Path("/etc/hosts")
_UID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# The root of a mount, its fourth field: the kubelet mounts these two of a pod's folder into each container.
_OWN_FOLDER = re.compile(rf"/pods/({_UID})/(?:etc-hosts|containers/\S+) (?:/etc/hosts|/dev/termination-log) ")
_OWN_NETWORK = (
    "# Kubernetes-managed hosts file."  # with `hostNetwork` it goes on in brackets, and the host's name is the node's
)


def find_uid() -> str | None:
    """Return the uid of this process's pod: HOLDFAST_POD_UID, else from where the kubelet's files are mounted."""
    given = os.environ.get("HOLDFAST_POD_UID")
    if given:
        return given
    found = _OWN_FOLDER.search(_read(_MOUNTS))
    return None if found is None else found[1]


def find_name() -> str | None:
    """Return the name of this process's pod: HOLDFAST_POD, else its host's name, where that is the pod's."""
    given = os.environ.get("HOLDFAST_POD")
    if given:
        return given
    return os.uname().nodename if _read(_HOSTS).partition("\n")[0] == _OWN_NETWORK else None


def find_node() -> str | None:
    """Return the name of this process's node: HOLDFAST_NODE, which a manifest sets."""
    return os.environ.get("HOLDFAST_NODE") or None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
