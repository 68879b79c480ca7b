"""Wall clocks that jump, and times that are yet to come."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cached.commands import status
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from cached.contract.status import parse_timestamp, timestamp
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from sidecar.gate.daemon_status import Heartbeat
from sidecar.injector.https.certificates import next_keys
from tests.support.certificates import make_certificates
from tests.support.clocks import ManualClock, WallClock
from tests.support.daemon import PATIENCE_S, DaemonProcess, daemon_process, model, prefetched, publish_files
from tests.support.gates import Gates
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Status
from tests.support.reading import error_of
from tests.support.snapshots import make_public, write_heartbeat

V1 = ModelRef("m", "v1")
DAY_S = 86400
RATE = 3_000_000


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def moved(tmp_path: Path, clock: WallClock) -> Iterator[DaemonProcess]:
    """A daemon whose wall clock is `clock`."""
    with daemon_process(tmp_path, environment=clock.environment) as process:
        yield process


# --- the daemon ------------------------------------------------------------------------------------------------------


def test_a_fetch_does_not_notice_the_clock(moved: DaemonProcess, clock: WallClock, source: Path) -> None:
    """While the clock jumps by days, rate and remaining time stay sane, the limit holds, and the version comes."""
    publish_files(source, {"a.bin": random.Random(1).randbytes(3 * RATE)})
    moved.write_catalog({"m": prefetched(f"file://{source}")})
    began = time.monotonic()
    moved.start("--max-bandwidth", f"{RATE // 1000}kB/s", "--scrub-rate", "0")
    rates, etas, jumps = [], [], [DAY_S, -DAY_S, 400 * DAY_S, 0]
    while moved.state(V1) != "ready":
        assert time.monotonic() - began < PATIENCE_S
        clock.set(jumps[int(time.monotonic() * 3) % len(jumps)])
        found = moved.status(V1) or {}
        rates.append(found.get("rate_bytes_per_s"))
        etas.append(found.get("eta_s"))
        time.sleep(0.02)
    assert 3 * RATE / (time.monotonic() - began) < 1.1 * RATE
    assert all(0 <= rate < 3 * RATE for rate in rates if rate is not None)
    assert any(rates)
    assert all(0 <= eta < 3600 for eta in etas if eta is not None)
    assert moved.samples("holdfast_fetch_errors_total") == {}


def test_a_gate_does_not_notice_the_clock(moved: DaemonProcess, clock: WallClock, tmp_path: Path) -> None:
    """A jump of the clock makes no gate say that a daemon which beats is down."""
    moved.write_catalog({})
    moved.start("--scrub-rate", "0")
    gates = Gates(moved.layout.public, tmp_path)
    try:
        gate = gates.start(environment=clock.environment)
        gate.wait_said("no status yet")
        clock.set(DAY_S)
        moved.wait(lambda: _beats_at(moved, DAY_S), "a heartbeat of that time")
        time.sleep(1.5)  # the gate looks every second
        assert "seems down" not in gate.said()
    finally:
        gates.end()


def _beats_at(daemon: DaemonProcess, offset: int) -> bool:
    found = re.search(r'"updated": "(.*?)"', daemon.layout.public.daemon_status.read_text())
    return found is not None and abs(parse_timestamp(found[1]) - time.time() - offset) < DAY_S / 2


def test_what_was_used_last_stays_last(moved: DaemonProcess, clock: WallClock, source: Path) -> None:
    """After the clock was set back, the version that was used longest ago is evicted first all the same."""
    refs = [ModelRef("m", version) for version in ("old", "new", "next")]
    for ref in refs:
        publish_files(source / ref.version, {"a.bin": random.Random(ref.version).randbytes(1_000_000)})
    listed = {ref.version: {"source": f"file://{source}/{ref.version}"} for ref in refs}
    moved.write_catalog({"m": {"versions": listed}})
    clock.set(DAY_S)
    moved.start("--quota", "2500000", "--scrub-rate", "0")
    moved.pull("m@old")
    moved.wait_ready(refs[0])
    clock.set(0)
    moved.pull("m@new")
    moved.wait_ready(refs[1])
    used = {item["version"]: item["last_used"] for item in moved.document()["models"]}
    assert used["old"] <= used["new"]
    moved.pull("m@next")
    moved.wait_ready(refs[2])
    assert moved.state(refs[0]) is None
    assert moved.state(refs[1]) == "ready"


def test_a_use_that_is_yet_to_come_is_now(daemon: DaemonProcess, source: Path) -> None:
    """A lease whose time is in the future counts as used now after a restart, and no longer than that."""
    publish_files(source, {"a.bin": b"a"})
    daemon.write_catalog({"m": model(f"file://{source}")})
    daemon.start()
    daemon.pull("m@v1")
    daemon.wait_ready(V1)
    daemon.stop()
    future = time.time() + 400 * DAY_S
    os.utime(daemon.layout.public.snapshot(daemon.digest(V1)).lease, (future, future))
    daemon.start()
    assert parse_timestamp(daemon.document()["models"][0]["last_used"]) <= time.time()
    assert daemon.metric("holdfast_model_last_used_timestamp_seconds") <= time.time()


def test_what_was_verified_in_the_future_is_scrubbed_first(tmp_path: Path, source: Path) -> None:
    """A record from a time that is yet to come does not spare a snapshot the scrub."""
    refs = [ModelRef("m", version) for version in ("ahead", "other")]
    for ref in refs:
        publish_files(source / ref.version, {"a.bin": random.Random(ref.version).randbytes(100_000)})
    listed = {ref.version: {"source": f"file://{source}/{ref.version}"} for ref in refs}
    with daemon_process(tmp_path, "--scrub-rate", "0") as daemon:
        daemon.write_catalog({"m": {"versions": listed, "prefetch": {"versions": list(listed)}}})
        daemon.start()
        daemon.wait_ready(*refs)
        daemon.stop()
        digest = daemon.digest(refs[0])
        snapshot = daemon.layout.public.snapshot(digest)
        damaged = snapshot.path / "a.bin"
        damaged.chmod(0o644)
        with damaged.open("r+b") as file:
            file.write(b"rot")
        damaged.chmod(0o444)
        seen = VerifiedFile.of(damaged.stat(), timestamp(time.time() + 400 * DAY_S))
        snapshot.verified.chmod(0o644)
        snapshot.verified.write_bytes(VerifiedRecord({"a.bin": seen}).encode())
        daemon.start("--scrub-rate", "100MiB/s")
        daemon.wait(lambda: daemon.metric("holdfast_verify_failures_total", where="scrub") == 1, "the rot is found")


def test_a_clock_that_is_behind_is_no_bad_certificate(
    moved: DaemonProcess, clock: WallClock, source: Path, tmp_path: Path
) -> None:
    """On a node whose clock is not set yet, a certificate that is not valid yet is tried again, and then taken."""
    certificates = make_certificates(tmp_path)
    manifest = publish_files(source, {"a.bin": b"a"})
    environment = {**clock.environment, "SSL_CERT_FILE": str(certificates.authority)}
    clock.set(-400 * DAY_S)
    with (
        HostileOrigin(tls=certificates.server_context()) as origin,
        daemon_process(tmp_path / "secure", "--scrub-rate", "0", environment=environment) as daemon,
    ):
        origin.put("/m/a.bin", b"a", etag='"1"')
        origin.put("/m/holdfast.json", manifest.canonical())
        daemon.write_catalog({"m": prefetched(origin.url("/m/"))})
        daemon.start()
        error = daemon.wait_error(V1, "tls_verification")
        assert error["permanent"] is False
        assert "clock" in error["remedy"]
        clock.set(0)
        daemon.pull("m@v1")
        daemon.wait_ready(V1)


def test_a_date_to_retry_after_is_the_origins(origin: HostileOrigin) -> None:
    """`Retry-After` with a date asks for the time from the answer's own date on, whatever our clock says."""
    url = origin.put("/a.bin", b"a")
    dates = {"Date": "Fri, 31 Dec 1999 23:00:00 GMT", "Retry-After": "Fri, 31 Dec 1999 23:00:07 GMT"}
    origin.script("/a.bin", Status(503, dates))
    client = HttpClient(HttpSettings())
    try:
        assert getattr(error_of(client, url), "retry_after_s", None) == 7
    finally:
        client.close()


