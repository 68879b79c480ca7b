"""How the scrub goes about it: oldest first, within its rate, behind all other work, and on from where it was."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import random
import time
from functools import partial
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedRecord
from tests.support.daemon import DaemonProcess, prefetched, write_files

V1, OTHER = ModelRef("tiny", "v1"), ModelRef("other", "v1")
MIB = 1024 * 1024
SMALL, LARGE = random.Random(11).randbytes(100_000), random.Random(12).randbytes(12 * MIB)
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}
_IDLE = 3


def _record(daemon: DaemonProcess, ref: ModelRef) -> Path:
    return daemon.path(ref) / ".holdfast" / "verified.json"


def _backdate(record: Path, **days: str) -> None:
    """Say that files were last hashed on these days, by the first word of their names."""
    document = json.loads(record.read_bytes())
    for path, entry in document["files"].items():
        entry["verified_at"] = f"{days[path.partition('.')[0]]}T00:00:00Z"
    record.unlink()
    record.write_text(json.dumps(document))


def _hashed_on(record: Path) -> dict[str, str]:
    found = VerifiedRecord.parse(record.read_bytes()).files
    return {path: entry.verified_at[:10] for path, entry in found.items()}


def _is_new(record: Path, before: int) -> bool:
    return record.stat().st_ino != before


def test_the_oldest_record_is_looked_at_first_also_after_a_restart(daemon: DaemonProcess, source: Path) -> None:
    """What was hashed longest ago, by the records on the disk, is hashed first, whatever its name or age."""
    write_files(source / "a", {"a.bin": SMALL})
    write_files(source / "b", {"b.bin": SMALL[::-1]})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/a"), "other": prefetched(f"file://{source}/b")})
    daemon.start()
    daemon.wait_ready(V1, OTHER)
    assert daemon.stop() == 0
    second, first = sorted((V1, OTHER), key=daemon.digest)  # not the order of their digests
    for ref, day in ((first, "2026-01-01"), (second, "2026-01-02")):
        _backdate(_record(daemon, ref), a=day, b=day)
    before = {ref: _record(daemon, ref).stat().st_ino for ref in (first, second)}
    daemon.start("--scrub-rate", "1GiB/s", "--scrub-period", "1s")
    for ref in (first, second):
        daemon.wait(partial(_is_new, _record(daemon, ref), before[ref]), f"a new record of {ref}")
    assert _record(daemon, first).stat().st_mtime_ns < _record(daemon, second).stat().st_mtime_ns


def test_an_interrupted_scrub_goes_on_where_it_was(daemon: DaemonProcess, source: Path) -> None:
    """What was hashed before SIGTERM is written down; what was not keeps its old date, and so comes next."""
    write_files(source, {"old.bin": SMALL, "young.bin": LARGE})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    assert daemon.stop() == 0
    _backdate(_record(daemon, V1), old="2026-01-01", young="2026-01-02")
    daemon.start("--scrub-rate", "1MiB/s", "--scrub-period", "1s")
    daemon.wait(lambda: daemon.metric("holdfast_scrub_bytes_total") > len(SMALL), "the second file under way")
    assert daemon.stop() == 0
    on = _hashed_on(_record(daemon, V1))
    assert on["young.bin"] == "2026-01-02"
    assert on["old.bin"] > "2026-01-02"


def test_the_scrub_keeps_to_its_rate_at_idle_priority(daemon: DaemonProcess, source: Path) -> None:
    """Over a window the scrub hashes no more than its rate allows, in a thread that yields to all others."""
    write_files(source, {"a.bin": LARGE})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start("--scrub-rate", "2MiB/s", "--scrub-period", "1s")
    daemon.wait_ready(V1)
    daemon.wait(lambda: daemon.metric("holdfast_scrub_bytes_total") > 0, "the scrub's beginning")
    began, before = time.monotonic(), daemon.metric("holdfast_scrub_bytes_total")
    (scrub,) = [thread for thread, value in _nice(daemon.pid).items() if value == 19]
    number = _IOPRIO_GET.get(platform.machine())
    if number is not None:
        assert ctypes.CDLL(None).syscall(number, 1, scrub) >> 13 == _IDLE
    daemon.wait(lambda: daemon.metric("holdfast_scrub_bytes_total") >= before + 3 * MIB, "three pieces more")
    done = daemon.metric("holdfast_scrub_bytes_total") - before
    assert done <= 2 * MIB * (time.monotonic() - began) + MIB  # a piece may have been counted just before it is paid


def _nice(pid: int) -> dict[int, int]:
    """The nice value of each thread: the 19th field of its stat file, proc(5)."""
    values = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended since
            fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()
            values[int(thread)] = int(fields[16])
    return values


def test_the_scrub_waits_while_bytes_are_fetched(daemon: DaemonProcess, source: Path) -> None:
    """While a blob is on its way nothing is hashed again; once nothing fetches any more the scrub begins."""
    write_files(source / "a", {"a.bin": SMALL})
    write_files(source / "b", {"b.bin": LARGE})
    here, coming = prefetched(f"file://{source}/a"), prefetched(f"file://{source}/b")
    daemon.write_catalog({"tiny": here})
    daemon.start()
    daemon.wait_ready(V1)
    assert daemon.stop() == 0
    _backdate(_record(daemon, V1), a="1970-01-01")  # what was put back by hand says so, and comes first
    daemon.write_catalog({"tiny": here, "other": coming})
    daemon.start("--scrub-rate", "1GiB/s", "--max-bandwidth", "1MiB/s")
    daemon.wait(lambda: daemon.metric("holdfast_fetch_in_progress") > 0, "a fetch under way")
    before = daemon.metric("holdfast_scrub_bytes_total")  # a slow start may have let it look once
    # Two buffers of 4 MiB: eight seconds, where the scrub would have looked every two.
    daemon.wait(lambda: daemon.metric("holdfast_fetch_bytes_total") > 4 * MIB, "a fetch that goes on")
    assert daemon.metric("holdfast_scrub_bytes_total") <= before + len(SMALL)  # what it was at when the fetch began
    before = daemon.metric("holdfast_scrub_bytes_total")
    daemon.write_catalog({"tiny": here})
    daemon.wait(lambda: daemon.metric("holdfast_scrub_bytes_total") > before, "the scrub")


@pytest.mark.parametrize("wish", ["auto", "require"])
def test_what_cannot_seal_says_so(daemon: DaemonProcess, wish: str) -> None:
    """Without fs-verity `auto` says once what is missing and what would bring it, and works; `require` does not
    start."""
    if Path("/sys/fs/ext4/features/verity").exists():
        pytest.skip("this kernel has fs-verity: tests/system/verity shows what it says there")
    daemon.write_catalog({})
    daemon.launch("--fs-verity", wish)
    if wish == "require":
        deadline = time.monotonic() + 100
        while daemon.code() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert daemon.code() == 1
        assert "--fs-verity require, and" in daemon.log()
    else:
        daemon.wait(lambda: "listening on" in daemon.log(), "its listeners")
        assert daemon.log().count("fs-verity") == 1
        assert "to have it: " in daemon.log()
