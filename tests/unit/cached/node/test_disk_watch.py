"""What the thread that measures the disk and those that ask the ledger hold while they wait for each other: nothing."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path

from cached.contract.layout import Layout
from cached.core.space import DiskSpace, Ledger, SpaceUse
from cached.node.disk_watch import DiskWatch
from cached.store.disk.root import Root

_GUARD_S = 30.0


class _SlowRoot(Root):
    """A root whose disk answers the measurements after the first when the test says so."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def space(self) -> DiskSpace:
        self.asked.set()
        assert self.answers.wait(_GUARD_S)
        return super().space()


def test_a_measurement_and_a_reservation_never_wait_for_each_other(tmp_path: Path) -> None:
    """A caller within the ledger, which asks for the last measurement, gets it also while the thread that has just
    measured waits to ask the ledger: both go on."""
    layout = Layout(tmp_path)
    layout.private.mkdir()
    found: list[SpaceUse] = []
    with closing(_SlowRoot(layout)) as root, closing(DiskWatch(root)) as watch:
        root.asked.clear()
        root.answers.clear()

        def ask_once_measured() -> DiskSpace:
            root.answers.set()
            time.sleep(0.2)  # the thread is at the ledger now, which this caller holds
            return watch.space()

        ledger = Ledger(None, ask_once_measured)
        watch.follow(ledger, lambda: None, lambda: True)
        assert root.asked.wait(_GUARD_S)
        caller = threading.Thread(target=lambda: found.append(ledger.compute_use()), daemon=True)
        caller.start()
        caller.join(_GUARD_S)
        assert found, "the caller waits for the thread, and the thread for the caller"
