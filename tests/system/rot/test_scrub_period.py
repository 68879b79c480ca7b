"""The scrub's period: what was hashed lately is left alone, what is old is not, and how old it is can be read."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from cached.contract.status import timestamp
from tests.support.daemon import DaemonProcess, daemon_process, model, prefetched, write_files

V1, OTHER = ModelRef("tiny", "v1"), ModelRef("other", "v1")
OLD, YOUNG = random.Random(21).randbytes(300_001), random.Random(22).randbytes(200_003)
LARGE = random.Random(23).randbytes(12 << 20)
DAY_S = 86400
NEVER = "1970-01-01T00:00:00Z"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon with the scrub's own period, and a high rate."""
    with daemon_process(tmp_path, "--scrub-rate", "1GiB/s") as process:
        yield process


def _record(daemon: DaemonProcess, ref: ModelRef) -> Path:
    return daemon.path(ref) / ".holdfast" / "verified.json"


def _stamps(daemon: DaemonProcess, ref: ModelRef) -> dict[str, str]:
    files = json.loads(_record(daemon, ref).read_bytes())["files"]
    return {path: entry["verified_at"] for path, entry in files.items()}


def _backdate(daemon: DaemonProcess, ref: ModelRef, **stamps: str) -> None:
    """Say when files were last hashed, by the first word of their names."""
    record = _record(daemon, ref)
    document = json.loads(record.read_bytes())
    for path, entry in document["files"].items():
        entry["verified_at"] = stamps.get(path.partition(".")[0], entry["verified_at"])
    record.unlink()
    record.write_text(json.dumps(document))


def test_a_file_that_was_hashed_lately_is_not_hashed_again(daemon: DaemonProcess, source: Path) -> None:
    """Of two versions, and of the two files of one, only the file is hashed whose hash is old; its record says so."""
    write_files(source / "a", {"old.bin": OLD, "young.bin": YOUNG})
    write_files(source / "b", {"young.bin": YOUNG[::-1]})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/a"), "other": prefetched(f"file://{source}/b")})
    daemon.start()
    daemon.wait_ready(V1, OTHER)
    assert daemon.stop() == 0
    before = _stamps(daemon, V1), _record(daemon, OTHER).stat().st_ino
    _backdate(daemon, V1, old=NEVER)
    daemon.start()
    daemon.wait(lambda: _stamps(daemon, V1)["old.bin"] != NEVER, "a hash of the old file")
    assert daemon.metric("holdfast_scrub_bytes_total") == len(OLD)
    assert _stamps(daemon, V1)["young.bin"] == before[0]["young.bin"]
    assert _record(daemon, OTHER).stat().st_ino == before[1]


def test_the_age_of_the_oldest_hash_is_a_metric(daemon: DaemonProcess, source: Path) -> None:
    """It is the age of the oldest hash of any file, also after a restart, and falls once that file is hashed."""
    write_files(source, {"old.bin": OLD, "young.bin": YOUNG})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start()
    daemon.wait_ready(V1)
    assert daemon.stop() == 0
    _backdate(daemon, V1, old=timestamp(time.time() - 3 * DAY_S))
    daemon.start()
    daemon.wait(lambda: daemon.metric("holdfast_scrub_oldest_age_seconds") > 0, "a look at the records")
    assert 3 * DAY_S <= daemon.metric("holdfast_scrub_oldest_age_seconds") < 3 * DAY_S + 600
    assert daemon.stop() == 0
    daemon.start("--scrub-period", "2s")
    daemon.wait(lambda: 0 < daemon.metric("holdfast_scrub_oldest_age_seconds") < DAY_S, "a hash of the old file")


def test_each_file_is_hashed_once_in_its_period(daemon: DaemonProcess, source: Path) -> None:
    """With a short period every version is hashed again, and again."""
    write_files(source / "a", {"old.bin": OLD})
    write_files(source / "b", {"young.bin": YOUNG})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/a"), "other": prefetched(f"file://{source}/b")})
    daemon.start("--scrub-period", "2s")
    daemon.wait_ready(V1, OTHER)
    for _ in range(2):
        for ref in (V1, OTHER):
            before = _record(daemon, ref).stat().st_ino
            daemon.wait(partial(_is_replaced, _record(daemon, ref), before), f"{ref} again")


def _is_replaced(record: Path, before: int) -> bool:
    return record.stat().st_ino != before


def test_a_period_ends_under_load(daemon: DaemonProcess, source: Path) -> None:
    """Fetches push the scrub back, but not past the period of what is here."""
    write_files(source / "a", {"old.bin": OLD})
    write_files(source / "b", {"large.bin": LARGE})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}/a"), "other": model(f"file://{source}/b")})
    daemon.start("--scrub-period", "2s", "--max-bandwidth", "100KiB/s")
    daemon.wait_ready(V1)
    daemon.pull("other@v1")
    daemon.wait(lambda: daemon.metric("holdfast_fetch_in_progress") > 0, "a fetch")
    before = _record(daemon, V1).stat().st_ino
    daemon.wait(lambda: _record(daemon, V1).stat().st_ino != before, "a hash beside the fetch")
    assert daemon.metric("holdfast_fetch_in_progress") > 0


def test_a_rate_that_is_too_low_for_the_period_is_said_once(daemon: DaemonProcess, source: Path) -> None:
    """Where the rate does not allow a pass in the period, the scrub goes on at its rate, and the log says it once."""
    write_files(source, {"old.bin": OLD})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start("--scrub-period", "1s", "--scrub-rate", "50KiB/s")
    daemon.wait_ready(V1)
    daemon.wait(lambda: daemon.metric("holdfast_scrub_bytes_total") >= len(OLD), "a pass")
    assert daemon.log().count("longer than --scrub-period") == 1


def test_a_period_that_is_none_is_refused(daemon: DaemonProcess) -> None:
    """A duration without a unit, or of nothing, ends the start with what was expected."""
    daemon.write_catalog({})
    for wrong in ("7", "0s", "off"):
        daemon.launch("--scrub-period", wrong)
        assert daemon.end_within(120) == 2
        assert "expected a duration above 0 such as 90s, 15m, 6h or 1d" in daemon.log()
