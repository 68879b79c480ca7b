"""What a load did, the duration of each stage, and its bottleneck.

Law: plain data and a list of listeners; knows neither metrics nor loads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

_KEPT = 64


class Bound(StrEnum):
    """The bottleneck of a load. `NOTHING`: the bytes were mapped, and are read on access."""

    DISK = "disk"
    COPY = "copy"
    PCIE = "pcie"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds per stage. The last three are means over the reading threads, so that they compare with the others.

    `headers`: open and parse. `plan`: decide. `allocate`: device memory, and pinning the ring on first use. `convert`:
    dtype conversions queued on the device, or done on the host. `read`: bytes from file to ring. `copy`: copies queued
    on the device. `wait`: for the device to finish with a slot.
    """

    headers: float = 0.0
    plan: float = 0.0
    allocate: float = 0.0
    convert: float = 0.0
    read: float = 0.0
    copy: float = 0.0
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One load of `bytes`, of which `cold_bytes` were not in the page cache and `direct_bytes` bypassed it.

    `path` is the file, or the folder of several. `device_bytes` were allocated on the device. `method` is `mapped`
    or `read` (host), `ring` or `registered`.
    """

    path: str
    device: str
    method: str
    files: int
    tensors: int
    bytes: int
    cold_bytes: int
    direct_bytes: int
    device_bytes: int
    seconds: float
    stages: Stages
    bound: Bound

    @property
    def gb_per_s(self) -> float:
        """Decimal gigabytes per second, from opening the files to the last byte on the device."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0


_LOCK = threading.Lock()
_RECENT: deque[LoadReport] = deque(maxlen=_KEPT)
_LISTENERS: list[Callable[[LoadReport], None]] = []


def subscribe(listener: Callable[[LoadReport], None]) -> Callable[[], None]:
    """Call `listener` with the report of each later load, in the thread that loaded; return how to stop."""
    with _LOCK:
        _LISTENERS.append(listener)

    def stop() -> None:
        with _LOCK:
            if listener in _LISTENERS:
                _LISTENERS.remove(listener)

    return stop


def list_recent() -> list[LoadReport]:
    """Return the reports of this process's last loads, oldest first."""
    with _LOCK:
        return list(_RECENT)


def publish(report: LoadReport) -> None:
    """Keep the report and call every subscriber."""
    with _LOCK:
        _RECENT.append(report)
        listeners = list(_LISTENERS)
    for listener in listeners:
        listener(report)
