"""What a load did, how long each part of it took, and what held it up.

Law: plain data and a list of listeners; knows neither metrics nor loads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

_KEPT = 64


class Bound(StrEnum):
    """What the loader waited for most. `NOTHING`: bytes were mapped, and are read when they are touched."""

    DISK = "disk"
    COPY = "copy"
    PCIE = "pcie"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds. The last three are the mean over the reading threads, so that they compare with the others.

    `headers`: opened and parsed. `plan`: decided. `allocate`: device memory, and pinning the ring on first use.
    `convert`: dtype conversions handed to the device, or done on the host. `read`: bytes from file to ring.
    `copy`: copies handed to the device. `wait`: for the device to be done with a slot.
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
    """One load. `bytes` arrived, of which `cold_bytes` were not in the page cache and `direct_bytes` went past it.

    `path` is the first file's folder or the file. `device_bytes` is what was allocated on the device for them;
    `method` is `mapped` (host), `ring` or `registered`.
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
        """Decimal gigabytes a second, from opening the files to the last byte in place."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0


Listener = Callable[[LoadReport], None]


@dataclass(slots=True)
class _Registry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    recent: deque[LoadReport] = field(default_factory=lambda: deque(maxlen=_KEPT))
    listeners: list[Listener] = field(default_factory=list)


_REGISTRY = _Registry()


def subscribe(listener: Listener) -> Callable[[], None]:
    """Call `listener` with the report of each load from now on, in the thread that loaded; returns how to stop."""
    with _REGISTRY.lock:
        _REGISTRY.listeners.append(listener)

    def stop() -> None:
        with _REGISTRY.lock:
            if listener in _REGISTRY.listeners:
                _REGISTRY.listeners.remove(listener)

    return stop


def recent() -> list[LoadReport]:
    """The reports of the last loads of this process, oldest first."""
    with _REGISTRY.lock:
        return list(_REGISTRY.recent)


def publish(report: LoadReport) -> None:
    """Keep the report and tell everyone who subscribed."""
    with _REGISTRY.lock:
        _REGISTRY.recent.append(report)
        listeners = list(_REGISTRY.listeners)
    for listener in listeners:
        listener(report)
