"""What the daemon tells of a version while it is under way, and what it never tells."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from pathlib import Path

from cached.contract.reference import ModelRef
from cached.contract.status import State, parse_timestamp
from tests.support.daemon import DaemonProcess, daemon_process, model, prefetched, write_files
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Pause, Status

V1 = ModelRef("tiny", "v1")
_KEYS = {
    *("model", "version", "state", "digest", "pinned", "source", "bytes_total", "bytes_done"),
    *("rate_bytes_per_s", "eta_s", "since", "updated", "error", "held", "stale", "refused_pins"),
    "refused_namespaces",
    *("findings", "left_out", "trust", "bytes_from_peers"),
}
_SIZE = 24_000_000
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_ORDER = [State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING, State.READY]


def test_a_status_file_has_the_keys_of_the_design(daemon: DaemonProcess, source: Path) -> None:
    """A status file has exactly the keys of section 3, with their types, while fetching and when ready."""
    write_files(source, {"a.bin": bytes(_SIZE)})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start("--max-bandwidth", "4MiB/s")
    fetching = daemon.wait_status(V1, lambda status: bool(status.get("rate_bytes_per_s")), "with a rate")
    daemon.wait_ready(V1)
    ready = daemon.wait_state(V1, "ready")
    for status in (fetching, ready):
        assert status.keys() == _KEYS
        assert (status["model"], status["version"], status["source"]) == ("tiny", "v1", f"file://{source}")
        assert status["pinned"] is False
        assert status["error"] is None
        assert _TIME.fullmatch(status["since"])
        assert _TIME.fullmatch(status["updated"])
    assert (fetching["state"], fetching["digest"], fetching["bytes_total"]) == ("fetching", None, _SIZE)
    assert 0 < fetching["bytes_done"] < _SIZE
    assert fetching["eta_s"] > 0
    assert (ready["state"], ready["digest"]) == ("ready", str(daemon.digest(V1)))
    assert ready["bytes_done"] == ready["bytes_total"] == _SIZE


def test_states_come_in_order(daemon: DaemonProcess, source: Path) -> None:
    """A version goes from queued to ready and never back."""
    write_files(source, {"a.bin": bytes(3_000_000), "b.bin": b"b"})
    daemon.write_catalog({"tiny": prefetched(f"file://{source}")})
    daemon.start("--max-bandwidth", "1MiB/s")
    seen: list[str] = []
    deadline = time.monotonic() + 100
    while seen[-1:] != ["ready"]:
        assert time.monotonic() < deadline, seen
        state = daemon.state(V1)
        if state is not None and [state] != seen[-1:]:
            seen.append(state)
    assert "fetching" in seen
    assert seen == sorted(seen, key=lambda state: _ORDER.index(State(state)))


def test_bytes_done_count_a_shared_blob_for_each_file(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """Files of the same content count each in the total and in what is done: progress does not end at a half."""
    let_go = threading.Event()
    origin.publish("/tiny/", {"a.bin": bytes(_SIZE), "b.bin": bytes(_SIZE)})
    for name in ("a.bin", "b.bin"):
        origin.always(f"/tiny/{name}", Pause(_SIZE * 3 // 4, let_go))
    daemon.write_catalog({"tiny": prefetched(origin.url("/tiny/"))})
    daemon.start()
    status = daemon.wait_status(V1, lambda status: status.get("bytes_done", 0) > _SIZE, "beyond one file's bytes")
    assert (status["state"], status["bytes_total"]) == ("fetching", 2 * _SIZE)
    let_go.set()
    daemon.wait_ready(V1)


def test_bytes_done_count_a_buffer_that_is_not_full(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """On a link where one buffer takes many seconds, `bytes_done` has what has come of it: rate and remaining time
    follow the link and not the buffers."""
    let_go = threading.Event()
    origin.publish("/tiny/", {"a.bin": bytes(_SIZE)})
    origin.always("/tiny/a.bin", Pause(1_000_007, let_go))
    daemon.write_catalog({"tiny": prefetched(origin.url("/tiny/"))})
    daemon.start("--connections", "1")
    daemon.wait_status(V1, lambda status: status.get("bytes_done") == 1_000_007, "a part of a buffer")
    let_go.set()
    daemon.wait_ready(V1)


def test_the_heartbeat_moves(daemon: DaemonProcess) -> None:
    """status/daemon.json says who this is, and is never older than five seconds."""
    daemon.write_catalog({})
    daemon.start()
    beats = set()

    def beat_three_times() -> bool:
        with contextlib.suppress(FileNotFoundError):
            now = time.time()
            document = json.loads(daemon.layout.public.daemon_status.read_bytes())
            assert document.keys() == {"node", "version", "pid", "started", "updated"}
            assert (document["node"], document["pid"]) == ("node-a", daemon.pid)
            assert now - parse_timestamp(document["updated"]) < 6  # whole seconds are written
            beats.add(document["updated"])
        return len(beats) >= 3

    daemon.wait(beat_three_times, "three heartbeats")


def test_a_sources_credentials_are_told_to_nobody(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """User information of a source reaches its origin, and no status, log, metric, answer or error message."""
    origin.put("/good/holdfast.json", b"")
    origin.script("/good/a.bin", Status(503))
    address = f"127.0.0.1:{origin.port}"
    secret = f"http://reader:s3cr3t@{address}"
    origin.put("/good/a.bin", b"a")
    origin.remove("/good/holdfast.json")
    daemon.write_catalog(
        {
            "good": prefetched(f"{secret}/good/a.bin"),
            "missing": prefetched(f"{secret}/missing/"),
            "down": prefetched("http://reader:s3cr3t@127.0.0.1:9/"),
            "odd": prefetched("gopher://reader:s3cr3t@127.0.0.1/"),
            "bad": {"versions": {"v1": {"source": f"{secret}/{{what}}"}}},
        },
        defaults={"source": "https://reader:s3cr3t@127.0.0.1:9/{name}"},
    )
    daemon.start("--log-level", "debug")
    daemon.wait_ready(ModelRef("good", "v1"))
    daemon.wait_state(ModelRef("missing", "v1"), "failed")
    daemon.wait_state(ModelRef("odd", "v1"), "failed")
    daemon.wait(lambda: bool(daemon.error(ModelRef("down", "v1"))), "an error of the origin that is down")
    daemon.pull("bad@v1")
    status = daemon.status(ModelRef("good", "v1"))
    assert status is not None
    assert status["source"] == f"http://{address}/good/a.bin"
    told = [*(daemon.get(path)[1] for path in ("/", "/metrics", "/v1/status"))]
    told += [daemon.log(), json.dumps(daemon.control.status())]
    told += [path.read_text() for path in daemon.layout.public.status.rglob("*.json")]
    assert not [text for text in told if "s3cr3t" in text or "reader:" in text]
    sent = [seen.headers.get("authorization") for seen in origin.requests if seen.path == "/good/a.bin"]
    assert sent
    assert all(value is not None and value.startswith("Basic ") for value in sent)


def test_where_credentials_come_from_is_not_told(tmp_path: Path, origin: HostileOrigin) -> None:
    """What the S3 library is answered when it looks for credentials is in no log, however much is logged."""
    origin.put("/role", b"no JSON, but s3cr3t")
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": origin.url("/role"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with daemon_process(tmp_path, "--log-level", "debug", environment=environment) as daemon:
        daemon.write_catalog({"tiny": prefetched(f"s3://bucket/tiny/?endpoint_url={origin.url('/')}&region=r")})
        daemon.start()
        daemon.wait(lambda: bool(daemon.error(V1)), "an error")
        assert [seen.path for seen in origin.requests][:1] == ["/role"]
        assert "s3cr3t" not in daemon.log() + daemon.get("/v1/status")[1] + daemon.get("/")[1]


def test_an_error_stays_told_while_it_is_tried_again(daemon: DaemonProcess, origin: HostileOrigin) -> None:
    """A version that is being retried has the last error in its status throughout, with `permanent: false`."""
    origin.put("/tiny/a.bin", b"a")
    origin.script("/tiny/a.bin/holdfast.json", *[Status(503)] * 8)
    daemon.write_catalog({"tiny": model(origin.url("/tiny/a.bin"))})
    daemon.start()
    daemon.pull("tiny@v1")
    daemon.wait(lambda: daemon.error(V1).get("code") == "http_503", "the error")
    states = set()

    def tried_again() -> bool:
        status = daemon.status(V1)
        assert status is not None
        if status["state"] in ("queued", "resolving"):
            assert status["error"]["permanent"] is False
            states.add(status["state"])
        return len([seen for seen in origin.requests if seen.path.endswith("holdfast.json")]) >= 3

    daemon.wait(tried_again, "another try")
    assert "queued" in states
