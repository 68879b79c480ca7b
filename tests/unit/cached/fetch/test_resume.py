"""After a stop or a crash a fetch goes on from what was recorded as durable, trusts nothing else, and is right."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cached.fetch import workers
from cached.fetch.blob import BlobSpec
from cached.transport.connection.cancel import Cancelled
from tests.support.fetching import (
    DEADLINE_S,
    MIB,
    Engine,
    Paused,
    check_committed,
    eventually,
    http,
    noise,
    open_engine,
    ranges_of,
    spec_of,
)
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import IgnoreRange

_LOST_BYTES = 64 * MIB  # the most that a crash may cost a connection
_CHILD = """
import sys
from pathlib import Path
from cached.transport.target import HttpTarget
from cached.store.disk.verity import Sealing
from cached.transport.connection.settings import HttpSettings
from cached.fetch.workers import WorkerSettings
from tests.support.fetching import Engine, spec_of_size
root, url, sha256, size, connections = sys.argv[1:]
engine = Engine(Path(root), WorkerSettings(int(connections), int(connections), 60 << 20, Sealing.NONE), HttpSettings())
download = engine.launch(spec_of_size(sha256, int(size)), HttpTarget(url, if_match='"v1"'))
print(download.result.result())
"""


def _stop_midway(root: Path, url: str, spec: BlobSpec, at: int, connections: int = 1) -> list[tuple[int, int]]:
    """Fetch until a connection is about to write beyond `at`, then stop; returns what is recorded."""
    with open_engine(root, connections) as engine:
        paused = Paused(at)
        download = engine.launch(spec, http(url), space=paused)
        assert paused.reached.wait(DEADLINE_S)
        eventually(lambda: download.progress.written >= 40 * MIB)
        download.cancel()
        paused.let_go.set()
        engine.workers.stop()
        assert isinstance(download.result.exception(0), Cancelled)
        return _recorded(engine, spec)


def _recorded(engine: Engine, spec: BlobSpec) -> list[tuple[int, int]]:
    try:
        state = json.loads((engine.folder(spec) / "state.json").read_bytes())
    except FileNotFoundError:
        return []
    return [(start, end) for start, end in state["done"]]


def _scribble(path: Path, keep: list[tuple[int, int]]) -> None:
    """Spoil every byte of a file outside `keep`."""
    with path.open("r+b") as file:
        position = 0
        for start, end in [*keep, (path.stat().st_size, 0)]:
            file.seek(position)
            file.write(b"\xff" * (start - position))
            position = end


@pytest.mark.parametrize(("connections", "processors"), [(1, 1), (1, 64), (3, 1), (3, 64)])
def test_a_stopped_fetch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int, processors: int
) -> None:
    """Stopped in good order, a fetch loses nothing that it wrote, and asks for no recorded byte again; whether workers
    hash their pieces or hand them to another thread."""
    monkeypatch.setattr(workers, "count_processors", lambda: processors)
    data = noise()
    spec = spec_of(data)
    with HostileOrigin(host="127.0.0.1") as origin:
        url = origin.put("/f", data, etag='"v1"')
        recorded = _stop_midway(tmp_path / "root", url, spec, 50 * MIB, connections)
    assert sum(end - start for start, end in recorded) > 0
    _scribble(tmp_path / "root" / "private" / "ingest" / spec.key.id / "data", recorded)
    with HostileOrigin(host="127.0.0.1") as origin, open_engine(tmp_path / "root", connections) as engine:
        url = origin.put("/f", data, etag='"v1"')
        download = engine.launch(spec, http(url))
        check_committed(engine.layout, data, download.result.result(DEADLINE_S))
        assert engine.counts.received_bytes == len(data) - sum(end - start for start, end in recorded)
        assert download.progress.written == len(data)
        for first, last in ranges_of(origin.requests):
            assert last is not None
            assert not any(start < last + 1 and first < end for start, end in recorded)


@pytest.mark.parametrize("fault", ["validator", "garbage", "truncated", "too much", "no data", "short data"])
def test_a_record_that_does_not_fit_is_not_trusted(tmp_path: Path, origin: HostileOrigin, fault: str) -> None:
    """With another validator, or a record or file that is not whole, the fetch starts over, and is right."""
    data = noise()
    spec, url = spec_of(data), origin.put("/f", data, etag='"v1"')
    assert _stop_midway(tmp_path / "root", url, spec, 50 * MIB)
    folder = tmp_path / "root" / "private" / "ingest" / spec.key.id
    state = (folder / "state.json").read_bytes()
    _scribble(folder / "data", [])
    match fault:
        case "validator":
            spec = spec_of(data, validator='"v2"')
            origin.put("/f", data, etag='"v2"')
        case "garbage":
            (folder / "state.json").write_bytes(b"\x00\xffgarbage")
        case "truncated":
            (folder / "state.json").write_bytes(state[:-7])
        case "too much":
            (folder / "state.json").write_text(json.dumps(json.loads(state) | {"done": [[0, 80 * MIB]]}))
        case "no data":
            (folder / "data").unlink()
        case "short data":
            os.truncate(folder / "data", 8192)
    with open_engine(tmp_path / "root", 2) as engine:
        target = http(url, f'"v{2 if fault == "validator" else 1}"')
        check_committed(engine.layout, data, engine.fetch(spec, target))
        assert engine.counts.received_bytes == len(data)
        assert engine.counts.mismatches == 0


def test_a_resumed_fetch_of_an_origin_without_ranges(tmp_path: Path, origin: HostileOrigin) -> None:
    """An origin that has lost its ranges since is read from the start; the recorded bytes are given up."""
    data = noise()
    spec, url = spec_of(data), origin.put("/f", data, etag='"v1"')
    assert _stop_midway(tmp_path / "root", url, spec, 50 * MIB)
    origin.script("/f", *[IgnoreRange()] * 9)
    with open_engine(tmp_path / "root", 2) as engine:
        check_committed(engine.layout, data, engine.fetch(spec, http(url)))


def test_recorded_bytes_that_went_bad(tmp_path: Path, origin: HostileOrigin) -> None:
    """Recorded bytes that the disk has changed since are found by the digest, deleted, and fetched again."""
    data = noise()
    spec, url = spec_of(data), origin.put("/f", data, etag='"v1"')
    assert _stop_midway(tmp_path / "root", url, spec, 50 * MIB)
    _scribble(tmp_path / "root" / "private" / "ingest" / spec.key.id / "data", [])
    with open_engine(tmp_path / "root", 2) as engine:
        check_committed(engine.layout, data, engine.fetch(spec, http(url)))
        assert engine.counts.mismatches == 1


@pytest.mark.parametrize("connections", [1, 2])
def test_a_killed_fetch_loses_little_and_is_right(tmp_path: Path, connections: int) -> None:
    """Killed with SIGKILL, a fetch downloads again at most 64 MiB a connection, and believes no unrecorded byte."""
    size, kill_at = 260 * MIB, 190 * MIB
    data = b"".join(noise()[n : n + 65 * MIB] for n in range(4))
    sha256, root = hashlib.sha256(data).hexdigest(), tmp_path / "root"
    spec = spec_of(data)
    with HostileOrigin(host="127.0.0.1") as origin:
        url = origin.put("/f", data, etag='"v1"')
        arguments = [str(root), url, sha256, str(size), str(connections)]
        with subprocess.Popen([sys.executable, "-c", _CHILD, *arguments]) as child:
            data_file = root / "private" / "ingest" / spec.key.id / "data"
            eventually(lambda: data_file.exists() and _written(data_file, data) >= kill_at)
            child.send_signal(signal.SIGKILL)
        written = _written(data_file, data)
    assert written < size
    with HostileOrigin(host="127.0.0.1") as origin, open_engine(root, connections) as engine:
        url = origin.put("/f", data, etag='"v1"')
        recorded = _recorded(engine, spec)
        durable = sum(end - start for start, end in recorded)
        assert written - durable <= _LOST_BYTES * connections
        _scribble(data_file, recorded)
        check_committed(engine.layout, data, engine.fetch(spec, http(url)))
        assert engine.counts.received_bytes == size - durable
        assert engine.counts.mismatches == 0


def _written(path: Path, data: bytes) -> int:
    """How many bytes of `data` are in the file at their place, by looking at each MiB's first page."""
    with path.open("rb") as file:
        return sum(MIB for at in range(0, len(data), MIB) if os.pread(file.fileno(), 64, at) == data[at : at + 64])