# --- with a clock passed in ------------------------------------------------------------------------------------------


def test_a_heartbeat_is_seen_to_stand_still(tmp_path: Path) -> None:
    """A heartbeat that moves is a living daemon whatever its date; one that stands still is none, be it of tomorrow."""
    public = make_public(tmp_path)
    clock, wall = ManualClock(), ManualClock(time.time())
    heartbeat = Heartbeat(public, clock, wall)
    assert heartbeat.find_trouble() is None
    for age_s in (0, DAY_S, -DAY_S):
        for _ in range(20):
            write_heartbeat(public, age_s=age_s)
            age_s -= 2
            clock.now_s += 2
            assert heartbeat.find_trouble() is None
        clock.now_s += 31
        assert "seems down" in (heartbeat.find_trouble() or "")
    write_heartbeat(public, age_s=3 * DAY_S)
    assert heartbeat.find_trouble() is None
    clock.now_s += 7
    assert "seems down" in (heartbeat.find_trouble() or "")


def test_certificates_of_tomorrow_are_replaced() -> None:
    """Keys that were made while a clock was ahead are replaced when it is right again: no server takes them yet."""
    now = datetime.now(UTC)
    early = next_keys(None, ["injector"], now + timedelta(days=400))
    mended = next_keys(early, ["injector"], now)
    assert mended is not None
    for certificate in (mended.certificate, *mended.authorities):
        assert certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
    assert next_keys(mended, ["injector"], now) is None


def test_status_tells_a_heartbeat_of_tomorrow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`holdfast status` does not take a heartbeat that is yet to come for one of just now."""
    layout = Layout(tmp_path)
    make_public(layout.public.path)
    write_heartbeat(layout.public, age_s=-DAY_S - 30)
    assert status.main(["--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "24h00m ahead" in said
    assert "NOT RUNNING?" in said
    assert "clock was set back" in said
