"""Ring or registered pages: measure once which is faster on a device, with the first load that is large enough.

Law: measures with the load's own bytes, so that it needs no device memory; the result is kept for the process's life.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.copier import FilledRange, LoadTotals, copy_ranges
from server.weights.cuda.runtime import HOST_REGISTER_READ_ONLY_SUPPORTED, CudaError
from server.weights.cuda.staging import FilePages, RegisteredStaging, RingStaging, Staging
from server.weights.host.reader import Reader
from server.weights.plan import DeviceRange, LoadPlan

_LOG = logging.getLogger(__name__)
_LEAST_RANGES = 3  # one each to measure, and one that benefits


class CopyMethod(StrEnum):
    """How bytes get from the page cache to the device."""

    RING = "ring"
    REGISTERED = "registered"


@dataclass
class MethodChoice:
    """Copies plans of one checkpoint by the faster method; `method` is that of the last plan."""

    accelerator: Accelerator
    readers: Sequence[Reader]
    cancel: threading.Event | None
    method: CopyMethod = CopyMethod.RING

    def copy(self, plan: LoadPlan, ahead: int, totals: LoadTotals) -> Iterator[FilledRange]:
        """Yield each range with its bytes, in order."""
        began = time.perf_counter()
        self.accelerator.get_ring()  # allocated once, so not part of the measurement
        totals.allocate_s += time.perf_counter() - began
        chosen = _known(self.accelerator)
        if chosen is None and len(plan.ranges) >= _LEAST_RANGES:
            ring_s, first = self._measure(plan.ranges[0], CopyMethod.RING, totals)
            yield first
            del first
            if totals.cold == 0:  # else the disk was measured
                registered_s, second = self._measure(plan.ranges[1], CopyMethod.REGISTERED, totals)
                chosen = _decide(self.accelerator, ring_s, registered_s)
                yield second
                del second
            plan = replace(plan, ranges=plan.ranges[1 if chosen is None else 2 :])
        self.method = chosen or CopyMethod.RING
        yield from self._copy_by(plan, self.method, ahead, totals)

    def _measure(self, part: DeviceRange, method: CopyMethod, totals: LoadTotals) -> tuple[float, FilledRange]:
        began = time.perf_counter()
        (arrived,) = self._copy_by(LoadPlan((part,), part.nbytes), method, 0, totals)
        return (time.perf_counter() - began) / part.nbytes, arrived

    def _copy_by(self, plan: LoadPlan, method: CopyMethod, ahead: int, totals: LoadTotals) -> Iterator[FilledRange]:
        ring = RingStaging(self.accelerator.get_ring(), self.readers)
        pages = [FilePages(reader.file) for reader in self.readers] if method is CopyMethod.REGISTERED else []

        def staging() -> Staging:
            return RegisteredStaging(self.accelerator.runtime, pages, ring) if pages else ring

        return copy_ranges(self.accelerator, plan, staging, totals, cancel=self.cancel, ahead=ahead)


_CHOSEN: weakref.WeakKeyDictionary[Accelerator, CopyMethod] = weakref.WeakKeyDictionary()


def _known(accelerator: Accelerator) -> CopyMethod | None:
    if accelerator not in _CHOSEN:
        try:
            supported = accelerator.runtime.get_attribute(HOST_REGISTER_READ_ONLY_SUPPORTED)
        except CudaError:  # a runtime older than the attribute
            supported = 0
        if supported:
            return None
        _CHOSEN[accelerator] = CopyMethod.RING
    return _CHOSEN[accelerator]


def _decide(accelerator: Accelerator, ring_s: float, registered_s: float) -> CopyMethod:
    chosen = CopyMethod.REGISTERED if registered_s < ring_s else CopyMethod.RING
    _CHOSEN[accelerator] = chosen
    _LOG.info(
        "%s: %.1f GB/s through pinned memory, %.1f GB/s from registered pages: %s from now on",
        accelerator.device,
        1e-9 / ring_s,
        1e-9 / registered_s,
        chosen,
    )
    return chosen
