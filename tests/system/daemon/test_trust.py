"""Trust: what a source vouches for is told everywhere, and less than the catalog accepts is refused before a byte."""

from __future__ import annotations

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess, prefetched, publish_files, write_files
from tests.support.http_server import serve_http

FILES = {"config.json": b"{}", "w.bin": bytes(300_000)}
WORDS = ("known", "checked", "versioned")


class Quiet(SimpleHTTPRequestHandler):
    """Python's own file server, which sends no ETag."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def test_trust_is_told_and_the_least_is_kept(daemon: DaemonProcess, source: Path) -> None:
    """A manifest is known, a plain folder versioned, a server without ETags sized: in status, record, `inspect`, `ls`
    and a metric, also after a restart. An entry that wants more is refused with both words and the remedy, fetches
    nothing, and leaves what is held; a pin vouches for all."""
    write_files(source / "plain", FILES)
    manifest = publish_files(source / "published", FILES)
    with serve_http(partial(Quiet, directory=source)) as address:
        places = {
            "known": f"file://{source}/published",
            "versioned": f"file://{source}/plain",
            "sized": f"http://{address}/plain/",
        }
        daemon.write_catalog({trust: prefetched(uri) for trust, uri in places.items()})
        daemon.start()
        refs = [ModelRef(trust, "v1") for trust in places]
        daemon.wait_ready(*refs)
        for _ in range(2):
            for ref in refs:
                assert (daemon.status(ref) or {})["trust"] == ref.name
                assert json.loads(daemon.layout.fetch_record(ref).read_text())["trust"] == ref.name
                assert json.loads(daemon.inspect(ref.name, "--json"))["trust"] == ref.name
                assert f"trust    {ref.name}: " in daemon.inspect(ref.name)
                assert daemon.metric("holdfast_model_trust", model=ref.name, version="v1", trust=ref.name) == 1
            assert daemon.stop() == 0
            daemon.start()
            daemon.wait_ready(*refs)

        wanted: dict[str, Any] = {trust: prefetched(uri, trust="known") for trust, uri in places.items()}
        wanted |= {f"new-{least}": prefetched(places["sized"], trust=least) for least in WORDS}
        wanted["pinned"] = prefetched(places["sized"], trust="known", digest=manifest.digest)
        daemon.write_catalog(wanted)
        for name in ("versioned", "sized", *(f"new-{least}" for least in WORDS)):
            error = daemon.wait_state(ModelRef(name, "v1"), "failed")["error"]
            assert (error["code"], error["permanent"]) == ("insufficient_trust", True)
            found = name if name in places else "sized"
            assert f"found {found} at " in error["message"] and "2 of 2 files, as config.json" in error["message"]
            assert "holdfast publish" in error["remedy"] and "`digest`" in error["remedy"]
        daemon.wait_ready(ModelRef("known", "v1"), ModelRef("pinned", "v1"))
        assert daemon.digest(ModelRef("sized", "v1")) == manifest.digest
        assert not daemon.path(ModelRef("new-known", "v1")).is_symlink()
        assert (daemon.status(ModelRef("pinned", "v1")) or {})["trust"] == "sized"


@pytest.mark.parametrize("preset", ["transformers", "all"])
def test_nothing_is_fetched_of_a_source_that_is_not_trusted(daemon: DaemonProcess, source: Path, preset: str) -> None:
    """Not the small files either that `for:` reads first."""
    weight_map = {"weight_map": {"a": "model.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(weight_map).encode()}
    write_files(source, {**files, "model.safetensors": bytes(1000)})
    daemon.write_catalog({"m": prefetched(f"file://{source}", trust="checked", **{"for": preset})})
    daemon.start()
    error = daemon.wait_state(ModelRef("m", "v1"), "failed")["error"]
    assert error["code"] == "insufficient_trust"
    assert not [path for path in daemon.layout.blobs.rglob("*") if path.is_file()]
    assert daemon.metric("holdfast_fetch_bytes_total", source="file") == 0
